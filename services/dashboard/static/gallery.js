// Pictures by keyboard: moving in a gallery, looking at one large, and marking the one that is looked at.
import {localize} from "./words.js";

const MARKS = {a: "accepted", r: "rejected", s: "starred", u: "none", d: "redraw"};
const STEPS = {ArrowLeft: -1, ArrowRight: 1};
const OPEN = "#large"; // in an address: the first picture is shown large

const told = document.createElement("p");
told.className = "told";
told.setAttribute("role", "status");
document.body.append(told);

const items = () => [...document.querySelectorAll("[data-gallery] > li")];
const item = (index) => document.querySelector(`[data-gallery] > li[data-index="${index}"]`);
let quiet;

function tell(sentence, isWrong = false) {
  const home = large.open ? large : document.body; // a dialog hides all that is not in it
  if (told.parentElement !== home) home.append(told);
  told.textContent = sentence;
  told.classList.toggle("wrong", isWrong);
  clearTimeout(quiet);
  quiet = setTimeout(() => { told.textContent = ""; }, isWrong ? 8000 : 2500);
}

// The keys of letters can be turned off: somebody who speaks to the computer would press them by chance.
const singleKeys = {
  get on() { try { return localStorage.getItem("single-keys") !== "off"; } catch { return true; } },
  set on(value) { try { localStorage.setItem("single-keys", value ? "on" : "off"); } catch { /* it holds for this page */ } },
};

// Marks

async function mark(index, word) {
  const form = document.querySelector("form.marks, #marker");
  if (!form || (word === "redraw" && !("redraws" in form.dataset))) return;
  const body = new URLSearchParams({csrf: form.elements.csrf.value, index, mark: word});
  let answer, text;
  try {
    answer = await fetch(form.action, {method: "POST", body, headers: {"HX-Request": "true"}});
    text = await answer.text();
  } catch {
    return tell("The server cannot be reached: nothing was marked.", true);
  }
  if (answer.headers.has("HX-Redirect")) return location.assign(answer.headers.get("HX-Redirect"));
  const found = new DOMParser().parseFromString(text, "text/html");
  if (!answer.ok) return tell(found.querySelector("main p")?.textContent ?? "Nothing was marked.", true);
  const part = found.querySelector(".marking");
  for (const place of document.querySelectorAll(`.marking[data-index="${index}"]`)) {
    const pressed = place.contains(document.activeElement) ? document.activeElement.value : undefined;
    const fresh = document.importNode(part, true);
    place.replaceWith(fresh);
    localize(fresh);
    if (pressed) (fresh.querySelector(`button[value="${pressed}"]:not([hidden])`) ?? fresh.querySelector("button"))?.focus();
  }
  const badge = item(index)?.querySelector(".badge");
  if (badge) badge.textContent = badge.dataset.mark = part.dataset.mark;
  const name = item(index)?.dataset.name ?? `Image ${Number(index).toLocaleString("en-US")}`;
  tell(`${name}: ${word === "redraw" ? "is drawn again" : part.dataset.mark || "no mark"}`);
  if ((part.dataset.mark || word === "redraw") && item(index)?.closest("[data-advance]")) advance(index);
}

// In a review the next picture follows the one that was marked.
function advance(index) {
  if (large.open && large.dataset.index === index) return step(1);
  if (document.activeElement?.closest("[data-gallery] > li") === item(index)) item(index).nextElementSibling?.querySelector("a").focus();
}

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form.marks")) return;
  event.preventDefault();
  mark(event.target.elements.index.value, event.submitter.value);
});

// The picture that keys are about: the one shown large, the one that has the focus, or the page's own.
function current() {
  if (large.open) return large.dataset.index;
  return document.activeElement?.closest("[data-gallery] > li")?.dataset.index ?? document.querySelector("#image")?.dataset.index;
}

// One picture large, over the gallery

const large = document.createElement("dialog");
large.id = "lightbox";
large.setAttribute("aria-label", "Picture");
large.innerHTML = `<div class="actions"><button type="button" data-step="-1">Previous</button><button type="button" data-step="1">Next</button><a class="button" data-page>Its page</a><button type="button" class="end" data-close>Close</button></div><div data-shown></div>`;
document.body.append(large);
let asked = 0;

