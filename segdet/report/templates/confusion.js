// Confusion matrices: which run is shown, and links from cells to the images of the gallery.
(() => {
  "use strict";
  const root = document.querySelector(".confusion");
  const matrices = [...root.querySelectorAll(".matrix")];
  const menu = root.querySelector("select");
  const data = new Map();

  const show = (id) => {
    menu.value = id;
    for (const matrix of matrices) matrix.hidden = matrix.id !== id;
  };

  const follow = (link) => {
    const matrix = link.closest(".matrix");
    if (!data.has(matrix)) data.set(matrix, JSON.parse(matrix.querySelector("script").textContent));
    const { cells, files } = data.get(matrix);
    const [total, inGallery, ...listed] = cells[link.dataset.cell];
    const others = listed.slice(inGallery).map((index) => files[index]);
    const unnamed = total - listed.length;
    const cell = matrix.querySelector(`td a[data-cell="${link.dataset.cell}"]`);
    let text = `${matrix.dataset.name}: ${cell.title}. In the gallery: ${inGallery}.`;
    if (others.length) text += ` Other files: ${others.join(", ")}${unnamed ? ` and ${unnamed} more` : ""}.`;
    const images = listed.slice(0, inGallery);
    const detail = { gallery: matrix.dataset.gallery, images, run: matrix.dataset.name, text };
    document.dispatchEvent(new CustomEvent("segdet:images", { detail }));
  };

  root.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-cell]");
    if (!link || !link.closest(".matrix").dataset.gallery) return;
    event.preventDefault();
    follow(link);
  });
  menu.closest("label").hidden = matrices.length === 1;
  menu.addEventListener("change", () => show(menu.value));
  document.addEventListener("segdet:select", (event) => {
    const run = event.detail.run;
    const found = matrices.find((matrix) => matrix.dataset.run === run);
    if (run && found) show(found.id);
  });
  show(menu.value || matrices[0].id);
})();
