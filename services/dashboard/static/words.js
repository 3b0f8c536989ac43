// How values are written for people, as services/dashboard/words.py writes them.
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

export const number = (value) => value.toLocaleString("en-US");

export function rate(value) {
  if (value < 0.01) return value <= 0 ? "0" : "<0.01";
  return value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : String(Number(value.toPrecision(2)));
}

export function span(seconds) {
  const left = Math.max(0, Math.round(seconds));
  const place = UNITS.findIndex(([size]) => left >= size);
  if (place < 0) return "0 s";
  const [size, unit] = UNITS[place];
  const smaller = UNITS[place + 1];
  const rest = smaller ? Math.floor((left % size) / smaller[0]) : 0;
  return `${Math.floor(left / size)} ${unit}${rest ? ` ${rest} ${smaller[1]}` : ""}`;
}

export function between(low, high) {
  const begin = span(low), end = span(high);
  return begin === end ? "" : `${begin} to ${end}`;
}

export function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const moment = new Date(time.dateTime);
    const now = new Date();
    const options = {hour: "2-digit", minute: "2-digit", hourCycle: "h23"};
    if (moment.toDateString() !== now.toDateString()) Object.assign(options, {day: "numeric", month: "short"});
    if (moment.getFullYear() !== now.getFullYear()) options.year = "numeric";
    if (time.dataset.seconds !== undefined) options.second = "2-digit";
    time.title = moment.toLocaleString();
    time.textContent = moment.toLocaleString("en-GB", options);
    time.dataset.local = "";
  }
}
