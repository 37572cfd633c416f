(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const root = document.documentElement;

  // ---- printing shows what is folded

  let opened = [];
  function unfold() {
    for (const each of document.querySelectorAll("details:not([open])")) {
      each.open = true;
      opened.push(each);
    }
  }
  function fold() {
    for (const each of opened) each.open = false;
    opened = [];
  }
  addEventListener("beforeprint", unfold);
  addEventListener("afterprint", fold);
  const printed = matchMedia("print");
  printed.addEventListener("change", (event) => (event.matches ? unfold() : fold()));

  // ---- all at once, and what a link leads to

  const button = document.getElementById("unfold");
  const told = () => {
    const closed = all("main details:not([open])").length;
    button.textContent = closed ? "Open all" : "Fold all";
  };
  button.addEventListener("click", () => {
    const open = all("main details:not([open])").length > 0;
    for (const each of all("main details")) each.open = open;
    told();
  });

  function reveal(hash) {
    const target = document.getElementById(decodeURIComponent(hash.slice(1)));
    if (!target) return;
    const own = target.querySelector(":scope > details");
    if (own) own.open = true;
    for (let each = target.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("nav a[href^='#']");
    if (link) reveal(link.hash);
  });
  addEventListener("hashchange", () => reveal(location.hash));
  reveal(location.hash);

  // ---- a table that is wider than its box becomes a list of its rows

  function fit(box) {
    const table = box.querySelector("table");
    if (!table || !box.clientWidth) return;
    table.classList.remove("stacked");
    if (box.scrollWidth > box.clientWidth) table.classList.add("stacked");
  }
  const fitAll = () => all(".scroll").forEach(fit);
  document.addEventListener("toggle", (event) => {
    for (const box of event.target.querySelectorAll(".scroll")) fit(box);
    told();
  }, true);
  let width = root.clientWidth;
  new ResizeObserver(() => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    fitAll();
  }).observe(root);
  fitAll();
  told();

  // ---- copying code

  function copyOld(text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.setAttribute("aria-hidden", "true");
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  document.addEventListener("click", async (event) => {
    const pressed = event.target.closest("button[data-copy]");
    if (!pressed) return;
    const text = pressed.parentElement.querySelector("code").textContent;
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      done = copyOld(text);
      pressed.focus();
    }
    document.getElementById("said").textContent = done ? "Copied" : "Select the text to copy it";
    pressed.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => { pressed.textContent = "Copy"; }, 2000);
  });
})();
