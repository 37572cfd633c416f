// The variants' texts side by side: tokens that are coloured, walked through by arrow keys, and chosen.

import { $, alone, figure, make, visible } from "./dom.js";
import { shade } from "./colours.js";

const NAMES = { original: "Original", spliced: "Spliced", adapted: "Adapted", adapted_clean: "Adapted, SAE out" };
const ABOUT = {
  original: "the model as it was",
  spliced: "its activations replaced by the SAE’s reconstruction",
  adapted: "the SAE in, and what the run trained",
  adapted_clean: "the adapter alone",
};

export class Column {
  /** @param choose called with (column, index) when a token is chosen */
  constructor(variant, choose) {
    this.variant = variant;
    this.choose = choose;
    this.tokens = [];
    this.list = make("div", {
      className: "tokens", role: "listbox", "aria-label": `Tokens, ${NAMES[variant]}`, "aria-orientation": "horizontal",
    });
    this.figures = make("p", { className: "figures muted" });
    this.before = make("p", { className: "before", hidden: true });
    this.node = make("article", { className: "column", "data-variant": variant },
      make("h3", {}, NAMES[variant]), make("p", { className: "muted small" }, ABOUT[variant]), this.list, this.figures, this.before);
    this.list.addEventListener("click", (event) => this.picked(event.target.closest("[role=option]")));
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.clear();
  }

  clear() {
    this.tokens = [];
    this.nPrompt = 0;
    this.list.replaceChildren();
    this.list.setAttribute("aria-busy", "true");
    this.figures.textContent = "waiting";
    this.before.hidden = true;
  }

  get ids() { return this.tokens.map((token) => token.id); }
  get text() { return this.tokens.slice(this.nPrompt).map((token) => token.text).join(""); }

  add(ids, texts, losses = [], prompt = false) {
    ids.forEach((id, i) => {
      const token = { id, text: texts[i], loss: losses[i] };
      if (this.variant === "original" && losses[i] !== undefined) token.original = losses[i];
      const shown = visible(texts[i]).replace(/\n/g, "↵\n");
      token.node = make("span", {
        role: "option", tabIndex: this.tokens.length ? -1 : 0, "aria-selected": "false", className: prompt ? "prompt" : "",
        "data-i": this.tokens.length,
      }, shown || "∅");
      this.tokens.push(token);
      this.list.append(token.node);
      this.paint(token);
    });
    if (prompt) this.nPrompt = this.tokens.length;
    else if (ids.length) this.figures.textContent = `${this.tokens.length - this.nPrompt} tokens …`;
  }

  scored({ loss, original, kl }) {
    this.list.setAttribute("aria-busy", "false");
    loss.forEach((value, i) => Object.assign(this.tokens[i + 1], { loss: value, original: original[i], kl: kl[i] }));
    this.repaint();
    const mean = (values) => values.slice(this.nPrompt - 1).reduce((a, b) => a + b, 0) / Math.max(1, values.length - this.nPrompt + 1);
    const n = this.tokens.length - this.nPrompt;
    if (n > 0) {
      this.figures.textContent = `${n} tokens · mean KL to the original ${figure(mean(kl))} · loss ${figure(mean(loss))} nats a token`;
    }
  }

  /** What it said without steering, and where the two part. */
  compare(without) {
    if (!without) {
      this.before.hidden = true;
      return;
    }
    let i = this.nPrompt;
    while (i < this.tokens.length && i < without.ids.length && this.tokens[i].id === without.ids[i]) i += 1;
    for (const token of this.tokens) token.node.classList.remove("parts");
    if (i < this.tokens.length) this.tokens[i].node.classList.add("parts");
    const same = i === this.tokens.length && i === without.ids.length;
    this.before.replaceChildren(make("b", {}, "Not steered: "), same ? "the same" : visible(without.text).trim());
    this.before.hidden = false;
  }

  paint(token) {
    const kept = ["prompt", "chosen", "parts"].filter((name) => token.node.classList.contains(name));
    token.node.className = [...kept, shade(token)].join(" ").trim();
    const told = token.kl === undefined ? "" : `, KL ${figure(token.kl)}, loss ${figure(token.loss)} nats`;
    token.node.setAttribute("aria-label", `${alone(token.text)}${told}`);
  }

  repaint() { this.tokens.forEach((token) => this.paint(token)); }

  picked(node) {
    if (node) this.choose(this, Number(node.dataset.i));
  }

  mark(index) {
    for (const [i, token] of this.tokens.entries()) {
      token.node.setAttribute("aria-selected", String(i === index));
      token.node.classList.toggle("chosen", i === index);
      if (index !== null) token.node.tabIndex = i === index ? 0 : -1;
    }
  }

  key(event) {
    const here = Number(document.activeElement.dataset.i);
    if (event.key === "Enter" || event.key === " ") {
      this.picked(document.activeElement);
    } else {
      const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: this.tokens.length - 1,
        ArrowDown: this.below(here, 1), ArrowUp: this.below(here, -1) }[event.key];
      if (to === undefined) return;
      const next = this.tokens[Math.max(0, Math.min(this.tokens.length - 1, to))];
      if (!next) return;
      this.tokens[here].node.tabIndex = -1;
      next.node.tabIndex = 0;
      next.node.focus();
    }
    event.preventDefault();
  }

  /** The token in the next line (direction 1) or the last one (-1), as near below as there is. */
  below(here, direction) {
    const box = this.tokens[here].node.getBoundingClientRect();
    let best = here;
    let nearest = Infinity;
    let line = null;
    for (let i = here + direction; i >= 0 && i < this.tokens.length; i += direction) {
      const other = this.tokens[i].node.getBoundingClientRect();
      if ((other.top - box.top) * direction < box.height / 2) continue;
      line ??= other.top;
      if (Math.abs(other.top - line) > box.height / 2) break;
      const distance = Math.abs(other.left - box.left);
      if (distance < nearest) [nearest, best] = [distance, i];
    }
    return best;
  }
}

export function place(columns) {
  $("columns").replaceChildren(...columns.map((column) => column.node));
}
