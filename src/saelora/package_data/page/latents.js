// The latents browser: a list that is searched and sorted, and one latent in full.

import { $, alone, ask, figure, make, trouble, visible } from "./dom.js";
import { steer } from "./steer.js";

const PAGE = 50;
const POLL = 1500; // milliseconds, while latents are counted
let where = "";
let shown = 0;
let timer = null;
let current = null; // the latent that is shown, as "hookpoint/number"
let abort = null;

export function startLatents(state) {
  where = state.hookpoints[0].name;
  $("where").append(...state.hookpoints.map(({ name }) => make("option", { value: name }, name)));
  $("where-label").hidden = state.hookpoints.length < 2;
  $("where").addEventListener("change", () => { where = $("where").value; list(); });
  $("sort").addEventListener("change", () => list());
  $("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(list, 250); });
  $("more").addEventListener("click", () => list(true));
}

/** Called whenever the address names the latents: #latents, or #latent/HOOKPOINT/NUMBER. */
export function showLatents() {
  const [, hookpoint, number] = location.hash.match(/^#latent\/([^/]+)\/(\d+)$/) || [];
  $("latents").classList.toggle("single", hookpoint !== undefined);
  if (!shown) list();
  if (hookpoint === undefined) return;
  one(decodeURIComponent(hookpoint), Number(number)).catch(trouble);
}

async function list(further = false) {
  clearTimeout(timer);
  const [sort, direction] = $("sort").value.split("-");
  const given = { hookpoint: where, sort, descending: direction === "down", search: $("search").value, limit: PAGE, offset: further ? shown : 0 };
  try {
    const found = await ask("/page/api/latents", given);
    progress(found);
    if (!found.rows) {
      if (found.progress.state !== "failed") timer = setTimeout(list, POLL);
      return;
    }
    const body = document.querySelector("#list tbody");
    if (!further) body.replaceChildren();
    body.append(...found.rows.map((row) => line(row, found.least)));
    shown = given.offset + found.rows.length;
    $("list-box").hidden = false;
    $("more").hidden = shown >= found.total;
    if (current && !further && location.hash.startsWith("#latent/")) mark();
  } catch (error) {
    trouble(error);
  }
}

function progress(found) {
  const { state, done, total, why } = found.progress;
  $("progress").hidden = state !== "counting" && state !== "reading";
  if (total) Object.assign($("progress"), { max: total, value: done });
  const told = {
    reading: "reading held-out text …",
    counting: `counting latents on held-out text: row ${done} of ${total} (in the background; what you ask goes first)`,
    failed: `latents could not be counted: ${why}`,
  }[state];
  $("counted").textContent = told || `${found.total.toLocaleString("en")} latents. On ${found.n_tokens.toLocaleString("en")} tokens of held-out ` +
    `text, ${found.variant}; ${found.silent.toLocaleString("en")} never fire there. Effect: mean KL to the original where the latent fires, ` +
    `adapted less spliced, in nats; below 0 is better.${why ? ` This count: ${why}.` : ""}`;
}

const link = (hookpoint, latent) => make("a", { className: "latent", href: `#latent/${hookpoint}/${latent}` }, `#${latent}`);

function line(row, least) {
  const few = row.n < least;
  return make("tr", { "data-latent": row.latent },
    make("th", { scope: "row" }, link(where, row.latent)),
    make("td", { className: "number" }, row.density ? share(row.density) : "–"),
    make("td", { className: "number" }, row.density ? figure(row.most) : "–"),
    make("td", { className: `number ${few ? "muted" : ""}`, title: few ? `fires ${row.n} times only` : "" }, effect(row.effect)),
    make("td", { className: "peaks" }, ...row.peaks.map((text) => make("code", {}, alone(text)))));
}

const share = (p) => (p >= 0.001 ? `${(100 * p).toFixed(2)}%` : `${(100 * p).toPrecision(1)}%`);
const effect = (x) => (x === null ? "–" : `${x > 0 ? "+" : ""}${figure(x, 2)}`);

function mark() {
  for (const row of document.querySelectorAll("#list tbody tr")) {
    const here = `${where}/${row.dataset.latent}` === current;
    row.classList.toggle("here", here);
    if (here) row.querySelector("a").setAttribute("aria-current", "true");
    else row.querySelector("a").removeAttribute("aria-current");
  }
}

async function one(hookpoint, latent, again = false) {
  abort?.abort();
  abort = new AbortController();
  const { signal } = abort;
  current = `${hookpoint}/${latent}`;
  mark();
  const more = make("button", { type: "button", className: "quiet" }, "steer it");
  more.addEventListener("click", () => { location.hash = "#play"; setTimeout(() => steer(hookpoint, latent, 0, Number(more.dataset.most) || 0)); });
  $("one-title").replaceChildren("Latent ", make("code", {}, `#${latent}`), " ", more);
  if (!again) {
    $("one-body").replaceChildren(make("p", { className: "muted" }, "asking the model …"));
    $("one-latent").focus({ preventScroll: true });
    if (matchMedia("(max-width: 62rem)").matches) scrollTo(0, 0);
  }
  let found;
  try {
    found = await ask("/page/api/latent", { hookpoint, latent }, signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  }
  const parts = [];
  if (found.figures) {
    more.dataset.most = found.figures.most;
    parts.push(facts(found), histogram(found.histogram), passages(found));
  } else {
    const { state, why } = found.progress;
    parts.push(make("p", { className: "muted" }, state === "failed" ? why : "Where it fires is being counted …"));
    if (state !== "failed") setTimeout(() => { if (current === `${hookpoint}/${latent}` && location.hash.includes("latent/")) one(hookpoint, latent, true).catch(trouble); }, POLL);
  }
  $("one-body").replaceChildren(...parts.filter(Boolean), logits(found), near(found));
}

function facts({ figures: told, n_tokens: n, variant }) {
  const item = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  const changed = told.density !== told.density_spliced ? ` (spliced ${share(told.density_spliced)})` : "";
  return make("dl", { className: "facts" },
    item("density", told.density ? `${share(told.density)} of ${n.toLocaleString("en")} tokens, ${variant}${changed}` : `never fires on ${n.toLocaleString("en")} tokens`),
    item("largest activation", figure(told.most)),
    item("effect of adaptation", told.effect === null ? "–" : `${effect(told.effect)} nats KL over ${told.n.toLocaleString("en")} predictions`));
}

const SVG = "http://www.w3.org/2000/svg";
function histogram({ counts, edges }) {
  const most = Math.max(...counts);
  if (!most) return null;
  const drawn = document.createElementNS(SVG, "svg");
  const set = (node, given) => { for (const [name, value] of Object.entries(given)) node.setAttribute(name, value); return node; };
  set(drawn, { viewBox: `0 0 ${counts.length * 10} 60`, preserveAspectRatio: "none", "aria-hidden": "true" });
  counts.forEach((n, i) => {
    const height = n ? Math.max(1, (58 * n) / most) : 0;
    drawn.append(set(document.createElementNS(SVG, "rect"), { x: i * 10 + 0.5, y: 60 - height, width: 9, height }));
  });
  const total = counts.reduce((a, b) => a + b, 0);
  return make("section", {}, make("h3", {}, "Activations"),
    make("div", { className: "histogram", role: "img", "aria-label": `Histogram of ${total} activations from ${figure(edges[0])} to ${figure(edges.at(-1))}; the fullest of ${counts.length} bins has ${most}` }, drawn),
    make("p", { className: "axis muted" }, make("span", {}, figure(edges[0])), make("span", {}, `${total.toLocaleString("en")} activations, at most ${most.toLocaleString("en")} a bin`), make("span", {}, figure(edges.at(-1)))));
}

function passages({ passages: all }) {
  if (!all.length) return null;
  const most = Math.max(...all.flatMap((each) => each.values));
  const texts = all.map((each) => {
    const top = Math.max(...each.values);
    const peak = each.values.indexOf(top);
    const text = each.tokens.map((token, i) => {
      const level = each.values[i] > 0 ? Math.max(1, Math.ceil((6 * each.values[i]) / most)) : 0;
      return make("span", { className: `${level ? `q${level}` : ""} ${i === peak ? "peak" : ""}`.trim(), title: each.values[i] ? figure(each.values[i]) : "" }, visible(token).replace(/\n/g, "↵ "));
    });
    return make("li", {}, make("span", { className: "number muted" }, figure(top)), make("span", { className: "passage" }, ...text));
  });
  return make("section", {}, make("h3", {}, "Strongest passages"), make("ol", { className: "passages" }, ...texts));
}

function logits({ logits: sides, same }) {
  const shownSides = same ? [["original and adapted", sides.original]] : Object.entries(sides);
  const node = make("section", {}, make("h3", {}, "Logit weights"));
  if (!sides.original) {
    node.append(make("p", { className: "muted small" }, "None: this decoder does not write to the residual stream as it is."));
    return node;
  }
  node.append(make("p", { className: "muted small" }, "What an activation of 1 adds to each token’s logit directly: decoder row through the final norm’s gain and the " +
    `unembedding, layers between left out.${same ? " The run changed none of these three: original and adapted have the same." : ""}`));
  const column = (name, pairs) => make("div", {}, make("h4", {}, name), make("ol", { className: "likely wide" }, ...pairs.map(([text, value]) =>
    make("li", {}, make("code", {}, alone(text)), make("span", { className: "number" }, figure(value))))));
  node.append(make("div", { className: "nexts" }, ...shownSides.flatMap(([name, { up, down }]) =>
    [column(`${name}: up`, up), column(`${name}: down`, down)])));
  return node;
}

function near({ nearest, hookpoint }) {
  if (!nearest.length) return "";
  return make("section", {}, make("h3", {}, "Nearest by decoder"), make("p", { className: "muted small" }, "Cosine of decoder rows."),
    make("ul", { className: "near" }, ...nearest.map(([latent, cosine]) => make("li", {}, link(hookpoint, latent), " ", make("span", { className: "muted" }, cosine.toFixed(2).replace("-", "−"))))));
}
