// Sliders that steer latents: each knows what is done to its latent, and says so when it changes.

import { $, make } from "./dom.js";

const KINDS = {
  add: { name: "add", least: (m) => -m, most: (m) => m, neutral: 0, text: (x) => (x < 0 ? `${x}` : `+${x}`) },
  scale: { name: "scale", least: () => -2, most: () => 6, neutral: 1, text: (x) => `x${x}` },
  set: { name: "set to", least: () => 0, most: (m) => m, neutral: null, text: (x) => (x < 0 ? null : `${x}`) },
};
const DEBOUNCE = 350; // milliseconds

const rows = new Map(); // key of the latent -> its row
let changed = () => {};
let many = false;
let first = "";
let timer = null;

export function startSteering(hookpoints, whenChanged) {
  changed = whenChanged;
  many = hookpoints.length > 1;
  first = hookpoints[0].name;
  $("add-latent").addEventListener("submit", (event) => {
    event.preventDefault();
    const [number, where] = $("latent-number").value.trim().split(":").reverse();
    steer(where || first, Number(number));
    $("latent-number").value = "";
  });
  $("steer-off").addEventListener("click", () => {
    rows.clear();
    place();
    now();
  });
}

/** What the server is to do to latents: {"3740": "+4"}; what changes nothing is left out. */
export function steering() {
  const found = {};
  for (const [key, row] of rows) {
    const text = row.text();
    if (text !== null) found[key] = text;
  }
  return found;
}

/** A slider for a latent, which changes nothing until it is moved. */
export function steer(hookpoint, latent, activation = 0, largest = 0) {
  const key = many ? `${hookpoint}:${latent}` : `${latent}`;
  if (!rows.has(key)) rows.set(key, new Row(key, latent, hookpoint, Math.max(largest, activation, 2)));
  place();
  rows.get(key).slider.focus();
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(now, DEBOUNCE);
}

function now() {
  clearTimeout(timer);
  changed();
}

function place() {
  $("sliders").replaceChildren(...[...rows.values()].map((row) => row.node));
  $("steer-off").hidden = !rows.size;
}

class Row {
  constructor(key, latent, hookpoint, largest) {
    this.largest = largest;
    const name = many ? key : `latent ${latent}`;
    this.kind = make("select", { "aria-label": `What is done to ${name}` },
      ...Object.entries(KINDS).map(([value, { name: text }]) => make("option", { value }, text)));
    this.slider = make("input", { type: "range", "aria-label": `How much, ${name}` });
    this.number = make("input", { type: "number", step: "any", "aria-label": `How much in figures, ${name}` });
    const gone = make("button", { type: "button", className: "quiet", "aria-label": `Remove ${name}` }, "×");
    this.node = make("li", {}, make("a", { className: "latent", href: `#latent/${hookpoint}/${latent}` }, many ? key : `#${latent}`),
      this.kind, this.slider, this.number, gone);
    this.kind.addEventListener("change", () => { this.range(); soon(); });
    this.slider.addEventListener("input", () => { this.number.value = this.slider.value; soon(); });
    this.number.addEventListener("input", () => { this.slider.value = this.number.value; soon(); });
    gone.addEventListener("click", () => { rows.delete(key); place(); $("latent-number").focus(); now(); });
    this.range();
  }

  range() {
    const { least, most, neutral } = KINDS[this.kind.value];
    const reach = Number((2 * this.largest).toPrecision(2));
    Object.assign(this.slider, { min: least(reach), max: most(reach), step: Number(((most(reach) - least(reach)) / 200).toPrecision(1)) });
    this.slider.value = this.number.value = neutral ?? 0;
  }

  text() {
    const { neutral, text } = KINDS[this.kind.value];
    const x = this.number.valueAsNumber;
    return Number.isFinite(x) && x !== neutral ? text(x) : null;
  }
}
