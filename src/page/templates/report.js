"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const read = (id) => JSON.parse(document.getElementById(id).textContent);

// The gallery.
const LAYERS = ["right", "missed", "false", "halo", "reference", "prediction"]; // the last on top
const FLAIR = 1;
const slices = read("slices");
const gallery = document.getElementById("gallery");
const cards = all(".card");
const svg = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);

// The pattern of a kind of error, as large on the screen whatever the slice's width in pixels.
function pattern(name, width) {
  const id = `${name}-${width}`;
  if (!document.getElementById(id)) {
    const base = document.getElementById(name);
    const scaled = base.cloneNode(true);
    scaled.id = id;
    const turn = base.getAttribute("patternTransform") ?? "";
    scaled.setAttribute("patternTransform", `scale(${width / 256}) ${turn}`);
    base.after(scaled);
  }
  return `url(#${id})`;
}

function draw(card) {
  const slider = card.querySelector("[type=range]");
  const of = slices[card.dataset.index];
  const slice = of[slider.value];
  const choice = gallery.querySelector("[name=sequence]:checked");
  const sequence = choice.parentElement.textContent;
  const [width, height] = slice.size;
  const [tp, fp, fn] = slice.counts;
  const both = 2 * tp + fp + fn;
  const dice = both ? `Dice ${((2 * tp) / both).toFixed(3)}` : "no tumor in either";

  const image = card.querySelector("img");
  image.width = width;
  image.height = height;
  image.src = `data:image/webp;base64,${slice.views[choice.value] || slice.views[FLAIR]}`;
  const where = `Slice ${Number(slider.value) + 1} of ${of.length}, number ${slice.number}`;
  const what = `${dice}: ${tp} pixels right, ${fn} missed, ${fp} false`;
  const missing = card.dataset.missing.split(" ").includes(choice.value);
  image.alt = `${sequence} scan of ${card.dataset.name}. ${where}. ${what}.`;
  card.querySelector("figcaption").textContent =
    `${where}. ${what}.` + (missing ? ` ${sequence} is missing: this is FLAIR.` : "");
  slider.setAttribute("aria-valuetext", `${where}, ${dice}`);
  card.querySelector(".now").setAttribute("x", slider.value);

  const paths = { ...slice.paths, halo: slice.paths.reference + slice.paths.prediction };
  const over = card.querySelector(".over");
  over.setAttribute("viewBox", `0 0 ${width} ${height}`);
  over.replaceChildren(
    ...LAYERS.map((name) => {
      const path = svg("path");
      path.setAttribute("class", name);
      path.setAttribute("d", paths[name]);
      if (document.getElementById(name)) path.style.fill = pattern(name, width);
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

// A patient whose Dice is undefined comes last either way.
const undefinedLast = (a, b) => (a.dataset.dice === "") - (b.dataset.dice === "");
const ORDERS = {
  worst: (a, b) => undefinedLast(a, b) || a.dataset.dice - b.dataset.dice,
  best: (a, b) => undefinedLast(a, b) || b.dataset.dice - a.dataset.dice,
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
    from = null;
    if (!event.isPrimary || event.button !== 0) return; // a second finger zooms
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
const KEYS = {
  1: "[name=sequence][value='0']",
  2: "[name=sequence][value='1']",
  3: "[name=sequence][value='2']",
  o: "[name=outlines]",
  e: "[name=errors]",
};
gallery.addEventListener("keydown", (event) => {
  const chosen = KEYS[event.key.toLowerCase()];
  if (!chosen || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!event.target.matches("select")) gallery.querySelector(chosen).click();
});
arrange();
layers();

// The charts.
for (const [name, spec] of Object.entries(read("charts"))) {
  vegaEmbed(`#chart-${name}`, spec, { actions: false, renderer: "svg" });
}
