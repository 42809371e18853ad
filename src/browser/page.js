// The page: files are chosen, a worker segments them, and the viewer shows what it found.
import { bars, ShownSlice } from "./drawing.js";
import { turnBack } from "./geometry.js";
import { niftiOf } from "./nifti.js";
import { exampleFiles } from "./phantom.js";
import { measured } from "./result.js";
import { NAMES, SEQUENCES } from "./segmentation.js";
import { sequenceOf } from "./sequences.js";

const by = (id) => /** @type {any} */ (document.getElementById(id));
const description = JSON.parse(by("description").textContent);
const words = JSON.parse(by("words").textContent);
const card = /** @type {HTMLElement} */ (document.querySelector(".card"));
const slider = /** @type {HTMLInputElement} */ (card.querySelector("[type=range]"));
const shown = [[]]; // the viewer's slices
const { startViewer } = /** @type {any} */ (window); // of the report's viewer.js
/** @type {{file: File, sequence: string | null}[]} */
const chosen = [];
let worker = null;
let result = null;
let redraw = null;

function say(text, isError = false) {
  by("status").textContent = text;
  by("status").classList.toggle("warning", isError);
}

function listFiles() {
  const rows = chosen.map((each, at) => {
    const row = by("file-row").content.cloneNode(true);
    row.querySelector(".name").textContent = each.file.name;
    const select = row.querySelector("select");
    select.value = each.sequence ?? "";
    select.setAttribute("aria-label", `Sequence of ${each.file.name}`);
    select.addEventListener("change", () => {
      each.sequence = select.value || null;
      by("result").hidden = true;
      check();
    });
    const button = row.querySelector("button");
    button.setAttribute("aria-label", `Remove ${each.file.name}`);
    button.addEventListener("click", () => {
      chosen.splice(at, 1);
      listFiles();
      const next = by("files").querySelectorAll("button")[Math.min(at, chosen.length - 1)];
      (next ?? by("choose")).focus();
    });
    return row;
  });
  by("files").replaceChildren(...rows);
  by("chosen").hidden = !chosen.length;
  by("result").hidden = true;
  check();
  if (chosen.length) prepare();
}

/** Say what is still to be chosen; the button waits for it. */
function check() {
  const of = (sequence) => chosen.filter((each) => each.sequence === sequence);
  const twice = SEQUENCES.find((sequence) => of(sequence).length > 1);
  const ready = of("flair").length === 1 && !twice;
  by("segment").disabled = !ready;
  if (!chosen.length) say("");
  else if (twice) say(`Two files are ${NAMES[twice]}: set one of them to “not used”.`, true);
  else if (!ready) say("Say which file is FLAIR: the model needs it.", true);
  else say("Ready.");
}

/** Add files to the list; one that is alone and whose name tells nothing is taken for FLAIR. */
function add(/** @type {File[]} */ files) {
  const isNifti = (file) => /\.nii(\.gz)?$/i.test(file.name);
  const taken = files.filter(isNifti);
  const others = files.filter((file) => !isNifti(file)).map((file) => file.name);
  const isAlone = taken.length === 1 && !chosen.length;
  for (const file of taken) {
    const recognized = sequenceOf(file.name, words);
    const isFlair = isAlone && recognized === null;
    chosen.push({ file, sequence: isFlair ? "flair" : recognized || null });
  }
  if (taken.length) listFiles();
  if (!others.length) return;
  const hint = taken.length ? "" : " dcm2niix makes NIfTI of DICOM.";
  say(`Left out, for it is not NIfTI (.nii or .nii.gz): ${others.join(", ")}.${hint}`, true);
}

/** Start the worker, which is busy for some seconds with the model, as soon as it may be needed. */
function prepare() {
  worker ??= newWorker();
}

function newWorker() {
  const code = new Blob([by("worker").textContent], { type: "text/javascript" });
  const address = URL.createObjectURL(code);
  const made = new Worker(address);
  URL.revokeObjectURL(address);
  made.postMessage({ runtime: by("runtime").textContent, model: by("model").textContent });
  return made;
}

function setBusy(isBusy) {
  by("progress").hidden = !isBusy;
  for (const id of ["chosen", "example", "choose"]) by(id).disabled = isBusy;
}

/** End the work; the focus goes where the next step is, for its button is hidden. */
function end(text, isError = false) {
  setBusy(false);
  check();
  say(text, isError);
  (by("segment").disabled ? by("choose") : by("segment")).focus();
}

