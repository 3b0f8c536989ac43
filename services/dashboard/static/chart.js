// Draws the throughput whose numbers a page has, in the page's colours. The arrow keys read single points aloud.
import {number, rate} from "./words.js";

const HEIGHT = 170;
const MINUTES = {hour: "2-digit", minute: "2-digit", hourCycle: "h23"};
const SECONDS = {...MINUTES, second: "2-digit"};
const DAYS = {...MINUTES, weekday: "short"};
const drawn = new Map(); // the plot of each place

// What a variable of the style sheet comes to here: it may differ between light and dark.
function ink(place, name, alpha = 1) {
  const probe = place.querySelector(".probe");
  probe.style.color = `var(--${name})`;
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g);
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

// The last point reaches to its end, so it is drawn as wide as it is. Where nothing failed there is no line.
function columns({at, end, rate: rates, failing}) {
  return [[...at, end], [...rates, rates.at(-1)], [...failing, failing.at(-1)].map((value, nth, all) => (value || all[nth - 1]) ? value : null)];
}

const named = (place) => place.numbers.each === "hour" || span(place) > 86400 ? DAYS : place.numbers.each === "minute" ? MINUTES : SECONDS;
const written = (seconds, options) => new Date(seconds * 1000).toLocaleString("en-GB", options);

function draw(place) {
  place.replaceChildren();
  for (const [tag, name] of [["span", "probe"], ["div", "plot"], ["output", "reading"]]) {
    const part = document.createElement(tag);
    part.className = name;
    part.hidden = name === "probe";
    place.append(part);
  }
  const line = (name, width, alpha) => ({
    stroke: () => ink(place, name), fill: () => ink(place, name, alpha), width, points: {show: false},
    paths: uPlot.paths.stepped({align: 1}),
  });
  const axis = {stroke: () => ink(place, "quiet"), grid: {stroke: () => ink(place, "line"), width: 1}, ticks: {show: false}, font: "12px system-ui"};
  const options = {
    width: Math.max(200, place.clientWidth), height: HEIGHT, padding: [8, 8, 0, 0],
    legend: {show: false}, cursor: {drag: {x: false, y: false}, y: false},
    scales: {y: {range: (_plot, _low, high) => [0, high > 0 ? high * 1.1 : 1]}},
    series: [{}, line("done", 1.5, 0.16), line("failed", 1.5, 0.25)],
    axes: [
      {...axis, space: 70, size: 28, values: (_plot, ticks) => ticks.map((tick) => written(tick, span(place) > 172800 ? {day: "numeric", month: "short"} : ticks[1] - ticks[0] < 60 ? SECONDS : MINUTES))},
      {...axis, size: 46, values: (_plot, ticks) => ticks.map((tick) => tick ? rate(tick) : "0")},
    ],
    hooks: {setCursor: [(plot) => read(place, plot.cursor.idx)]},
  };
  const plot = new uPlot(options, columns(place.numbers), place.querySelector(".plot"));
  drawn.set(place, plot);
  sizes.observe(place);
  return plot;
}

const span = (place) => place.numbers.end - place.numbers.at[0];

function read(place, index) {
  const {at, done, failed, rate: rates} = place.numbers;
  const nth = index === null || index === undefined ? null : Math.min(index, at.length - 1);
  const text = nth === null ? "" : `${written(at[nth], named(place))}: ${rate(rates[nth])} a second, ${number(done[nth])} done, ${number(failed[nth])} failed`;
  const reading = place.querySelector(".reading");
  if (reading.textContent !== text) reading.textContent = text;
}

function step(event) {
  const place = event.currentTarget, plot = drawn.get(place), last = place.numbers.at.length - 1;
  const now = plot.cursor.idx ?? last + 1;
  const next = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last}[event.key];
  if (next === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const nth = Math.max(0, Math.min(last, next));
  plot.setCursor({left: plot.valToPos(plot.data[0][nth], "x"), top: 0});
}

const clear = (event) => drawn.get(event.currentTarget)?.setCursor({left: -10, top: -10});

function show() {
  for (const place of drawn.keys()) {
    if (place.isConnected) continue;
    sizes.unobserve(place);
    drawn.get(place).destroy();
    drawn.delete(place);
  }
  for (const place of document.querySelectorAll(".chart[data-numbers]")) {
    if (place.drawnFrom === place.dataset.numbers) continue;
    place.drawnFrom = place.dataset.numbers;
    place.numbers = JSON.parse(place.dataset.numbers);
    if (drawn.has(place)) drawn.get(place).setData(columns(place.numbers));
    else {
      draw(place);
      place.addEventListener("keydown", step);
      place.addEventListener("blur", clear);
    }
  }
}

const sizes = new ResizeObserver((entries) => {
  for (const {target} of entries) if (target.clientWidth) drawn.get(target)?.setSize({width: target.clientWidth, height: HEIGHT});
});
const repaint = () => { for (const plot of drawn.values()) plot.redraw(); };
new MutationObserver(repaint).observe(document.documentElement, {attributeFilter: ["data-theme"]});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
document.addEventListener("htmx:after:swap", show);
show();
