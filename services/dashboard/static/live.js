// What a page hears while it is looked at: from the stream that all pages of the browser share, or, where there are no
// shared workers, by asking again every few seconds.
const ASK_SECONDS = 5;
const body = document.body;
let worker, timer, paused = false;

export function listen({onJob, onEvent, onStatus, refresh}) {
  const start = () => {
    if (paused || document.hidden) return;
    if (typeof SharedWorker === "undefined") {
      onStatus("live");
      timer ??= setInterval(() => refresh(), ASK_SECONDS * 1000);
      return;
    }
    if (!worker) {
      worker = new SharedWorker(body.dataset.worker, {name: "presswork"});
      worker.port.onmessage = ({data}) => {
        if (paused || document.hidden) return;
        if (data.kind === "job") onJob(data.job);
        else if (data.kind === "event") onEvent(data.event);
        else if (data.kind === "reset") refresh();
        else onStatus(data.status);
      };
    }
    worker.port.postMessage({kind: "hello", address: new URL(body.dataset.live, location.href).href});
  };
  const stop = () => {
    clearInterval(timer);
    timer = undefined;
    worker?.port.postMessage({kind: "bye"});
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return stop();
    start();
    if (!paused) refresh();
  });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => { if (event.persisted) start(); });
  start();
  return (wanted) => {
    paused = wanted;
    if (paused) return stop();
    start();
    refresh();
  };
}
