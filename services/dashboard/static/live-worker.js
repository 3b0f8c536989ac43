// One stream of events for all pages of this browser that are looked at: HTTP/1.1 allows six connections to a server.
const KINDS = ["job.created", "job.queued", "job.started", "job.paused", "job.resumed", "job.priority_changed",
  "job.cancel_requested", "job.finalizing", "job.completed", "job.failed", "job.cancelled", "job.expired", "job.refused",
  "job.marked", "job.deleted", "export.created", "export.completed", "export.failed", "export.cancelled", "export.deleted"];
const RETRY = 2000;
const KEPT = 500;
const ports = new Set();
const jobs = new Map(); // the newest snapshot of each
let address, source, last, status = "connecting", timer;

self.onconnect = (event) => {
  const port = event.ports[0];
  port.onmessage = ({data}) => {
    if (data.kind === "hello") {
      address = data.address;
      ports.add(port);
      port.postMessage({kind: "status", status});
      for (const job of jobs.values()) port.postMessage({kind: "job", job});
      if (!source && !timer) connect();
    } else {
      ports.delete(port);
      if (!ports.size) disconnect();
    }
  };
};

function connect() {
  timer = undefined;
  if (!ports.size) return;
  source = new EventSource(last ? `${address}?after=${last}` : address);
  source.onopen = () => tell("live");
  source.addEventListener("job", ({data}) => {
    const job = JSON.parse(data);
    jobs.delete(job.id);
    jobs.set(job.id, job);
    if (jobs.size > KEPT) jobs.delete(jobs.keys().next().value);
    send({kind: "job", job});
  });
  for (const kind of KINDS) {
    source.addEventListener(kind, ({data, lastEventId}) => {
      last = lastEventId || last;
      send({kind: "event", event: JSON.parse(data)});
    });
  }
  source.addEventListener("reset", () => { last = undefined; send({kind: "reset"}); });
  source.addEventListener("unreachable", () => { tell("unreachable"); setTimeout(probe, RETRY); });
  source.onerror = () => { // also where the server has refused: the browser would not try again then
    source.close();
    source = undefined;
    tell("away");
    timer = setTimeout(connect, RETRY);
    isSignedOut();
  };
}

async function ask() {
  try {
    return await fetch(address, {method: "HEAD", redirect: "manual"});
  } catch {
    return {};
  }
}

// Whoever is signed out is told so; nothing is tried again until a page is looked at again.
async function isSignedOut() {
  if ((await ask()).type !== "opaqueredirect") return;
  clearTimeout(timer);
  timer = undefined;
  tell("signed out");
}

// The stream goes on when the database is back, but has nothing to say if nothing has changed.
async function probe() {
  if (status !== "unreachable" || !source) return;
  if ((await ask()).ok) tell("live");
  else setTimeout(probe, RETRY);
}

function disconnect() {
  clearTimeout(timer);
  timer = undefined;
  source?.close();
  source = undefined;
  jobs.clear();
  status = "connecting";
}

function tell(now) {
  status = now;
  send({kind: "status", status});
}

function send(message) {
  for (const port of ports) port.postMessage(message);
}
