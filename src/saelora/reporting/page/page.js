(() => {
  const root = document.documentElement;

  // ---- light and dark

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const showTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
  try {
    const kept = localStorage.getItem("saelora-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* pages from disk may have no storage */ }
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("saelora-theme", root.dataset.theme); } catch { /* as above */ }
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);
  showTheme();

  // ---- where in the page one is

  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("main > section")) seen.observe(section);

  // ---- export

  function save(blob, name) {
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function svgOf(name) {
    const clone = byId(`figure-${name}`).querySelector("svg").cloneNode(true);
    const [, , width, height] = clone.getAttribute("viewBox").split(" ").map(Number);
    clone.removeAttribute("aria-hidden");
    clone.setAttribute("width", width);
    clone.setAttribute("height", height);
    const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of [["width", width], ["height", height], ["style", "fill: var(--bg)"]]) ground.setAttribute(key, value);
    clone.prepend(ground);
    const colours = getComputedStyle(root);
    const text = new XMLSerializer().serializeToString(clone)
      .replace(/var\((--[a-z]+)\)/g, (_, variable) => colours.getPropertyValue(variable).trim());
    return { text, width, height };
  }

  function savePng(name) {
    const { text, width, height } = svgOf(name);
    const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    const image = new Image();
    image.onload = () => {
      const canvas = element("canvas", { width: Math.round(width * 3), height: Math.round(height * 3) });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      URL.revokeObjectURL(url);
      canvas.toBlob((blob) => save(blob, `${name}.png`), "image/png");
    };
    image.src = url;
  }

  function csvOf(table) {
    const heads = [...table.tHead.rows[0].cells];
    const wide = heads.map((head) => head.hasAttribute("data-interval"));
    const quote = (text) => {
      const safe = /^[=+@\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text; // spreadsheets would run it as a formula
      return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    const lines = [heads.flatMap((head, i) => {
      const name = head.textContent.trim();
      return wide[i] ? [name, `${name} low`, `${name} high`] : [name];
    })];
    for (const row of table.tBodies[0].rows) {
      lines.push([...row.cells].flatMap((cell, i) => {
        const value = cell.dataset.value ?? cell.textContent.trim().replace(/^–$/, "");
        return wide[i] ? [value, cell.dataset.low ?? "", cell.dataset.high ?? ""] : [value];
      }));
    }
    return lines.map((line) => line.map(quote).join(",")).join("\r\n") + "\r\n";
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-export]");
    if (!button) return;
    const name = button.dataset.of;
    if (button.dataset.export === "svg") save(new Blob([svgOf(name).text], { type: "image/svg+xml" }), `${name}.svg`);
    else if (button.dataset.export === "png") savePng(name);
    else save(new Blob([csvOf(document.querySelector(`table[data-name="${name}"]`))], { type: "text/csv" }), `${name}.csv`);
  });
})();
