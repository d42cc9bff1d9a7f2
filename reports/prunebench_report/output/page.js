// What every page does: this file, the page's own script and the last line become one function.
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  all("[data-js]").forEach((element) => { element.hidden = false; });

  // The reader's choices, kept in the fragment of the URL so that they can be shared: #sort=perplexity.up&method=wanda&hide=prune_s&theme=dark&at=row-...
  const state = new Map();
  const read = () => {
    const text = location.hash.slice(1);
    if (!text.includes("=")) { if (text) state.set("at", decodeURIComponent(text)); return; }
    state.clear();
    new URLSearchParams(text).forEach((value, key) => state.set(key, value));
  };
  const write = () => {
    const rest = new URLSearchParams([...state].filter(([, value]) => value));
    const only = rest.size === 1 && rest.get("at");
    const fragment = only || rest.toString();
    if (fragment === location.hash.slice(1)) return;
    try { history.replaceState(null, "", `#${fragment}`); } catch { location.hash = fragment; }
  };
  const set = (key, value) => { state.delete(key); if (value) state.set(key, value); write(); };

  // Theme: the system's until the reader chooses one.
  const theme = byId("theme");
  const themes = ["auto", "light", "dark"];
  const paint = () => {
    const name = themes.includes(state.get("theme")) ? state.get("theme") : "auto";
    root.dataset.theme = name;
    theme.querySelector("span").textContent = name;
    return name;
  };
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme) + 1) % 3];
    set("theme", next === "auto" ? "" : next);
    paint();
  });
  let restore = paint;
  let reveal = () => {};
  addEventListener("hashchange", () => { const whole = location.hash.includes("="); read(); if (whole) restore(); reveal(); write(); });

  // What is wider than its place scrolls, with a mark on each side that has more. A table ends at the edge of a column.
  const sides = (box) => {
    const left = box.scrollLeft > 1;
    const right = box.scrollWidth - box.clientWidth - box.scrollLeft > 1;
    box.dataset.more = `${left ? "left" : ""} ${right ? "right" : ""}`.trim();
    const hint = box.nextElementSibling;
    if (!hint || !hint.matches(".more")) return;
    const edge = box.getBoundingClientRect().left + box.clientLeft + box.clientWidth;
    const hidden = columnsOf(box).filter((head) => head.getBoundingClientRect().right > edge + 1).length;
    hint.hidden = !hidden;
    hint.textContent = `${hidden} more column${hidden === 1 ? "" : "s"} to the right`;
  };
  const columnsOf = (box) => all("thead tr:last-child > *", box).slice(1).filter((head) => head.offsetParent);
  const fit = (box) => {
    box.style.maxWidth = "";
    if (!box.offsetParent) return;
    const room = box.clientWidth;
    if (box.scrollWidth > room + 1) {
      const start = box.getBoundingClientRect().left + box.clientLeft - box.scrollLeft;
      const ends = columnsOf(box).map((head) => Math.ceil(head.getBoundingClientRect().right - start));
      const end = Math.max(0, ...ends.filter((one) => one <= room));
      // One very wide column would leave half of the page empty.
      if (end > room / 2) box.style.maxWidth = `${end + box.offsetWidth - room}px`;
    }
    box.style.setProperty("--room", `calc(${box.clientWidth}px - 1.8rem)`);
    sides(box);
  };
  const tables = all(".scroll");
  tables.forEach((box) => {
    if (box.querySelector("thead")) {
      const hint = document.createElement("p");
      hint.className = "more";
      hint.hidden = true;
      hint.setAttribute("aria-hidden", "true");
      box.after(hint);
    }
  });
  const strips = all(".bar nav");
  [...tables, ...strips].forEach((box) => box.addEventListener("scroll", () => sides(box), { passive: true }));
  let width = 0;
  new ResizeObserver(() => {
    if (width === innerWidth) return;
    width = innerWidth;
    tables.forEach(fit);
    strips.forEach(sides);
  }).observe(root);
  document.addEventListener("toggle", (event) => all(".scroll", event.target).forEach(fit), true);
