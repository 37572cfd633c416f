// One token: its latents and what each does to the prediction there, and what each variant says comes next.

import { $, alone, ask, bar, figure, make, percent, points, say, trouble } from "./dom.js";
import { steer } from "./steer.js";

const ABLATED = 8;
const AT_FIRST = 16;
let abort = null;

export function clearGlass() {
  abort?.abort();
}

/** Show a column's token. On a narrow screen the glass moves to below that column, so that it covers nothing. */
export async function look(column, index) {
  abort?.abort();
  abort = new AbortController();
  const { signal } = abort;
  if (matchMedia("(max-width: 62rem)").matches) column.node.after($("glass"));
  else document.querySelector(".stage").append($("glass"));
  const token = column.tokens[index];
  const given = { ids: column.ids.slice(0, index + 1), variant: column.variant, steer: column.steer, n: 6 };
  $("glass-title").replaceChildren("Token ", make("code", { className: "token" }, alone(token.text)));
  const body = $("glass-body");
  body.replaceChildren(facts(column, index), make("p", { className: "muted" }, "asking the model …"));
  body.setAttribute("aria-busy", "true");
  try {
    const view = await ask("/page/api/token", given, signal);
    const parts = view.hookpoints.map((each) => new Table(each, given));
    body.replaceChildren(facts(column, index), following(view.next), ...parts.map((part) => part.node));
    body.setAttribute("aria-busy", "false");
    say(`Token ${alone(token.text)}: ${view.hookpoints[0].active.length} active latents; likeliest next in ${column.variant}: ` +
      alone(view.next.find((each) => each.variant === column.variant).likely[0].token));
    for (const part of parts) await part.ablate(signal);
  } catch (error) {
    body.setAttribute("aria-busy", "false");
    if (error.name !== "AbortError") body.replaceChildren(facts(column, index), make("p", { className: "muted" }, error.message));
    trouble(error);
  }
}

function facts(column, index) {
  const token = column.tokens[index];
  const told = index === 0 ? "the first: nothing predicts it"
    : token.kl === undefined ? "not scored yet"
      : `predicted with loss ${figure(token.loss)} (original ${figure(token.original)}), KL ${figure(token.kl)} nats`;
  return make("p", { className: "muted small" }, `${column.variant}, position ${index}, id ${token.id}; ${told}`);
}

function following(next) {
  const columns = next.map(({ variant, likely }) => make("div", {},
    make("h4", {}, variant.replace("_", " ")),
    make("ol", { className: "likely" }, ...likely.slice(0, 5).map((each) => make("li", {},
      make("code", {}, alone(each.token)), bar(each.probability), make("span", { className: "number" }, percent(each.probability)))))));
  return make("section", { className: "next" }, make("h3", {}, "Likeliest next tokens"), make("div", { className: "nexts" }, ...columns));
}

class Table {
  constructor({ hookpoint, replaced, active }, given) {
    Object.assign(this, { hookpoint, active, given, cells: new Map() });
    this.body = make("tbody");
    this.caption = make("p", { className: "muted small" });
    const heads = ["Latent", "Activation", "Δp, points", "KL, nats"].map((text, i) =>
      make("th", { scope: "col", className: i > 1 ? "number" : "" }, text));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads, make("td"))), this.body);
    this.node = make("section", {}, make("h3", {}, `Active latents at ${hookpoint}`));
    if (!active.length) {
      this.node.append(make("p", { className: "muted" }, replaced ? "None is active here."
        : "The token policy leaves this position alone: the SAE does not replace it."));
      return;
    }
    this.fill(AT_FIRST);
    this.node.append(this.caption, table);
    if (active.length > AT_FIRST) {
      const more = make("button", { type: "button" }, `all ${active.length}`);
      more.addEventListener("click", () => { this.fill(active.length); more.remove(); });
      this.node.append(more);
    }
  }

  fill(n) {
    const most = Math.abs(this.active[0][1]) || 1;
    for (const [latent, activation] of this.active.slice(this.cells.size, n)) {
      const change = make("td", { className: "number" }, "");
      const kl = make("td", { className: "number" }, "");
      this.cells.set(latent, { change, kl });
      const more = make("button", { type: "button", className: "quiet", "aria-label": `Steer latent ${latent}` }, "steer");
      more.addEventListener("click", () => steer(this.hookpoint, latent, Math.abs(activation)));
      this.body.append(make("tr", {},
        make("th", { scope: "row" }, make("a", { className: "latent", href: `#latent/${this.hookpoint}/${latent}` }, `#${latent}`)),
        make("td", {}, make("span", { className: "with-bar" }, bar(Math.abs(activation) / most), figure(activation))),
        change, kl, make("td", { className: "number" }, more)));
    }
  }

  async ablate(signal) {
    if (!this.active.length) return;
    this.caption.textContent = "taking out the strongest, one at a time …";
    const told = await ask("/page/api/ablate", { ...this.given, n: ABLATED, hookpoint: this.hookpoint }, signal);
    this.caption.replaceChildren("Each latent set to 0 at this token alone: by how much the probability of ",
      make("code", {}, alone(told.before.token)), ` (${percent(told.before.probability)}, the likeliest) changes, and KL(before ‖ after). `,
      `Done for the ${told.effects.length} strongest.`);
    for (const { latent, change, kl, now } of told.effects) {
      const cells = this.cells.get(latent);
      cells.change.textContent = points(change);
      cells.change.classList.add(change < 0 ? "down" : "up");
      cells.kl.textContent = figure(kl, 2);
      if (now.id !== told.before.id) {
        cells.kl.append(make("span", { className: "now" }, "→ ", make("code", {}, alone(now.token))));
      }
    }
  }
}
