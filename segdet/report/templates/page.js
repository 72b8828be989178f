"use strict";
// The behaviour of the page: selection and filter of runs, sortable tables, interactive charts.
// All sections share two events on `document`: "segdet:select" with detail.run, the name of the selected run or null,
// and "segdet:filter" with detail.shown, the names of the runs that match the filter or null.

const segdet = (() => {
  let selected = null;
  let shown = null;

  // Selection

  function select(run) {
    const detail = { run: run === selected ? null : run };
    document.dispatchEvent(new CustomEvent("segdet:select", { detail }));
  }
  document.addEventListener("segdet:select", (event) => {
    selected = event.detail.run;
    for (const row of document.querySelectorAll("tr[data-run]"))
      row.classList.toggle("selected", row.dataset.run === selected);
    for (const button of document.querySelectorAll("button.run"))
      button.setAttribute("aria-pressed", String(button.dataset.run === selected));
    document.getElementById("clear").hidden = selected === null;
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.run");
    if (button) select(button.dataset.run);
  });
  document.getElementById("clear").addEventListener("click", () => select(null));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && selected !== null) select(null);
  });

  // Filter: every word must occur in the name of a run, or in its model, backbone and state in the table of results.

  const texts = new Map();
  for (const row of document.querySelectorAll("tr[data-run]")) {
    const words = row.closest("#results") ? [...row.cells].slice(0, 2).map((cell) => cell.textContent) : [];
    texts.set(row.dataset.run, [texts.get(row.dataset.run) ?? row.dataset.run, ...words].join(" ").toLowerCase());
  }
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = [...texts].filter(([, text]) => words.every((word) => text.includes(word)));
    shown = words.length ? matches.map(([run]) => run) : null;
    document.dispatchEvent(new CustomEvent("segdet:filter", { detail: { shown } }));
  });
  document.addEventListener("segdet:filter", (event) => {
    const runs = event.detail.shown && new Set(event.detail.shown);
    for (const row of document.querySelectorAll("tr[data-run], li[data-run], details[data-run]"))
      row.hidden = runs !== null && !runs.has(row.dataset.run);
    document.getElementById("matches").textContent = runs === null ? "" : `${runs.size} of ${texts.size}`;
  });

  // Sorting: numbers start with the largest, texts with the first letter. Empty cells are always last.

  for (const heading of document.querySelectorAll("table.sortable th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(heading));
  }
  function sort(heading) {
    const numeric = heading.dataset.sort === "number";
    const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const order = heading.getAttribute("aria-sort") === first ? second : first;
    for (const other of heading.parentElement.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", order);
    const body = heading.closest("table").tBodies[0];
    const key = (row) => {
      const cell = row.cells[heading.cellIndex];
      const text = cell.dataset.value ?? cell.textContent.trim();
      return numeric ? (text === "" || isNaN(text) ? null : Number(text)) : text;
    };
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  }

  // Charts: drawn when they come near the window. Until then, and in print, their static pictures are shown.

  // Vega and the data are read when the first chart is drawn, so that a large page opens quickly.

  const vega = document.getElementById("vega");
  let columns = null;
  function prepare() {
    if (columns !== null) return;
    columns = JSON.parse(document.getElementById("chart-data").textContent);
    const script = document.createElement("script");
    script.textContent = vega.textContent;
    document.head.append(script);
  }
  const datasets = new Map();
  function rowsOf(name) {
    if (!datasets.has(name)) {
      const fields = Object.entries(columns[name]).map(([field, values]) =>
        [field, Array.isArray(values) ? values : values.at.map((at) => values.texts[at])]);
      const length = fields.length ? fields[0][1].length : 0;
      datasets.set(name, Array.from({ length }, (_, at) =>
        Object.fromEntries(fields.map(([field, values]) => [field, values[at]]))));
    }
    return datasets.get(name);
  }
  async function draw(figure) {
    prepare();
    const { spec, data } = JSON.parse(figure.querySelector("script").textContent);
    spec.datasets = Object.fromEntries(data.map((name) => [name, rowsOf(name)]));
    const live = figure.querySelector(".live");
    live.hidden = false;
    figure.querySelector(".static").hidden = true;
    const { view } = await vegaEmbed(live, spec, { renderer: "svg", actions: false });
    view.signal("selected", selected).signal("shown", shown).runAsync();
    document.addEventListener("segdet:select", (event) => view.signal("selected", event.detail.run).runAsync());
    document.addEventListener("segdet:filter", (event) => view.signal("shown", event.detail.shown).runAsync());
    view.addEventListener("click", (event, item) => {
      const run = item?.datum?.run;
      if (run !== undefined && run !== null) select(run);
    });
    figure.dataset.drawn = "true";
  }
  if (vega) {
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries)
        if (isIntersecting) {
          observer.unobserve(target);
          draw(target);
        }
    }, { rootMargin: "300px" });
    for (const figure of document.querySelectorAll("figure.chart")) observer.observe(figure);
  }

  // The browser reloads a page of running experiments. The selection, the filter and the position are kept.

  const refresh = Number(document.body.dataset.refresh);
  const memory = `segdet:${location.pathname}`;
  try {
    const { run, words, top } = JSON.parse(sessionStorage.getItem(memory) ?? "{}");
    sessionStorage.removeItem(memory);
    if (words) {
      filter.value = words;
      filter.dispatchEvent(new Event("input"));
    }
    if (run) select(run);
    if (top) scrollTo(0, top);
  } catch { /* without storage, the page starts anew */ }
  function reload() {
    const isBusy = document.activeElement === filter || document.querySelector("dialog[open]") || document.hidden;
    if (isBusy) return;
    try {
      sessionStorage.setItem(memory, JSON.stringify({ run: selected, words: filter.value, top: scrollY }));
    } catch { /* see above */ }
    location.reload();
  }
  if (refresh) setInterval(reload, 1000 * refresh);

  return { select };
})();
