// The form of a submission: what was filled in is looked at while it is typed, and a file shows how much of it was sent.
import {copy} from "./copy.js";

const PAUSE_MS = 600;
const form = document.getElementById("submit");
const file = document.getElementById("file");
const send = document.getElementById("send");
const progress = document.getElementById("progress");
const word = document.getElementById("progress-word");
const bar = document.getElementById("sent");
let asked, timer, isSending = false;

function post(address, done) {
  asked?.abort();
  const request = asked = new XMLHttpRequest();
  request.open("POST", address);
  request.responseType = "document";
  if (file?.files.length) {
    progress.hidden = false;
    word.textContent = `Sending ${file.files[0].name}`;
    bar.value = 0;
    request.upload.onprogress = ({loaded, total}) => { bar.value = loaded / total; };
    request.upload.onload = () => {
      bar.removeAttribute("value");
      word.textContent = `Reading ${file.files[0].name}`;
    };
  }
  const end = () => {
    if (request !== asked) return;
    progress.hidden = true;
    asked = undefined;
  };
  request.onload = () => { end(); done(request); };
  request.onerror = () => { end(); isSending = false; say("The server cannot be reached: nothing is known of what was sent. Send it again; it makes one job."); };
  const body = new FormData(form);
  request.send(file ? body : new URLSearchParams(body));
}

function show(page) {
  const found = page?.getElementById("preview");
  if (!found) {
    say(page?.querySelector("main p")?.textContent ?? "The server has refused this; load the page again.");
    return;
  }
  document.getElementById("preview").replaceChildren(...document.adoptNode(found).childNodes);
  offerCopies();
}

function say(sentence) {
  const part = document.createElement("p");
  part.className = "card refusal";
  part.setAttribute("role", "alert");
  part.textContent = sentence;
  document.getElementById("preview").replaceChildren(part);
}

function isEmpty() {
  if (file) return !file.files.length;
  return !(form.elements.prompt ?? form.elements.template).value.trim();
}

function look() {
  clearTimeout(timer);
  if (isSending || isEmpty()) return;
  post(form.dataset.preview, (request) => show(request.response));
}

form.addEventListener("input", (event) => {
  clearTimeout(timer);
  timer = setTimeout(look, event.target === file ? 0 : PAUSE_MS);
});
document.getElementById("look").addEventListener("click", (event) => {
  event.preventDefault();
  if (isEmpty()) (file ?? form.elements.prompt ?? form.elements.template).focus();
  else look();
});
form.addEventListener("submit", (event) => {
  clearTimeout(timer);
  if (!file) { asked?.abort(); return; }
  event.preventDefault();
  if (isSending) return;
  isSending = true;
  post(form.action, (request) => {
    isSending = false;
    if (request.responseURL.includes("/jobs/")) {
      location.assign(request.responseURL);
      return;
    }
    const once = request.response?.querySelector("input[name=once]");
    if (once) form.elements.once.value = once.value;
    show(request.response);
  });
});

// A file may be dropped anywhere on the page.
if (file) {
  addEventListener("dragover", (event) => { event.preventDefault(); document.getElementById("drop").classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) addEventListener(kind, () => document.getElementById("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    file.files = event.dataTransfer.files;
    look();
  });
}

function offerCopies() {
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await copy(document.getElementById(button.dataset.copy));
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
offerCopies();