function segmentChosen() {
  const used = chosen.filter((each) => each.sequence);
  const files = Object.fromEntries(used.map((each) => [each.sequence, each.file]));
  by("result").hidden = true;
  by("bar").removeAttribute("value");
  by("done").textContent = "";
  setBusy(true);
  by("cancel").focus();
  say("Working …");
  prepare();
  worker.onmessage = ({ data }) => {
    if (data.n) {
      by("bar").max = data.n;
      by("bar").value = data.done;
      by("done").textContent = `Slice ${data.at + 1}, ${data.done} of ${data.n}`;
      return;
    }
    if (data.isBroken) drop();
    end(data.error ?? "", Boolean(data.error));
    if (!data.error) show(data);
  };
  worker.onerror = (event) => {
    drop();
    end(`Something went wrong: ${event.message}`, true);
  };
  worker.postMessage({ files, description });
}

/** Give the worker up; the next one unpacks the model again. */
function drop() {
  worker?.terminate();
  worker = null;
}

function cancel() {
  drop();
  end("Cancelled.");
}

/** Measure and draw the tumor at the threshold that is set. */
function update() {
  const threshold = Number(by("threshold").value);
  result.now = measured(result, threshold, description.component_share);
  const { areas, sizes, nVoxels, milliliters } = result.now;
  by("volume").textContent = `${milliliters.toFixed(1)} mL`;
  by("voxels").textContent = `${nVoxels.toLocaleString("en")} voxels`;
  by("parts").textContent = sizes.length;
  by("marked").textContent = areas.filter(Boolean).length;
  by("threshold-value").textContent = threshold.toFixed(2);
  card.querySelector(".areas .filled").setAttribute("d", bars(areas));
  say(nVoxels ? "Done." : "Done: no tumor found.");
  redraw?.(card);
}

let isWaiting = false;
/** Update before the screen is drawn again, once however often the threshold moves until then. */
function updateSoon() {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    update();
  });
}

function show({ found, scan }) {
  const { file } = chosen.find((each) => each.sequence === "flair");
  result = { ...found, scan, name: file.name };
  by("shown").textContent = file.name;
  const [depth] = result.shape;
  by("threshold").value = description.threshold;
  by("of").textContent = `of ${depth}`;
  slider.max = String(depth - 1);
  card.querySelector(".areas").setAttribute("viewBox", `0 0 ${depth} 1`);
  card.dataset.missing = result.missing.map((name) => SEQUENCES.indexOf(name)).join(" ");
  const lines = result.warnings.map((text) => {
    const line = document.createElement("p");
    line.className = "warning";
    line.textContent = text;
    return line;
  });
  by("warnings").replaceChildren(...lines);
  shown[0] = Array.from({ length: depth }, (_, at) => new ShownSlice(result, at));
  by("result").hidden = false;
  update();
  const { areas } = result.now;
  const most = areas.indexOf(Math.max(...areas));
  slider.value = String(areas[most] ? most : Math.floor(depth / 2));
  redraw ??= startViewer(by("gallery"), shown);
  redraw(card);
  by("result").scrollIntoView({ block: "start" });
  slider.focus({ preventScroll: true });
}

async function save() {
  const mask = turnBack(result.now.mask, result.scan.shape, result.axial);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await niftiOf(mask, result.scan));
  link.download = `${result.name.replace(/\.nii(\.gz)?$/i, "")}_mask.nii.gz`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it late
}

by("input").addEventListener("change", () => {
  add([...by("input").files]);
  by("input").value = "";
});
by("choose").addEventListener("click", () => by("input").click());
by("example").addEventListener("click", () => {
  chosen.length = 0;
  add(exampleFiles());
  segmentChosen();
});
by("segment").addEventListener("click", segmentChosen);
by("cancel").addEventListener("click", cancel);
by("threshold").addEventListener("input", updateSoon);
by("opacity").addEventListener("input", () => by("gallery").style.setProperty("--fill", by("opacity").value));
by("save").addEventListener("click", save);
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("dragged", kind === "dragover");
    const files = /** @type {DragEvent} */ (event).dataTransfer?.files ?? [];
    if (kind === "drop" && files.length && by("progress").hidden) add([...files]);
  });
}
document.addEventListener("dragleave", () => by("drop").classList.remove("dragged"));