async function show(index) {
  const link = item(index)?.querySelector("a");
  if (!link) return;
  const number = ++asked;
  large.dataset.index = index;
  large.querySelector("[data-page]").href = link.href;
  if (!large.open) large.showModal();
  let shown;
  try {
    const answer = await fetch(link.href);
    shown = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("#image");
  } catch { /* shown on its own page, which says why */ }
  if (number !== asked) return; // another one was asked for meanwhile
  if (!shown) return location.assign(link.href);
  const part = document.importNode(shown, true);
  large.querySelector("[data-shown]").replaceChildren(part);
  htmx.process(part);
  localize(part);
  reveal();
  const all = items(), place = all.indexOf(item(index));
  large.querySelector("[data-step='-1']").disabled = place <= 0;
  large.querySelector("[data-step='1']").disabled = place === all.length - 1 && !document.querySelector("[data-more]");
}

function step(by) {
  const all = items();
  const next = all[all.indexOf(item(large.dataset.index)) + by];
  if (next) return show(next.dataset.index);
  const more = document.querySelector("[data-more]");
  if (by > 0 && more) location.assign(more.href.split("#")[0] + OPEN);
}

large.addEventListener("close", () => {
  asked += 1;
  item(large.dataset.index)?.querySelector("a").focus();
  large.querySelector("[data-shown]").replaceChildren();
});
large.addEventListener("click", (event) => {
  const button = event.target.closest("[data-step]");
  if (button) step(Number(button.dataset.step));
  if (event.target === large || event.target.closest("[data-close]")) large.close();
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-gallery] > li a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.button) return;
  event.preventDefault();
  show(link.closest("li").dataset.index);
});

// Keys

function move(event) {
  const all = items(), here = all.indexOf(document.activeElement?.closest("[data-gallery] > li"));
  if (here < 0) return;
  let next = here + (STEPS[event.key] ?? 0);
  if (event.key === "Home") next = 0;
  if (event.key === "End") next = all.length - 1;
  if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    const columns = all.filter((one) => one.offsetTop === all[0].offsetTop).length;
    next = here + (event.key === "ArrowUp" ? -columns : columns);
  }
  if (!all[next]) return;
  event.preventDefault();
  all[next].querySelector("a").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, pre, summary")) return;
  if (document.querySelector("dialog[open]:not(#lightbox)")) return;
  if (large.open && event.key in STEPS) return step(STEPS[event.key]);
  if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return move(event);
  if (!singleKeys.on) return;
  if (event.key === "?") return document.getElementById("show-keys")?.click();
  const word = MARKS[event.key], index = current();
  if (word && index !== undefined) mark(index, word);
});

// When the gallery is loaded again, the picture that had the focus may have left it: the next one takes its place.
let focused;
document.addEventListener("focusin", (event) => { focused = event.target.closest("[data-gallery] > li")?.dataset.index; });
document.addEventListener("htmx:after:swap", () => {
  reveal();
  if (focused === undefined || large.open || document.activeElement !== document.body) return;
  const next = item(focused) ?? items().find((one) => Number(one.dataset.index) > Number(focused)) ?? items().at(-1);
  next?.querySelector("a").focus();
});

document.addEventListener("click", (event) => {
  const keys = document.getElementById("keys");
  if (event.target.closest("#show-keys")) {
    document.getElementById("single-keys").checked = singleKeys.on;
    keys.showModal();
  } else if (keys?.open && (event.target === keys || event.target.closest("[data-close]"))) keys.close();
});
document.addEventListener("change", ({target}) => { if (target.id === "single-keys") singleKeys.on = target.checked; });

// Copying

// What needs this script is hidden until it runs.
function reveal() {
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
  for (const button of document.querySelectorAll("#show-keys")) button.hidden = false;
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const {copy} = await import("./copy.js"); // which few pages need
  await copy(button.parentElement.querySelector("pre"));
  tell("Copied");
});

reveal();
if (location.hash === OPEN) show(items()[0]?.dataset.index);
document.querySelector("form[data-goes-on]")?.requestSubmit();
