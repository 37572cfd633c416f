// Making elements, asking the server, showing numbers and tokens. Text is only ever set as text.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (aria-..., data-..., role) and children: nodes or text. */
export function make(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (/^(aria-|data-)|^(role|for|scope|colspan|list)$/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A bar of a share between 0 and 1; its meaning stands beside it in figures. */
export function bar(share, kind = "") {
  const fill = make("i");
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return make("span", { className: `bar ${kind}`, "aria-hidden": "true" }, fill);
}

const ODD = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** A token's text with what cannot be seen, or would turn other text round, named. */
export function visible(text) {
  return text.replace(ODD, (c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
}

/** The same for a token that stands by itself: spaces and line ends can be seen too. */
export function alone(text) {
  if (text.length > 60) text = `${text.slice(0, 60)}…`;
  return visible(text).replace(/\n/g, "↵").replace(/ /g, "·");
}

export const percent = (p) => (p > 0 && p < 0.0005 ? "<0.1%" : `${(100 * p).toFixed(1)}%`);
export function points(p) {
  const text = (100 * Math.abs(p)).toFixed(1);
  return text === "0.0" ? text : `${p < 0 ? "−" : "+"}${text}`;
}
export function figure(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  if (Math.abs(x) < 0.001) return x.toExponential(1).replace("-", "−");
  return (Math.abs(x) >= 10 ** digits ? x.toFixed(0) : x.toPrecision(digits)).replace("-", "−");
}

export class Trouble extends Error {}

let key = sessionStorage.getItem("saelora-token") || "";

async function answered(path, given, signal) {
  const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  if (given !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = given === undefined ? "GET" : "POST";
    response = await fetch(path, { method, headers, signal, body: given === undefined ? undefined : JSON.stringify(given) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("the server does not answer: is it still running?");
  }
  if (response.status === 401) {
    await admitted();
    return answered(path, given, signal);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Trouble(told?.error?.message || `the server answers ${response.status}`);
  }
  return response;
}

let waiting = null;
function admitted() {
  waiting ||= new Promise((resolve) => {
    $("door").hidden = false;
    $("token").focus();
    $("door").addEventListener("submit", (event) => {
      event.preventDefault();
      key = $("token").value;
      sessionStorage.setItem("saelora-token", key);
      $("door").hidden = true;
      waiting = null;
      resolve();
    }, { once: true });
  });
  return waiting;
}

export const ask = async (path, given, signal) => (await answered(path, given, signal)).json();

/** Every line of an answer, parsed, as it comes. */
export async function* lines(path, given, signal) {
  const reader = (await answered(path, given, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = JSON.parse(part);
      if (line.error) throw new Trouble(line.error.message);
      yield line;
    }
  }
}

export function trouble(error) {
  if (error?.name === "AbortError") return;
  $("trouble").textContent = error instanceof Trouble ? error.message : `the page failed: ${error.message}`;
  $("trouble").hidden = false;
  if (!(error instanceof Trouble)) console.error(error);
}

export function fine() {
  $("trouble").hidden = true;
}

export const say = (text) => { $("live").textContent = text; };
