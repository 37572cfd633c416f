// A prompt, continued by the variants side by side, steered and not.

import { $, fine, lines, say, trouble } from "./dom.js";
import { legend } from "./colours.js";
import { Column, place } from "./columns.js";
import { clearGlass, look } from "./glass.js";
import { startSteering, steering } from "./steer.js";

let columns = [];
let abort = null;
let plain = { of: null, texts: {} }; // what was said without steering, and to which question
let chosen = null;

export function startPlay(state) {
  const shown = ["original", "spliced", "adapted"].filter((name) => state.variants.includes(name));
  columns = shown.map((name) => new Column(name, choose));
  for (const column of columns) {
    column.figures.textContent = "";
    column.list.setAttribute("aria-busy", "false");
  }
  place(columns);
  $("chat-label").hidden = !state.chat;
  $("longest").max = state.most_tokens - 1;
  legend();
  $("quantity").addEventListener("change", () => {
    legend();
    columns.forEach((column) => column.repaint());
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) $("ask").requestSubmit();
  });
  $("stop").addEventListener("click", () => abort?.abort());
  startSteering(state.hookpoints, () => { if (columns[0].tokens.length) run(); });
}

function choose(column, index) {
  columns.forEach((each) => each.mark(each === column ? index : null));
  chosen = { variant: column.variant, index };
  look(column, index);
}

function question() {
  return {
    prompt: $("prompt").value, chat: $("chat").checked, variants: columns.map((column) => column.variant),
    max_new_tokens: $("longest").valueAsNumber, temperature: $("temperature").valueAsNumber || 0, seed: $("seed").valueAsNumber || 0,
  };
}

async function run() {
  abort?.abort();
  const mine = new AbortController();
  abort = mine;
  clearGlass();
  fine();
  const asked = question();
  const steer = steering();
  const steered = Object.keys(steer).length > 0;
  if (plain.of !== JSON.stringify(asked)) plain = { of: JSON.stringify(asked), texts: {} };
  columns.forEach((column) => { column.clear(); column.steer = steer; });
  working(true);
  say("asking the model");
  try {
    for await (const line of lines("/page/api/continue", { ...asked, steer }, mine.signal)) told(line, steered);
    say("done");
    again();
    if (steered && Object.keys(plain.texts).length < columns.length) await runPlain(asked, mine.signal);
  } catch (error) {
    trouble(error);
  } finally {
    if (abort === mine) {
      for (const column of columns) if (column.list.getAttribute("aria-busy") === "true") stopped(column);
      working(false);
    }
  }
}

function told(line, steered) {
  if (line.prompt) {
    columns.forEach((column) => column.add(line.prompt.ids, line.prompt.tokens, [], true));
    return;
  }
  const column = columns.find((each) => each.variant === line.variant);
  if (line.ids) column.add(line.ids, line.tokens, line.loss);
  if (!line.scores) return;
  column.scored(line.scores);
  if (steered) column.compare(plain.texts[column.variant]);
  else plain.texts[column.variant] = { ids: column.ids, text: column.text };
}

/** What the same question gives without steering, where it was not asked yet. */
async function runPlain(asked, signal) {
  const made = {};
  let prompt = null;
  for await (const line of lines("/page/api/continue", { ...asked, steer: {} }, signal)) {
    if (line.prompt) prompt = line.prompt;
    else {
      made[line.variant] ??= { ids: [...prompt.ids], text: "" };
      if (line.ids) {
        made[line.variant].ids.push(...line.ids);
        made[line.variant].text += line.tokens.join("");
      }
    }
    if (line.scores) {
      plain.texts[line.variant] = made[line.variant];
      columns.find((each) => each.variant === line.variant).compare(made[line.variant]);
    }
  }
}

/** The token that was under the glass is looked at again where it is still there. */
function again() {
  const column = columns.find((each) => each.variant === chosen?.variant);
  if (column && chosen.index < column.tokens.length) choose(column, chosen.index);
}

function stopped(column) {
  column.list.setAttribute("aria-busy", "false");
  column.figures.textContent = column.tokens.length ? "stopped" : "";
}

function working(on) {
  $("stop").disabled = !on;
  $("go").textContent = on ? "Again" : "Continue";
}
