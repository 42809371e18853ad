"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const read = (id) => JSON.parse(document.getElementById(id).textContent);

// The gallery.
const SEQUENCES = ["Pre-contrast", "FLAIR", "Post-contrast"];
const LAYERS = ["right", "missed", "false", "reference", "prediction"]; // the last one on top
const slices = read("slices");
const gallery = document.getElementById("gallery");
const cards = all(".card");

const sequence = () => Number(gallery.querySelector("[name=sequence]:checked").value);

function draw(card) {
  const slider = card.querySelector("[type=range]");
  const of = slices[card.dataset.index];
  const slice = of[slider.value];
  const chosen = sequence();
  const missing = slice.views[chosen] === "";
  const [width, height] = slice.size;
  const [tp, fp, fn] = slice.counts;
  const both = 2 * tp + fp + fn;
  const dice = both ? `Dice ${((2 * tp) / both).toFixed(3)}` : "no tumor in either";

  const image = card.querySelector("img");
  image.width = width;
  image.height = height;
  image.src = `data:image/webp;base64,${slice.views[missing ? 1 : chosen]}`;
  const where = `Slice ${Number(slider.value) + 1} of ${of.length}, number ${slice.number}`;
  const what = `${dice}: ${tp} pixels right, ${fn} missed, ${fp} false`;
  image.alt = `${SEQUENCES[chosen]} scan of ${card.dataset.name}. ${where}. ${what}.`;
  card.querySelector("figcaption").textContent =
    `${where}. ${what}.` + (missing ? ` ${SEQUENCES[chosen]} is missing: this is FLAIR.` : "");
  slider.setAttribute("aria-valuetext", `${where}, ${dice}`);

  const over = card.querySelector(".over");
  over.setAttribute("viewBox", `0 0 ${width} ${height}`);
  over.replaceChildren(
    ...LAYERS.map((name) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      path.setAttribute("d", slice.paths[name]);
      return path;
    }),
  );
}

function move(card, position) {
  const slider = card.querySelector("[type=range]");
  const before = slider.value;
  slider.value = position; // the slider keeps it within its range
  if (slider.value !== before) draw(card);
}

const ORDERS = {
  worst: (a, b) => a.dataset.dice - b.dataset.dice,
  best: (a, b) => b.dataset.dice - a.dataset.dice,
  tumor: (a, b) => b.dataset.tumor - a.dataset.tumor,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
};

function arrange() {
  const everyone = document.getElementById("choice").value === "all";
  const order = ORDERS[document.getElementById("sort").value];
  for (const card of cards) card.hidden = !everyone && card.dataset.place === "";
  document.querySelector(".cards").append(...[...cards].sort(order));
}

function layers() {
  for (const box of all("#layers input")) gallery.classList.toggle(`no-${box.name}`, !box.checked);
}

for (const card of cards) {
  card.querySelector("[type=range]").addEventListener("input", () => draw(card));
  const scan = card.querySelector(".scan");
  let from = null;
  scan.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, at: Number(card.querySelector("[type=range]").value) };
    scan.setPointerCapture(event.pointerId);
  });
  scan.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const share = (event.clientX - from.x) / scan.clientWidth;
    move(card, Math.round(from.at + share * slices[card.dataset.index].length));
  });
  for (const end of ["pointerup", "pointercancel"]) scan.addEventListener(end, () => (from = null));
  draw(card);
}
document.getElementById("sequence").addEventListener("change", () => cards.forEach(draw));
document.getElementById("layers").addEventListener("change", layers);
for (const id of ["choice", "sort"]) document.getElementById(id).addEventListener("change", arrange);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const inputs = { 1: 0, 2: 1, 3: 2, o: 3, e: 4 };
  const chosen = all(".tools input")[inputs[event.key.toLowerCase()]];
  if (chosen) chosen.click();
});
arrange();
layers();

// The charts.
for (const [name, spec] of Object.entries(read("charts"))) {
  vegaEmbed(`#chart-${name}`, spec, { actions: false, renderer: "svg" });
}
