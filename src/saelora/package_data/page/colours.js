// What a token's colour says.

import { $, make } from "./dom.js";

const QUANTITIES = {
  kl: { of: (t) => t.kl, steps: [0.01, 0.03, 0.1, 0.3, 1, 3], kind: "k", unit: "nats" },
  loss: { of: (t) => t.loss, steps: [0.25, 0.5, 1, 2, 4, 8], kind: "q", unit: "nats" },
  change: { of: (t) => t.loss - t.original, steps: [0.03, 0.1, 0.3, 1], kind: "d", unit: "nats" },
};

const chosen = () => QUANTITIES[$("quantity").value];

function level(steps, x) {
  let found = 0;
  for (const step of steps) if (x >= step) found += 1;
  return found;
}

/** The class that shades a token {loss, original, kl}, each perhaps not known yet. */
export function shade(token) {
  const { of, steps, kind } = chosen();
  const x = of(token);
  if (x === undefined || x === null || Number.isNaN(x)) return "";
  if (kind !== "d") return `${kind}${level(steps, x)}`;
  return `${x < 0 ? "h" : "u"}${level(steps, Math.abs(x))}`;
}

export function legend() {
  const { steps, kind, unit } = chosen();
  const items = [make("li", { className: "unit" }, `${unit}:`)];
  const item = (name, text) => items.push(make("li", { className: name }, text));
  if (kind === "d") {
    [...steps].reverse().forEach((step, i) => item(`h${steps.length - i}`, `−${step}`));
    item("", "0");
    steps.forEach((step, i) => item(`u${i + 1}`, `+${step}`));
  } else {
    item("", `< ${steps[0]}`);
    steps.forEach((step, i) => item(`${kind}${i + 1}`, i + 1 < steps.length ? `${step}` : `≥ ${step}`));
  }
  $("legend").replaceChildren(...items);
}
