// Keeps a page up to date: numbers and bars from the snapshots of jobs, other parts by loading them again.
import {listen} from "./live.js";
import {between, localize, number, rate, span} from "./words.js";

const AGAIN_SECONDS = 2;
const AWAY_SECONDS = 2;
const EVERY_SECONDS = 5;
const LOST_SECONDS = 60; // an answer that is not there by then is not waited for
const WORDS = {in_progress: "in progress"};
const PARTS = ["done", "failed", "cancelled", "rendering"];

const banner = document.getElementById("banner");
const button = document.getElementById("live");
const dialog = document.getElementById("dialog");

const latest = new Map(); // what is known of each job

function show(job) {
  if (!(job.as_of <= latest.get(job.id)?.as_of)) latest.set(job.id, job);
  for (const place of document.querySelectorAll(`[data-job="${CSS.escape(job.id)}"]`)) {
    if (job.as_of <= place.dataset.asOf) continue; // an older snapshot came late
    place.dataset.asOf = job.as_of;
    const before = place.dataset.status, finished = place.dataset.finished;
    place.dataset.status = job.paused && !job.finished_at ? "paused" : job.status;
    place.dataset.finished = job.counts.done + job.counts.failed + job.counts.cancelled;
    fill(place, job);
    if (before !== place.dataset.status) again("[data-again~='status']");
    if (finished !== place.dataset.finished) again("[data-again~='images']");
  }
}

function fill(place, job) {
  const {counts} = job;
  const finished = counts.done + counts.failed + counts.cancelled;
  const values = {
    ...Object.fromEntries(Object.entries(counts).map(([name, value]) => [name, number(value)])),
    finished: number(finished),
    percent: `${Math.floor((finished / Math.max(1, counts.total)) * 100)} %`,
    rate: job.rate ? `${rate(job.rate)}/s` : "",
    status: WORDS[place.dataset.status] ?? place.dataset.status,
  };
  if (job.eta_seconds !== null) Object.assign(values, {eta: span(job.eta_seconds), between: between(job.eta_low_seconds, job.eta_high_seconds)});
  else if (job.finished_at || job.paused) Object.assign(values, {eta: "", between: ""});
  for (const [name, value] of Object.entries(values)) {
    for (const field of place.querySelectorAll(`[data-field="${name}"]`)) if (field.textContent !== value) field.textContent = value;
  }
  for (const state of place.querySelectorAll(".state[data-field]")) {
    state.dataset.state = place.dataset.status;
    state.toggleAttribute("data-failed", counts.failed > 0);
  }
  for (const failures of place.querySelectorAll("[data-failures]")) failures.hidden = !counts.failed;
  for (const bar of place.querySelectorAll(".bar")) draw(bar, counts, finished);
}

function draw(bar, counts, finished) {
  let from = 0;
  for (const part of PARTS) {
    const width = (counts[part] / Math.max(1, counts.total)) * 100;
    const rect = bar.querySelector(`.part-${part}`);
    rect.setAttribute("x", from.toFixed(3));
    rect.setAttribute("width", width.toFixed(3));
    from += width;
  }
  bar.setAttribute("aria-valuenow", finished);
  bar.setAttribute("aria-valuetext", `${number(finished)} of ${number(counts.total)} finished, ${number(counts.failed)} failed`);
}

// Parts of the page are loaded again at most every few seconds, one request at a time for each, never while they are
// used, and not at all while the page is paused or not looked at: htmx would send what waits for an answer all the same.
const waiting = new Set();
const loading = new Map(); // when each part that is being loaded was asked for
let timer, loadedAt = 0;

function again(selector) {
  for (const part of document.querySelectorAll(selector)) waiting.add(part.id);
  if (waiting.size) plan();
}

function plan() {
  timer ??= setTimeout(load, Math.max(200, AGAIN_SECONDS * 1000 - (performance.now() - loadedAt)));
}

function load() {
  timer = undefined;
  if (document.hidden || button.getAttribute("aria-pressed") !== "true") return;
  loadedAt = performance.now();
  for (const id of waiting) {
    const part = document.getElementById(id);
    if (part?.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")) continue;
    if (loadedAt - loading.get(id) < LOST_SECONDS * 1000) continue;
    waiting.delete(id);
    if (!part) continue;
    loading.set(id, loadedAt);
    htmx.trigger(part, "again");
  }
}
document.addEventListener("htmx:finally:request", ({detail}) => {
  if (loading.delete(detail.ctx.sourceElement?.id) && waiting.size) plan();
});

let away;
function tell(status) {
  const signedOut = status === "signed out";
  button.classList.toggle("away", status === "away" || status === "unreachable");
  if (status === "away") {
    away ??= setTimeout(() => say("The server cannot be reached. What you see is from before; it is tried again."), AWAY_SECONDS * 1000);
    return;
  }
  clearTimeout(away);
  const wasAway = away !== undefined;
  away = undefined;
  if (status === "unreachable") say("The server cannot reach its database. What you see is from before.");
  else if (signedOut) say("You are signed out.", `${new URL(document.querySelector(".brand").href).pathname}sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  else if (status === "live" && !banner.hidden) {
    banner.hidden = true;
    again("[data-again]");
  } else if (wasAway) again("[data-again]");
}

function say(sentence, address) {
  banner.textContent = sentence;
  if (address) {
    const link = document.createElement("a");
    link.href = address;
    link.textContent = "Sign in";
    banner.append(" ", link);
  }
  banner.hidden = false;
}

const pause = listen({
  onJob: show,
  onEvent: (event) => {
    again(event.kind.startsWith("export.") ? "[data-again~='exports']" : "[data-again~='events']");
    if (event.kind === "job.marked") again(`[data-again~='marks'][data-of="${CSS.escape(event.job_id)}"]`);
  },
  onStatus: tell,
  refresh: () => again("[data-again], [data-every]"),
});

// Without a stream, the requests themselves say whether the server is there.
if (typeof SharedWorker === "undefined") {
  document.addEventListener("htmx:error", () => tell("away"));
  document.addEventListener("htmx:after:request", () => tell("live"));
}

button.hidden = false;
button.addEventListener("click", () => {
  const paused = button.getAttribute("aria-pressed") === "true";
  button.setAttribute("aria-pressed", String(!paused));
  button.querySelector(".word").textContent = paused ? "Paused" : "Live";
  pause(paused);
});

// A link that asks for confirmation shows its page in a dialog; without scripts it is a page of its own.
document.addEventListener("htmx:after:swap", (event) => {
  localize(document);
  for (const job of latest.values()) show(job); // what was loaded may be older than what was heard meanwhile
  if (dialog.contains(event.target) || event.detail?.ctx?.target === dialog) {
    if (!dialog.open && dialog.childElementCount) dialog.showModal();
  }
});
dialog.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) {
    event.preventDefault();
    dialog.close();
  }
});
dialog.addEventListener("close", () => dialog.replaceChildren());
document.addEventListener("keydown", (event) => {
  const rel = {ArrowLeft: "prev", ArrowRight: "next"}[event.key];
  if (!rel || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest("input, select, pre")) return;
  document.querySelector(`a[rel="${rel}"]`)?.click();
});

// An open menu closes when something else is used, and by Escape, which goes back to its button.
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && !document.querySelector("dialog[open]") && document.querySelector("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// What no event tells about, such as workers, is loaded again while it is looked at.
setInterval(() => {
  if (!document.hidden && button.getAttribute("aria-pressed") === "true") again("[data-every]");
}, EVERY_SECONDS * 1000);

localize(document);
