// Compares resources of other projects with their schemas: `node resources.mjs FOLDER < documents.json`, where FOLDER holds
// the npm packages @kubernetes-models/keda and @kubernetes-models/prometheus-operator. Prints what does not fit, a line each.
//
// Their validators pass over a field that they do not know, so each document is shown to them through a proxy that notes
// what they look at: an object of which something is read must have no field that is not.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const MODULES = pathToFileURL(resolve(process.argv[2], "node_modules") + "/");
const PACKAGES = { "keda.sh": "@kubernetes-models/keda", "monitoring.coreos.com": "@kubernetes-models/prometheus-operator" };

function watched(value, path, entered, read) {
  if (value === null || typeof value !== "object") return value;
  return new Proxy(value, {
    get(target, key) {
      if (typeof key === "string" && !(Array.isArray(target) && key === "length")) {
        entered.set(path, target);
        read.add(`${path}/${key}`);
      }
      return watched(target[key], `${path}/${String(key)}`, entered, read);
    },
  });
}

for (const document of JSON.parse(readFileSync(0, "utf8"))) {
  const say = (words) => console.log(`${document.kind} ${document.metadata.name}: ${words}`);
  const group = document.apiVersion.split("/")[0];
  const model = new URL(`${PACKAGES[group]}/${document.apiVersion}/${document.kind}.js`, MODULES);
  const schema = readFileSync(model, "utf8").match(/from\s*"([^"]*_schemas[^"]*)"/)[1];
  const { validate } = await import(new URL(schema, model).href);
  const entered = new Map(), read = new Set();
  if (!validate(watched(document, "", entered, read)))
    for (const error of validate.errors) say(`${error.instancePath} ${error.keyword} ${JSON.stringify(error.params)}`);
  for (const [path, target] of entered)
    for (const key of Object.keys(target)) if (!read.has(`${path}/${key}`)) say(`${path}/${key} is unknown`);
}
