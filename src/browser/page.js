// The page: the user chooses files, a web worker segments them, and the viewer shows the result.
import { bars, ShownSlice } from "./drawing.js";
import { turnBack } from "./geometry.js";
import { niftiOf } from "./nifti.js";
import { exampleFiles } from "./phantom.js";
import { measured } from "./result.js";
import { NAMES, SEQUENCES } from "./segmentation.js";
import { sequenceOf } from "./sequences.js";

const element = (id) => /** @type {any} */ (document.getElementById(id));
const description = JSON.parse(element("description").textContent);
const words = JSON.parse(element("words").textContent);
const card = /** @type {HTMLElement} */ (document.querySelector(".card"));
const slider = /** @type {HTMLInputElement} */ (card.querySelector("[type=range]"));
const shown = [[]]; // the viewer's slices
const { startViewer } = /** @type {any} */ (window); // from the report's viewer.js
/** @type {{file: File, sequence: string | null}[]} */
const chosen = [];
let worker = null;
let result = null;
let redraw = null;

function showStatus(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("warning", isError);
}

function listFiles() {
  const rows = chosen.map((entry, index) => {
    const row = element("file-row").content.cloneNode(true);
    row.querySelector(".name").textContent = entry.file.name;
    const select = row.querySelector("select");
    select.value = entry.sequence ?? "";
    select.setAttribute("aria-label", `Sequence of ${entry.file.name}`);
    select.addEventListener("change", () => {
      entry.sequence = select.value || null;
      element("result").hidden = true;
      checkChosen();
    });
    const button = row.querySelector("button");
    button.setAttribute("aria-label", `Remove ${entry.file.name}`);
    button.addEventListener("click", () => {
      chosen.splice(index, 1);
      listFiles();
      const next = element("files").querySelectorAll("button")[Math.min(index, chosen.length - 1)];
      (next ?? element("choose")).focus();
    });
    return row;
  });
  element("files").replaceChildren(...rows);
  element("chosen").hidden = !chosen.length;
  element("result").hidden = true;
  checkChosen();
  if (chosen.length) startWorker();
}

/** Enable the button once FLAIR is chosen and no sequence is chosen twice; show what to do until then. */
function checkChosen() {
  const count = (sequence) => chosen.filter((entry) => entry.sequence === sequence).length;
  const repeated = SEQUENCES.find((sequence) => count(sequence) > 1);
  const ready = count("flair") === 1 && !repeated;
  element("segment").disabled = !ready;
  if (!chosen.length) showStatus("");
  else if (repeated) showStatus(`Two files are ${NAMES[repeated]}: set one of them to “not used”.`, true);
  else if (!ready) showStatus("The model needs FLAIR: mark the file that is FLAIR.", true);
  else showStatus("Ready.");
}

/** Add files to the list. A single file whose name does not say its sequence is assumed to be FLAIR. */
function addFiles(/** @type {File[]} */ files) {
  const isNifti = (file) => /\.nii(\.gz)?$/i.test(file.name);
  const images = files.filter(isNifti);
  const ignored = files.filter((file) => !isNifti(file)).map((file) => file.name);
  const isSingle = images.length === 1 && !chosen.length;
  for (const file of images) {
    const recognized = sequenceOf(file.name, words);
    const isFlair = isSingle && recognized === null;
    chosen.push({ file, sequence: isFlair ? "flair" : recognized || null });
  }
  if (images.length) listFiles();
  if (!ignored.length) return;
  const hint = images.length ? "" : " To convert DICOM to NIfTI, use dcm2niix.";
  showStatus(
    `These files were ignored because they are not NIfTI (.nii or .nii.gz): ${ignored.join(", ")}.${hint}`,
    true,
  );
}

/** Start the worker before it is needed, because it takes seconds to load the model. */
function startWorker() {
  worker ??= newWorker();
}

function newWorker() {
  const code = new Blob([element("worker").textContent], { type: "text/javascript" });
  const address = URL.createObjectURL(code);
  const started = new Worker(address);
  URL.revokeObjectURL(address);
  started.postMessage({ runtime: element("runtime").textContent, model: element("model").textContent });
  return started;
}

function setBusy(isBusy) {
  element("progress").hidden = !isBusy;
  for (const id of ["chosen", "example", "choose"]) element(id).disabled = isBusy;
}

/** Leave the busy state. The focus moves to the next step, because the cancel button is now hidden. */
function finish(text, isError = false) {
  setBusy(false);
  checkChosen();
  showStatus(text, isError);
  (element("segment").disabled ? element("choose") : element("segment")).focus();
}

