// The gallery: which runs are shown, the score threshold, the order and the filter of images, and enlarged images.
// Python renders all pictures; this code only shows, hides and sorts them.
(() => {
  "use strict";
  const FIRST_IMAGES = 6;
  const COUNTS = new Set(["correct", "wrong", "missed"]);
  const select = (root, query) => root.querySelector(query);
  const selectAll = (root, query) => [...root.querySelectorAll(query)];
  const ratio = (part, whole) => (whole > 0 ? part / whole : NaN);
  const score = (value) => (Number.isNaN(value) ? "–" : value.toFixed(3));

  // Counts are stored as the first one and the differences to the next.
  const running = (steps) => {
    let sum = 0;
    return steps.map((step) => (sum += step));
  };

  class Gallery {
    constructor(root) {
      this.root = root;
      this.items = selectAll(root, ".gallery-images > li");
      this.rows = selectAll(root, "tbody tr");
      this.filter = null;
      this.matching = null; // the runs that match the page's filter, or null
      this.all = false;
      const data = select(root, "script");
      this.data = data ? JSON.parse(data.textContent) : null;
      for (const run of this.data ? this.data.runs : []) {
        run.correct = running(run.correct);
        run.wrong = running(run.wrong);
      }
      this.position = null; // null: every run at its own best threshold
      this.prepare();
      this.arrange();
    }

    prepare() {
      const { root } = this;
      for (const row of this.rows) {
        select(row, "input").addEventListener("change", () => this.showRuns());
      }
      select(root, ".order").addEventListener("change", () => this.arrange());
      select(root, ".more").addEventListener("click", () => {
        this.all = true;
        this.arrange();
      });
      select(root, ".gallery-filter button").addEventListener("click", () => this.setFilter(null));
      const labels = select(root, ".labels");
      if (labels) labels.addEventListener("change", () => root.classList.toggle("without-labels", !labels.checked));
      const masks = select(root, ".masks");
      if (masks) {
        masks.addEventListener("change", () => {
          root.classList.toggle("wrong-masks", masks.value === "wrong");
          root.classList.toggle("no-masks", masks.value === "none");
        });
      }
      const opacity = select(root, ".opacity");
      if (opacity) {
        opacity.addEventListener("input", () => root.style.setProperty("--mask-opacity", opacity.value / 100));
      }
      this.slider = select(root, ".threshold input");
      if (this.slider) {
        this.slider.addEventListener("input", () => this.setPosition(Number(this.slider.value)));
        select(root, ".best").addEventListener("click", () => this.setPosition(null));
      }
      root.addEventListener("click", (event) => {
        const button = event.target.closest("button.open");
        if (button) lightbox.open(this, button.closest(".panel"));
      });
    }

    showRuns() {
      const isShown = (row) =>
        select(row, "input").checked && (this.matching === null || this.matching.includes(row.dataset.run));
      const shown = new Set(this.rows.filter(isShown).map((row) => row.dataset.index));
      for (const panel of selectAll(this.root, ".panel[data-run]")) panel.hidden = !shown.has(panel.dataset.index);
      this.root.style.setProperty("--panels", shown.size + 1);
      this.update();
    }

    positionOf(run) {
      return this.position === null ? this.data.runs[run].best : this.position;
    }

    setPosition(position) {
      this.position = position;
      if (position !== null) this.slider.value = position;
      const text = position === null ? "best F1 of each run" : this.data.thresholds[position].toFixed(3);
      select(this.root, "output").textContent = text;
      this.slider.setAttribute("aria-valuetext", text);
      select(this.root, ".best").setAttribute("aria-pressed", String(position === null));
      if (!this.waiting) {
        this.waiting = true;
        requestAnimationFrame(() => {
          this.waiting = false;
          this.update();
        });
      }
    }

    // Write the numbers at the threshold, and show the boxes above it in the visible panels.
    update() {
      if (!this.data) return;
      for (const row of this.rows) {
        const run = this.data.runs[row.dataset.index];
        const at = this.positionOf(row.dataset.index);
        const correct = run.correct[at], wrong = run.wrong[at];
        const values = {
          threshold: this.data.thresholds[at],
          precision: ratio(correct, correct + wrong),
          recall: ratio(correct, run.objects),
          f1: ratio(2 * correct, correct + wrong + run.objects),
          correct,
          wrong,
          missed: run.objects - correct,
        };
        for (const [name, value] of Object.entries(values)) {
          const cell = select(row, `[data-k="${name}"]`);
          cell.dataset.value = value;
          cell.textContent = COUNTS.has(name) ? value : score(value);
        }
      }
      for (const item of this.items) {
        if (item.hidden) continue;
        for (const panel of selectAll(item, ".panel[data-run]")) if (!panel.hidden) this.updatePanel(panel);
      }
    }

    updatePanel(panel) {
      const at = this.positionOf(panel.dataset.index);
      if (!panel.dataset.labelled) addLabels(select(panel, "svg"));
      panel.dataset.labelled = "true";
      const found = new Set();
      let correct = 0, wrong = 0;
      for (const box of selectAll(panel, ".box[data-p]")) {
        const visible = Number(box.dataset.p) >= at;
        box.classList.toggle("off", !visible);
        if (!visible) continue;
        if (box.dataset.o === undefined) wrong += 1;
        else {
          correct += 1;
          found.add(box.dataset.o);
        }
      }
      const missing = selectAll(panel, ".box.missed");
      for (const box of missing) box.classList.toggle("off", found.has(box.dataset.o));
      const total = correct + wrong + missing.length;
      const f1 = total ? (2 * correct) / total : 1;
      const more = Number(panel.dataset.leftOut) >= at ? "+" : "";
      const parts = `${correct} correct, ${wrong}${more} wrong, ${missing.length - correct} missed`;
      select(panel, ".counts").textContent = `F1 ${f1.toFixed(2)}: ${total ? parts : "no objects, no detections"}`;
    }

    scoreOf(item, run) {
      return Number(select(item, `.panel[data-index="${run}"]`).dataset.score);
    }

    arrange() {
      const [kind, run] = select(this.root, ".order").value.split(":");
      const by = {
        disagreement: (a, b) => a.dataset.number - b.dataset.number,
        name: (a, b) => (a.dataset.name < b.dataset.name ? -1 : 1),
        worst: (a, b) => this.scoreOf(a, run) - this.scoreOf(b, run),
        best: (a, b) => this.scoreOf(b, run) - this.scoreOf(a, run),
      }[kind];
      const order = this.filter && this.filter.images;
      const rank = (item) => order.indexOf(Number(item.dataset.index));
      const chosen = order ? this.items.filter((item) => rank(item) >= 0) : this.items;
      chosen.sort(order ? (a, b) => rank(a) - rank(b) : by);
      const visible = new Set(order || this.all ? chosen : chosen.slice(0, FIRST_IMAGES));
      for (const item of this.items) item.hidden = !visible.has(item);
      select(this.root, ".gallery-images").append(...chosen);
      select(this.root, ".more").parentElement.hidden = visible.size >= chosen.length;
      this.update();
    }

    // Show only the images of a filter: {images: indices in the evidence, run, text}.
    setFilter(filter) {
      this.filter = filter;
      const banner = select(this.root, ".gallery-filter");
      banner.hidden = !filter;
      if (filter) {
        select(banner, "p").textContent = filter.text;
        for (const row of this.rows) if (row.dataset.name === filter.run) select(row, "input").checked = true;
        if (this.data) this.setPosition(null);
      }
      this.showRuns();
      this.arrange();
    }

    // Mark the panels of a run, and show them if they are hidden.
    highlight(run) {
      for (const panel of selectAll(this.root, ".panel[data-run]"))
        panel.classList.toggle("selected", panel.dataset.run === run);
      const hidden = this.rows.filter((row) => row.dataset.run === run && !select(row, "input").checked);
      for (const row of hidden) select(row, "input").checked = true;
      if (hidden.length) this.showRuns();
    }
  }

  const label = (box) => {
    const name = box.dataset.l.length > 24 ? `${box.dataset.l.slice(0, 23)}…` : box.dataset.l;
    return box.dataset.s ? `${name} ${box.dataset.s}` : name;
  };

  const KINDS = ["correct", "classification", "localization", "both", "duplicate", "background", "missed", "ignored"];

  // Write the name and the score beside each box of a picture.
  function addLabels(svg) {
    for (const box of selectAll(svg, ".box:not(:has(text))")) {
      const rect = select(box, "rect");
      const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
      text.textContent = label(box);
      text.setAttribute("x", Math.max(rect.x.baseVal.value, 0));
      text.setAttribute("y", Math.max(rect.y.baseVal.value, 0));
      box.append(text);
    }
  }

  class Lightbox {
    constructor(dialog) {
      this.dialog = dialog;
      this.stage = select(dialog, ".stage");
      this.slider = select(dialog, ".lightbox-threshold");
      dialog.addEventListener("keydown", (event) => this.key(event));
      select(dialog, ".close").addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", (event) => {
        const step = event.target.closest("[data-step]");
        if (step) this.step(step.dataset.step);
        else if (event.target === dialog) dialog.close();
      });
      dialog.addEventListener("close", () => this.opener && this.opener.focus());
      this.slider.addEventListener("input", () => {
        this.gallery.setPosition(Number(this.slider.value));
        this.gallery.update();
        this.draw();
      });
    }

    open(gallery, panel) {
      this.gallery = gallery;
      this.zoom = 1;
      this.dialog.showModal();
      this.show(panel);
      this.stage.focus();
    }

    show(panel) {
      this.panel = panel;
      this.opener = select(panel, ".open");
      this.draw();
    }

    draw() {
      const { panel, gallery } = this;
      const svg = select(panel, "svg").cloneNode(true);
      this.stage.replaceChildren(svg);
      this.stage.className = `stage ${gallery.root.className.replace("gallery", "")}`;
      this.stage.style.cssText = gallery.root.style.cssText;
      this.scale();
      const name = panel.closest("li").dataset.name;
      select(this.dialog, "header strong").textContent = `${panel.dataset.name || "Annotation"} · ${name}`;
      const counts = select(panel, ".counts");
      select(this.dialog, "footer .counts").textContent = counts ? counts.textContent : "";
      this.list(svg);
      this.slider.hidden = !gallery.data || !panel.dataset.run;
      if (!this.slider.hidden) {
        this.slider.max = gallery.data.thresholds.length - 1;
        this.slider.value = gallery.positionOf(panel.dataset.index);
      }
    }

    // List the visible boxes with their kinds of error.
    list(svg) {
      const entries = selectAll(svg, ".box:not(.off)").reverse().map((box) => {
        const entry = document.createElement("li");
        const name = document.createElement("bdi");
        name.textContent = box.dataset.l;
        const kind = KINDS.find((each) => box.classList.contains(each)) || "";
        entry.className = box.classList.contains("wrong") ? "wrong" : kind || "object";
        const detail = document.createElement("small");
        detail.textContent = [box.dataset.s, entry.className === "wrong" ? `wrong: ${kind}` : kind].filter(Boolean).join(" · ");
        entry.append(name, " ", detail);
        return entry;
      });
      select(this.dialog, ".boxes").replaceChildren(...entries);
    }

    scale() {
      const svg = select(this.stage, "svg");
      const box = svg.viewBox.baseVal;
      const style = getComputedStyle(this.stage);
      const [width, height] = [parseFloat(style.width), parseFloat(style.height)];
      const fit = this.dialog.open ? Math.min(width / box.width, height / box.height) : 1;
      svg.style.width = `${Math.floor(box.width * fit * this.zoom)}px`;
      svg.style.height = "auto";
    }

    step(direction) {
      const item = this.panel.closest("li");
      const horizontal = { left: -1, right: 1 }[direction];
      const panels = selectAll(item, ".panel").filter((panel) => !panel.hidden);
      if (horizontal) {
        const at = panels.indexOf(this.panel) + horizontal;
        if (panels[at]) this.show(panels[at]);
        return;
      }
      const items = selectAll(this.gallery.root, ".gallery-images > li").filter((each) => !each.hidden);
      const next = items[items.indexOf(item) + { up: -1, down: 1 }[direction]];
      if (next) this.show(select(next, `.panel[data-index="${this.panel.dataset.index}"]`));
    }

    key(event) {
      if (event.key === "Escape") event.stopPropagation();
      if (event.target === this.slider) return;
      const direction = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
      const zoom = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
      if (direction && !event.shiftKey) this.step(direction);
      else if (zoom !== undefined) {
        this.zoom = zoom ? Math.min(Math.max(this.zoom * zoom, 1), 12) : 1;
        this.scale();
      } else return;
      event.preventDefault();
    }
  }

  const lightbox = new Lightbox(document.getElementById("lightbox"));
  const galleries = new Map();
  for (const element of selectAll(document, "#gallery .needs-script")) element.hidden = false;
  for (const root of selectAll(document, ".gallery")) galleries.set(root.id, new Gallery(root));
  addEventListener("resize", () => lightbox.dialog.open && lightbox.scale());
  document.addEventListener("segdet:select", (event) => {
    for (const gallery of galleries.values()) gallery.highlight(event.detail.run);
  });
  document.addEventListener("segdet:filter", (event) => {
    for (const gallery of galleries.values()) {
      gallery.matching = event.detail.shown;
      gallery.showRuns();
    }
  });
  document.addEventListener("segdet:images", (event) => {
    const gallery = galleries.get(event.detail.gallery);
    if (!gallery) return;
    gallery.setFilter(event.detail);
    select(gallery.root, ".gallery-filter").scrollIntoView({ block: "start" });
  });
})();
