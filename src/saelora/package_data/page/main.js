// Starts the page: the run's name, the views, the theme.

import { $, ask, trouble } from "./dom.js";
import { showLatents, startLatents } from "./latents.js";
import { startPlay } from "./play.js";

let started = false;

function view() {
  const name = location.hash.startsWith("#latent") ? "latents" : "play";
  for (const each of ["play", "latents"]) {
    $(each).hidden = each !== name;
    if (each === name) $(`to-${each}`).setAttribute("aria-current", "page");
    else $(`to-${each}`).removeAttribute("aria-current");
  }
  if (started && name === "latents") showLatents();
}

function theme() {
  const root = document.documentElement;
  const set = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    $("theme").setAttribute("aria-pressed", String(dark));
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  set(system.matches);
  system.addEventListener("change", () => set(system.matches));
  $("theme").addEventListener("click", () => set(root.dataset.theme !== "dark"));
}

async function start() {
  theme();
  view();
  addEventListener("hashchange", view);
  const state = await ask("/page/api/state");
  $("run").textContent = state.run.split("/").filter(Boolean).pop() || state.run;
  const saes = state.hookpoints.map(({ name, n_latents: n }) => `${name} (${n.toLocaleString("en")} latents)`).join(", ");
  $("about").textContent = `${state.model} through ${saes}`;
  document.title = `${$("run").textContent} · saelora`;
  startPlay(state);
  startLatents(state);
  started = true;
  view();
}

start().catch(trouble);
