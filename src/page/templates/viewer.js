"use strict";
// The viewer shows the slices of patients with a slider and overlays. A gallery has one or more
// `.card`s, each with a list of slices, which may be created on access. A slice has `size`, `views` (one
// image per sequence, as WebP in base64 or as a data URI), `paths`, and `counts` or `words`.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const read = (id) => JSON.parse(document.getElementById(id).textContent);

const LAYERS = ["right", "missed", "false", "halo", "reference", "prediction"]; // bottom to top
const FLAIR = 1;
const svg = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
const uri = (view) => (view.startsWith("data:") ? view : `data:image/webp;base64,${view}`);

// Returns the fill pattern of a kind of error, scaled so that it looks the same at any slice width.
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

// Returns the caption of a slice: its own `words`, or how the prediction compares with the reference.
function summary(slice) {
  if (slice.words) return slice.words;
  const [tp, fp, fn] = slice.counts;
  const total = 2 * tp + fp + fn;
  if (!total) return "No tumor in reference or prediction";
  const dice = ((2 * tp) / total).toFixed(3);
  return `Dice ${dice}: ${tp} pixels correct, ${fn} missed, ${fp} false positive`;
}

// Starts the viewer in a gallery. A card's `data-index` is its position in `slices`. Returns a function
// that redraws a card after its slices have changed.
function startViewer(gallery, slices) {
  const cards = all(".card", gallery);

  function draw(card) {
    const slider = card.querySelector("[type=range]");
    const volume = slices[card.dataset.index];
    const slice = volume[slider.value];
    const choice = gallery.querySelector("[name=sequence]:checked");
    const sequence = choice.parentElement.textContent;
    const [width, height] = slice.size;
    const comparison = summary(slice);

    const image = card.querySelector("img");
    image.width = width;
    image.height = height;
    image.src = uri(slice.views[choice.value] || slice.views[FLAIR]);
    const number = slice.number === undefined ? "" : `, number ${slice.number}`;
    const position = `Slice ${Number(slider.value) + 1} of ${volume.length}${number}`;
    const missing = card.dataset.missing.split(" ").includes(choice.value);
    image.alt = `${sequence} scan of ${card.dataset.name}. ${position}. ${comparison}.`;
    card.querySelector("figcaption").textContent =
      `${position}. ${comparison}.` + (missing ? ` ${sequence} is missing: this is FLAIR.` : "");
    slider.setAttribute("aria-valuetext", `${position}. ${comparison}`);
    card.querySelector(".now").setAttribute("x", slider.value);

    const { reference = "", prediction } = slice.paths;
    const paths = { ...slice.paths, halo: reference + prediction };
    const over = card.querySelector(".over");
    over.setAttribute("viewBox", `0 0 ${width} ${height}`);
    over.replaceChildren(
      ...LAYERS.filter((name) => name in paths).map((name) => {
        const path = svg("path");
        path.setAttribute("class", name);
        path.setAttribute("d", paths[name]);
        if (document.getElementById(name)) path.style.fill = pattern(name, width);
        return path;
      }),
    );
  }

  function moveTo(card, position) {
    const slider = card.querySelector("[type=range]");
    const before = slider.value;
    slider.value = position; // the slider clamps it to its range
    if (slider.value !== before) draw(card);
  }

  function layers() {
    for (const box of all(".layers input", gallery)) gallery.classList.toggle(`no-${box.name}`, !box.checked);
  }

  for (const card of cards) {
    card.querySelector("[type=range]").addEventListener("input", () => draw(card));
    const scan = card.querySelector(".scan");
    let from = null;
    scan.addEventListener("pointerdown", (event) => {
      from = null;
      if (!event.isPrimary || event.button !== 0) return; // a second finger zooms
      from = { x: event.clientX, position: Number(card.querySelector("[type=range]").value) };
      scan.setPointerCapture(event.pointerId);
    });
    scan.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const share = (event.clientX - from.x) / scan.clientWidth;
      moveTo(card, Math.round(from.position + share * slices[card.dataset.index].length));
    });
    for (const end of ["pointerup", "pointercancel"]) scan.addEventListener(end, () => (from = null));
    draw(card);
  }
  gallery.querySelector(".sequence").addEventListener("change", () => cards.forEach(draw));
  gallery.querySelector(".layers").addEventListener("change", layers);
  // Keyboard shortcuts: the controls' `data-key`, while the focus is within the gallery.
  gallery.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("select")) return;
    gallery.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`)?.click();
  });
  layers();
  return draw;
}