function segmentChosen() {
  const used = chosen.filter((entry) => entry.sequence);
  const files = Object.fromEntries(used.map((entry) => [entry.sequence, entry.file]));
  element("result").hidden = true;
  element("bar").removeAttribute("value");
  element("done").textContent = "";
  setBusy(true);
  element("cancel").focus();
  showStatus("Segmenting …");
  startWorker();
  worker.onmessage = ({ data }) => {
    if (data.n) {
      element("bar").max = data.n;
      element("bar").value = data.done;
      element("done").textContent = `${data.done} of ${data.n} slices done`;
      return;
    }
    if (data.isBroken) stopWorker();
    finish(data.error ?? "", Boolean(data.error));
    if (!data.error) showResult(data);
  };
  worker.onerror = (event) => {
    stopWorker();
    finish(`Unexpected error: ${event.message}`, true);
  };
  worker.postMessage({ files, description });
}

/** Stop the worker; a new one will load the model again. */
function stopWorker() {
  worker?.terminate();
  worker = null;
}

function cancel() {
  stopWorker();
  finish("Canceled.");
}

/** Measure and draw the tumor at the current threshold. */
function update() {
  const threshold = Number(element("threshold").value);
  result.now = measured(result, threshold, description.component_share);
  const { areas, sizes, nVoxels, milliliters } = result.now;
  element("volume").textContent = `${milliliters.toFixed(1)} mL`;
  element("voxels").textContent = `${nVoxels.toLocaleString("en")} voxels`;
  element("parts").textContent = sizes.length;
  element("marked").textContent = areas.filter(Boolean).length;
  element("threshold-value").textContent = threshold.toFixed(2);
  card.querySelector(".areas .filled").setAttribute("d", bars(areas));
  showStatus(nVoxels ? "Done." : "Done: no tumor found.");
  redraw?.(card);
}

let isScheduled = false;
/** Update once before the next frame, however often the threshold changes until then. */
function scheduleUpdate() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    update();
  });
}

function showResult({ result: found, scan }) {
  const { file } = chosen.find((entry) => entry.sequence === "flair");
  result = { ...found, scan, name: file.name };
  element("shown").textContent = file.name;
  const [depth] = result.shape;
  element("threshold").value = description.threshold;
  element("of").textContent = `of ${depth}`;
  slider.max = String(depth - 1);
  card.querySelector(".areas").setAttribute("viewBox", `0 0 ${depth} 1`);
  card.dataset.missing = result.missing.map((name) => SEQUENCES.indexOf(name)).join(" ");
  const lines = result.warnings.map((text) => {
    const line = document.createElement("p");
    line.className = "warning";
    line.textContent = text;
    return line;
  });
  element("warnings").replaceChildren(...lines);
  shown[0] = Array.from({ length: depth }, (_, index) => new ShownSlice(result, index));
  element("result").hidden = false;
  update();
  const { areas } = result.now;
  const largest = areas.indexOf(Math.max(...areas));
  slider.value = String(areas[largest] ? largest : Math.floor(depth / 2));
  redraw ??= startViewer(element("gallery"), shown);
  redraw(card);
  element("result").scrollIntoView({ block: "start" });
  slider.focus({ preventScroll: true });
}

async function save() {
  const mask = turnBack(result.now.mask, result.scan.shape, result.axial);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await niftiOf(mask, result.scan));
  link.download = `${result.name.replace(/\.nii(\.gz)?$/i, "")}_mask.nii.gz`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it after a delay
}

element("input").addEventListener("change", () => {
  addFiles([...element("input").files]);
  element("input").value = "";
});
element("choose").addEventListener("click", () => element("input").click());
element("example").addEventListener("click", () => {
  chosen.length = 0;
  addFiles(exampleFiles());
  segmentChosen();
});
element("segment").addEventListener("click", segmentChosen);
element("cancel").addEventListener("click", cancel);
element("threshold").addEventListener("input", scheduleUpdate);
element("opacity").addEventListener("input", () =>
  element("gallery").style.setProperty("--fill", element("opacity").value),
);
element("save").addEventListener("click", save);
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("dragged", kind === "dragover");
    const files = /** @type {DragEvent} */ (event).dataTransfer?.files ?? [];
    if (kind === "drop" && files.length && element("progress").hidden) addFiles([...files]);
  });
}
document.addEventListener("dragleave", () => element("drop").classList.remove("dragged"));
