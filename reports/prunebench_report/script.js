"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  all("[data-js]").forEach((element) => { element.hidden = false; });

  // Theme: follow the system until the reader chooses.
  const theme = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    root.dataset.theme = next;
    theme.querySelector("span").textContent = next;
  });

  // Sort: numbers by data-v, text as text, missing values last, dense always on top.
  const table = document.getElementById("cells");
  const said = document.getElementById("said");
  const value = (row, index) => {
    const cell = row.cells[index];
    if (cell.dataset.v === undefined) return cell.dataset.t === undefined ? null : cell.dataset.t;
    return Number(cell.dataset.v);
  };
  all("button.sort", table).forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const index = Number(button.dataset.column);
      const rising = head.getAttribute("aria-sort") !== "ascending";
      all("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [row, value(row, index)]);
      rows.sort(([a, x], [b, y]) => {
        const pinned = ("pinned" in b.dataset) - ("pinned" in a.dataset);
        if (pinned) return pinned;
        if (x === null || y === null) return (x === null) - (y === null);
        const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
        return rising ? order : -order;
      });
      body.append(...rows.map(([row]) => row));
      said.textContent = `Sorted by ${button.dataset.name}, ${rising ? "ascending" : "descending"}`;
    });
  });

  // A link to a closed card opens it.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const closed = target && target.closest("details:not([open])");
    if (closed) { closed.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();
  const cards = all("details.card");
  document.getElementById("open-all").addEventListener("click", () => {
    const open = cards.some((card) => !card.open);
    cards.forEach((card) => { card.open = open; });
  });
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));

  // Downloads of what is embedded.
  const save = (text, type, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const stem = data.suite.replace(/[^\w.-]+/g, "-") || "run";
  const quote = (field) => (/[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);
  document.getElementById("save-json").addEventListener("click", () => {
    save(JSON.stringify(data, null, 1), "application/json", `${stem}.json`);
  });
  document.getElementById("save-csv").addEventListener("click", () => {
    const lines = [data.columns, ...data.cells.map((cell) => data.columns.map((key) => cell[key] ?? ""))];
    save(lines.map((line) => line.map((field) => quote(String(field))).join(",")).join("\n") + "\n", "text/csv", `${stem}.csv`);
  });
})();
