(() => {
  // ---- the text, token by token

  const reader = byId("reader");
  if (!reader) return;
  const { runs } = JSON.parse(byId("data").textContent);
  const ARMS = ["original", "spliced", "adapted"];
  const GROUPS = { most_helped: "Most helped", most_hurt: "Most hurt", text: "Whole rows" };
  const minus = (a, b) => (a === null || b === null ? null : a - b);
  const LOSS = [0.1, 0.5, 1, 2, 4, 8];
  const CHANGE = [0.02, 0.1, 0.5, 1.5];
  const QUANTITIES = [
    { name: "Change: adapted − spliced", both: true, edges: CHANGE, of: (p, i) => minus(p.ce[2][i], p.ce[1][i]), low: "helped", high: "hurt" },
    { name: "Cost: spliced − original", both: true, edges: CHANGE, of: (p, i) => minus(p.ce[1][i], p.ce[0][i]), low: "cheaper", high: "dearer" },
    ...ARMS.map((arm, a) => ({ name: `Loss, ${arm} model`, edges: LOSS, of: (p, i) => p.ce[a][i] })),
    { name: "KL to original, spliced", edges: [0.01, 0.03, 0.1, 0.3, 1, 3], of: (p, i) => p.kl[0][i] },
    { name: "KL to original, adapted", edges: [0.01, 0.03, 0.1, 0.3, 1, 3], of: (p, i) => p.kl[1][i] },
    { name: "Reconstruction error", unit: "relative squared error", edges: [0.02, 0.05, 0.1, 0.2, 0.4, 0.8], of: (p, i) => p.error[i] },
  ];
  let run, passage, quantity = QUANTITIES[0], at = 0;
  const box = byId("token-list"), card = byId("card");

  const level = (edges, value) => edges.filter((edge) => value >= edge).length;
  function shade(value) {
    if (value === null || value === undefined) return "";
    if (!quantity.both) return `q${level(quantity.edges, value)}`;
    const n = level(quantity.edges, Math.abs(value));
    return n === 0 ? "d0" : `${value < 0 ? "h" : "u"}${n}`;
  }

  // Characters that show nothing or steer the direction of text appear as their code points.
  const SPECIAL = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Co}\p{Cn}]/u;
  const MARKS = { "\n": "↵", "\r": "␍", "\t": "⇥" };
  function write(into, id, breaks) {
    const known = run.vocab[id];
    const [text, length] = Array.isArray(known) ? known : [known ?? `[token ${id}]`, 0];
    let plain = "";
    const flush = () => { if (plain) into.append(plain); plain = ""; };
    for (const character of text) {
      if (!SPECIAL.test(character)) { plain += character; continue; }
      flush();
      const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      into.append(element("span", { className: "codepoint", text: MARKS[character] ?? `U+${code}` }));
      if (character === "\n" && breaks) into.append("\n");
    }
    flush();
    if (length) into.append(element("span", { className: "cut", text: `… (${length.toLocaleString("en")} characters)` }));
    if (text === "") into.append(element("span", { className: "codepoint", text: "empty" }));
    return into;
  }
  const spoken = (id) => write(element("span"), id, false).textContent.trim() || "space";
  const number = (value, sign) => (value === null || value === undefined ? "–"
    : (sign && value > 0 ? "+" : "") + value.toFixed(3).replace("-", "−"));

  function why(i) {
    if (passage.ce[0][i] === null) return "Nothing predicts it: it is the first of its passage, so it is not counted.";
    if (!passage.counted[i]) return "Not counted: it is predicted at a position that the SAE leaves alone.";
    return "";
  }

  function fillCard(i) {
    card.replaceChildren();
    card.classList.remove("empty");
    const close = element("button", { type: "button", id: "close", text: "Close" });
    close.addEventListener("click", () => { hide(); box.children[at]?.focus(); hide(); });
    const id = passage.ids[i];
    card.append(close, element("p", {}, write(element("span", { className: "token" }), id, false),
      ` token ${id}, position ${passage.start + i}`));
    if (why(i)) card.append(element("p", { className: "hint", text: why(i) }));
    if (passage.ce[0][i] === null) return;
    const body = element("tbody");
    const line = (name, ...values) => body.append(element("tr", {}, element("th", { scope: "row", text: name }),
      ...values.map((value) => element("td", { className: "number", text: value }))));
    ARMS.forEach((arm, a) => line(arm, number(passage.ce[a][i]), a ? number(passage.kl[a - 1][i]) : ""));
    card.append(element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "model" }),
      element("th", { scope: "col", className: "number", text: "loss (nats)" }),
      element("th", { scope: "col", className: "number", text: "KL" }))), body));
    const change = minus(passage.ce[2][i], passage.ce[1][i]);
    const verdict = change === null ? "" : change < 0 ? " (helped)" : change > 0 ? " (hurt)" : "";
    card.append(element("p", { text: `Change adapted − spliced: ${number(change, true)}${verdict}` }));
    if (passage.error[i] !== null) card.append(element("p", { text: `SAE's relative squared error: ${number(passage.error[i])}` }));
    ARMS.forEach((arm, a) => {
      const top = passage.top[i]?.[a];
      if (!top) return;
      const list = element("ol");
      for (let k = 0; k < top.length; k += 2) {
        const item = element("li", top[k] === id ? { className: "right" } : {});
        const fill = element("i");
        fill.style.width = `${top[k + 1] / 10}%`;
        item.append(write(element("span", { className: "token" }), top[k], false),
          element("span", { className: "share", text: `${(top[k + 1] / 10).toFixed(1)}%` }),
          element("span", { className: "bar", "aria-hidden": "true" }, fill));
        list.append(item);
      }
      card.append(element("p", { className: "arm", text: `Likeliest next tokens, ${arm}` }), list);
    });
  }

  // Where the card floats, it lies on the side of the screen that the token is not on.
  function place() {
    card.style.inset = card.style.maxHeight = "";
    const token = box.querySelector('[aria-selected="true"]');
    if (!token || getComputedStyle(card).position !== "fixed") return;
    const { top, bottom } = token.getBoundingClientRect();
    const above = top, below = innerHeight - bottom;
    if (Math.max(above, below) > innerHeight) return; // it is scrolled out of sight
    card.style.inset = below >= above ? "auto 0 0 0" : "0 0 auto 0";
    card.style.maxHeight = `${Math.max(above, below) - 8}px`;
  }
  addEventListener("scroll", place, { passive: true });
  addEventListener("resize", place);
  box.addEventListener("scroll", place, { passive: true });

  function show(i, aloud) {
    for (const each of box.querySelectorAll('[aria-selected="true"]')) each.setAttribute("aria-selected", "false");
    box.children[i].setAttribute("aria-selected", "true");
    fillCard(i);
    place();
    if (!aloud) return;
    const losses = ARMS.map((arm, a) => `${arm} ${number(passage.ce[a][i])}`).join(", ");
    const change = number(minus(passage.ce[2][i], passage.ce[1][i]), true);
    byId("live").textContent = `${spoken(passage.ids[i])}. ${why(i) || `Loss: ${losses}; change ${change}.`}`;
  }
  function hide() {
    for (const each of box.querySelectorAll('[aria-selected="true"]')) each.setAttribute("aria-selected", "false");
    card.classList.add("empty");
    card.replaceChildren(element("p", { className: "hint", text: "Point at a token: its losses and the likeliest next tokens of each model appear here." }));
  }
  function move(to) {
    at = Math.max(0, Math.min(box.children.length - 1, to));
    for (const each of box.querySelectorAll('[tabindex="0"]')) each.tabIndex = -1;
    box.children[at].tabIndex = 0;
  }

  function drawLegend() {
    const legend = byId("legend");
    const unit = quantity.unit ?? "nats";
    const swatch = (name, text) => legend.append(element("li", { className: name, text }));
    legend.replaceChildren(element("li", { className: "unit", text: `${unit}:` }));
    const edges = quantity.edges;
    if (quantity.both) {
      for (let n = edges.length; n > 0; n -= 1) swatch(`h${n}`, n === edges.length ? `${quantity.low} ≤ −${edges[n - 1]}` : `−${edges[n - 1]}`);
      swatch("d0", "0");
      for (let n = 1; n <= edges.length; n += 1) swatch(`u${n}`, n === edges.length ? `${quantity.high} ≥ ${edges[n - 1]}` : `+${edges[n - 1]}`);
    } else {
      swatch("q0", `< ${edges[0]}`);
      edges.forEach((edge, n) => swatch(`q${n + 1}`, `≥ ${edge}`));
    }
  }

  function paint() {
    drawLegend();
    [...box.children].forEach((span, i) => {
      const counted = passage.counted[i] && passage.ce[0][i] !== null;
      span.className = [counted ? shade(quantity.of(passage, i)) : "uncounted", i === passage.focus ? "focus" : ""].join(" ").trim();
    });
  }

  function drawPassage() {
    box.replaceChildren(...passage.ids.map((id, i) => write(element("span", {
      role: "option", tabindex: "-1", "aria-selected": "false", "data-i": i,
    }), id, true)));
    const counted = passage.ids.map((_, i) => i).filter((i) => passage.counted[i] && passage.ce[0][i] !== null);
    const mean = (values) => {
      const known = counted.map((i) => values[i]).filter((x) => x !== null && x !== undefined);
      return known.length ? known.reduce((sum, x) => sum + x, 0) / known.length : null;
    };
    byId("passage-about").textContent = `Row ${passage.row}, positions ${passage.start} to ${passage.start + passage.ids.length - 1}; `
      + `${counted.length} counted. Mean loss: ${ARMS.map((arm, a) => `${arm} ${number(mean(passage.ce[a]))}`).join(", ")}.`;
    move(passage.focus ?? 0);
    hide();
    paint();
    box.scrollTop = 0;
  }

  function choose(i) {
    const select = byId("passage");
    select.value = String(Math.max(0, Math.min(run.passages.length - 1, i)));
    passage = run.passages[Number(select.value)];
    byId("previous").disabled = Number(select.value) === 0;
    byId("next").disabled = Number(select.value) === run.passages.length - 1;
    drawPassage();
  }

  function chooseRun(i) {
    run = runs[i];
    const select = byId("passage");
    select.replaceChildren();
    for (const [group, name] of Object.entries(GROUPS)) {
      const options = element("optgroup", { label: name });
      run.passages.forEach((each, k) => {
        if (each.group !== group) return;
        const focus = each.focus !== null && each.focus !== undefined;
        const change = focus ? minus(each.ce[2][each.focus], each.ce[1][each.focus]) : null;
        const what = focus ? `${spoken(each.ids[each.focus]).slice(0, 20)} (${number(change, true)})` : `Row ${each.row}`;
        options.append(element("option", { value: k, text: `${name === "Whole rows" ? "" : `${name}: `}${what}` }));
      });
      if (options.children.length) select.append(options);
    }
    choose(0);
  }

  const tokenAt = (event) => event.target.closest?.('[role="option"]');
  box.addEventListener("mouseover", (event) => { const t = tokenAt(event); if (t) show(Number(t.dataset.i), false); });
  box.addEventListener("mouseleave", () => {
    const focused = document.activeElement;
    if (box.contains(focused) && focused !== box) show(Number(focused.dataset.i), false);
  });
  box.addEventListener("focusin", (event) => {
    const t = tokenAt(event);
    if (t) { move(Number(t.dataset.i)); show(at, true); }
  });
  box.addEventListener("click", (event) => { const t = tokenAt(event); if (t) { t.focus(); show(Number(t.dataset.i), true); } });
  box.addEventListener("keydown", (event) => {
    const n = box.children.length;
    const goal = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: lineBelow(1), ArrowUp: lineBelow(-1), Home: 0, End: n - 1 }[event.key];
    if (goal === undefined) return;
    event.preventDefault();
    move(goal);
    box.children[at].focus();
  });
  // The token nearest to the present one on the line below (or above).
  function lineBelow(direction) {
    const here = box.children[at].getBoundingClientRect();
    for (let i = at + direction; i >= 0 && i < box.children.length; i += direction) {
      const there = box.children[i].getBoundingClientRect();
      const below = direction > 0 ? there.top >= here.bottom - 2 : there.bottom <= here.top + 2;
      if (!below) continue;
      let best = i, distance = Math.abs(there.left - here.left);
      for (let k = i + direction; box.children[k]; k += direction) {
        const next = box.children[k].getBoundingClientRect();
        if (Math.abs(next.top - there.top) > 2) break;
        if (Math.abs(next.left - here.left) < distance) { best = k; distance = Math.abs(next.left - here.left); }
      }
      return best;
    }
    return at;
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("click", (event) => { if (!reader.contains(event.target)) hide(); });

  runs.forEach((each, i) => byId("run").append(element("option", { value: i, text: each.label })));
  byId("run-label").hidden = runs.length < 2;
  byId("run").addEventListener("change", (event) => chooseRun(Number(event.target.value)));
  byId("passage").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("previous").addEventListener("click", () => choose(Number(byId("passage").value) - 1));
  byId("next").addEventListener("click", () => choose(Number(byId("passage").value) + 1));
  QUANTITIES.forEach((each, i) => byId("quantity").append(element("option", { value: i, text: each.name })));
  byId("quantity").addEventListener("change", (event) => { quantity = QUANTITIES[Number(event.target.value)]; paint(); });
  reader.hidden = false;
  chooseRun(0);
})();
