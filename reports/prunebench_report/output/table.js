  const announcement = byId("announcement");  // read aloud by screen readers

  // The table. Sort: numbers by data-v, names as text, missing values last, dense always on top.
  const table = byId("cells");
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = all("button.sort", table);
  const keys = heads.map((button) => button.dataset.key);
  const names = new Map(given.map((row) => [row, row.firstElementChild.firstChild.textContent]));
  const name = (row) => names.get(row);
  const value = (row, index) => {
    if (index === 0) return name(row);
    const number = row.children[index].getAttribute("data-v");
    return number === null ? null : Number(number);
  };
  const words = new Intl.Collator("en", { numeric: true });
  const sortRows = () => {
    const [key, way] = (state.get("sort") || "").split(".");
    const index = keys.indexOf(key);
    heads.forEach((button, at) => button.closest("th").setAttribute(
      "aria-sort", at === index ? (way === "down" ? "descending" : "ascending") : "none"));
    const rows = given.map((row) => [row, index < 0 ? null : value(row, index), "pinned" in row.dataset]);
    if (index >= 0) {
      const sign = way === "down" ? -1 : 1;
      rows.sort(([, x, up], [, y, above]) => {
        if (up !== above) return up ? -1 : 1;
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (index ? x - y : words.compare(x, y));
      });
    }
    body.append(...rows.map(([row]) => row));
    return index < 0 ? "" : `Sorted by ${heads[index].textContent}, ${way === "down" ? "descending" : "ascending"}`;
  };
  heads.forEach((button) => button.addEventListener("click", () => {
    const rising = button.closest("th").getAttribute("aria-sort") !== "ascending";
    set("sort", `${button.dataset.key}.${rising ? "up" : "down"}`);
    announcement.textContent = sortRows();
  }));

  // A link to each row, made here because a thousand of them are a tenth of the page.
  given.forEach((row) => {
    const link = document.createElement("a");
    link.className = "self";
    link.href = `#${row.id}`;
    link.setAttribute("aria-label", `Link to the row ${name(row)}`);
    link.textContent = "#";
    row.firstElementChild.firstElementChild.after(link);
  });

  // Filters: a row is shown if it fits every choice.
  const selects = all("select[data-filter]");
  const find = byId("find");
  const count = byId("count");
  const filterRows = () => {
    const wanted = selects.map((one) => [Number(one.dataset.position), one.selectedIndex - 1]).filter(([, pick]) => pick >= 0);
    const text = find.value.trim().toLowerCase();
    let shown = 0;
    given.forEach((row) => {
      const facets = (row.dataset.f || "").split(" ");
      const fits = wanted.every(([position, pick]) => Number(facets[position]) === pick) && name(row).toLowerCase().includes(text);
      row.hidden = !fits;
      shown += fits;
    });
    const part = wanted.length > 0 || text !== "";
    count.hidden = !part;
    count.textContent = part ? `${shown} of ${given.length} rows` : "";
    return count.textContent || `all ${given.length} rows`;
  };
  selects.forEach((one) => one.addEventListener("change", () => {
    set(one.dataset.filter, one.selectedIndex > 0 ? one.value : "");
    announcement.textContent = filterRows();
  }));
  find.addEventListener("input", () => { set("find", find.value.trim()); announcement.textContent = filterRows(); });

  // Columns: one style sheet hides them, so that a thousand rows need no change.
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [sheet];
  const boxes = all("input[data-column]");
  const spans = all("thead tr:first-child th", table).map((head) => [head, head.colSpan]);
  const columns = () => {
    const hidden = boxes.map((box) => !box.checked);
    sheet.replaceSync(hidden.map((off, at) => (off ? `#cells tbody tr > :nth-child(${at + 2}), #cells thead tr:last-child > :nth-child(${at + 2}), #cells col:nth-child(${at + 2}) { display: none }` : "")).join(""));
    let first = 0;
    spans.forEach(([head, span]) => {
      const left = hidden.slice(first, first + span).filter((off) => !off).length;
      head.hidden = !left;
      head.colSpan = left || 1;
      head.style.setProperty("--n", left);
      first += span;
    });
    fit(table.parentElement);
  };
  boxes.forEach((box) => box.addEventListener("change", () => {
    set("hide", boxes.filter((one) => !one.checked).map((one) => one.dataset.column).join(","));
    columns();
  }));

  restore = () => {
    paint();
    selects.forEach((one) => { one.value = state.get(one.dataset.filter) || ""; if (one.selectedIndex < 0) one.selectedIndex = 0; });
    find.value = state.get("find") || "";
    const off = (state.get("hide") || "").split(",");
    boxes.forEach((box) => { box.checked = !off.includes(box.dataset.column); });
    if (off[0]) columns(); else if (sheet.cssRules.length) columns();
    if (state.get("sort") || body.rows[0] !== given[0]) sortRows();
    filterRows();
  };
  byId("reset").addEventListener("click", () => {
    const kept = state.get("theme");
    state.clear();
    set("theme", kept);
    restore();
    sortRows();
    announcement.textContent = "The table is reset";
  });

  // A link to a row or a card opens what hides its target, marks it, and keeps the other choices.
  reveal = () => {
    all(".at").forEach((one) => one.classList.remove("at"));
    const target = state.get("at") && byId(state.get("at"));
    if (!target) return;
    let moved = location.hash.includes("=");
    for (let closed = target.closest("details:not([open])"); closed; closed = closed.parentElement.closest("details:not([open])")) {
      closed.open = true;
      moved = true;
    }
    if (target.matches("tr")) { target.hidden = false; target.classList.add("at"); }
    if (moved) target.scrollIntoView();
  };

  const cards = all("details.card");
  byId("open-all").addEventListener("click", () => {
    const open = cards.some((card) => !card.open);
    cards.forEach((card) => { card.open = open; });
  });
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open]):not(.menu)");
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));

  // Downloads: the embedded data, with one whole object for each cell.
  const save = (text, type, file) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const embedded = async () => {
    const packed = Uint8Array.from(atob(byId("data").textContent), (sign) => sign.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  };
  const stem = (data) => data.suite.replace(/[^\w.-]+/g, "-") || "run";
  const quote = (field) => (/[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);
  const whole = (data) => data.cells.map((line) => {
    const cell = { ...data.same };
    data.varying.forEach((key, at) => { cell[key] = line[at]; });
    return Object.fromEntries(data.columns.map((key) => [key, cell[key] ?? null]));
  });
  byId("save-json").addEventListener("click", async () => {
    const data = await embedded();
    const { suite, title, gate, suite_sha256 } = data;
    save(JSON.stringify({ suite, title, gate, suite_sha256, cells: whole(data) }, null, 1), "application/json", `${stem(data)}.json`);
  });
  byId("save-csv").addEventListener("click", async () => {
    const data = await embedded();
    const lines = [data.columns, ...whole(data).map((cell) => Object.values(cell).map((field) => field ?? ""))];
    save(lines.map((line) => line.map((field) => quote(String(field))).join(",")).join("\n") + "\n", "text/csv", `${stem(data)}.csv`);
  });
