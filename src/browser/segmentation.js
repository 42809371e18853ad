// From the series of a patient to probabilities and a mask: what application/segmentation.py does.
import {
  chooseField,
  determinant,
  axialOf,
  resampled,
  tilt,
  isOdd,
  turn,
  voxelSizes,
  wrongPlane,
} from "./geometry.js";
import { fit, paddedSize, resize, roundHalfEven, unfit } from "./fitting.js";
import { distinct, normalizer, tissueStatistics } from "./intensity.js";
import { skullShare } from "./skull.js";
import { Unsuitable } from "./nifti.js";

export const SEQUENCES = ["pre_contrast", "flair", "post_contrast"];
export const NAMES = { flair: "FLAIR", pre_contrast: "pre-contrast T1", post_contrast: "post-contrast T1" };
const FEW_VALUES = 8,
  NEGATIVE = 0.01,
  COVERED = 0.95,
  LEAST_COVERED = 0.5;
const THIN = 2,
  THICK = 7,
  OBLIQUE = 30,
  CROPPED = 0.01,
  LEAST_BONE = 0.08;
const CHUNK = 8; // slices that the network is shown at a time
const MOST_LOGIT = 30;
const BACKGROUND = 0.1;

const percent = (share) => `${Math.round(100 * share)}%`;

function checkedValues(series, warnings) {
  const { values } = series;
  let lowest = Infinity,
    negative = 0,
    zeros = 0;
  const seen = new Set();
  for (const value of values) {
    if (seen.size <= FEW_VALUES) seen.add(value);
    if (value < 0) negative++;
    if (value === 0) zeros++;
    if (value < lowest) lowest = value;
  }
  if (seen.size <= FEW_VALUES)
    throw new Unsuitable(`${series.name}: only ${seen.size} values: a mask, not a scan?`);
  if (negative / values.length <= NEGATIVE) return values;
  const hasBackground = zeros / values.length > BACKGROUND;
  const black = hasBackground ? ", and the many voxels of 0 are" : ", is";
  warnings.push(
    `${series.name}: has negative intensities; its lowest, ${Number(lowest.toPrecision(6))}${black} taken for black`,
  );
  return Float32Array.from(values, (value) => (hasBackground && value === 0 ? 0 : value - lowest));
}

/** The sequences as axial slices on FLAIR's grid: {volumes, shape (D, H, W), axial, voxel mm}. */
function onOneGrid(series, warnings) {
  const { flair } = series;
  if (isOdd(flair.affine)) {
    const sizes = voxelSizes(flair.affine)
      .map((size) => Number(size.toPrecision(6)))
      .join(" × ");
    throw new Unsuitable(`${flair.name}: voxels of ${sizes} mm; is its header in mm?`);
  }
  const plane = wrongPlane(flair.affine);
  if (plane) {
    const apart = Math.max(...voxelSizes(flair.affine)).toFixed(1);
    throw new Unsuitable(
      `${flair.name}: ${plane} slices ${apart} mm apart. The model looks at axial slices: give it an axial scan, or a 3-D one with small voxels.`,
    );
  }
  const axial = axialOf(flair.affine);
  const volumes = {};
  for (const [sequence, each] of Object.entries(series)) {
    warnings.push(...each.notes);
    let values, covered;
    try {
      ({ values, covered } = resampled({ ...each, values: checkedValues(each, warnings) }, flair));
      if (covered < LEAST_COVERED) {
        throw new Unsuitable(
          `${each.name} covers ${percent(covered)} of ${flair.name}: is it the same examination of the same patient?`,
        );
      }
    } catch (error) {
      if (sequence === "flair" || !(error instanceof Unsuitable)) throw error;
      warnings.push(`${NAMES[sequence]} is not used: ${error.message}`);
      continue;
    }
    if (covered < COVERED)
      warnings.push(`${NAMES[sequence]} covers ${percent(covered)} of FLAIR's grid; elsewhere it is 0`);
    volumes[sequence] = turn(values, flair.shape, axial);
    each.values = null; // which may be large
  }
  const sizes = voxelSizes(flair.affine);
  return {
    volumes,
    axial,
    shape: axial.axes.map((axis) => flair.shape[axis]),
    voxel: axial.axes.map((axis) => sizes[axis]),
  };
}

/** The rows and columns of a slice that a field has. */
function within(field, height, width) {
  return {
    rowBegin: Math.max(field.top, 0),
    rowEnd: Math.min(field.top + field.height, height),
    columnBegin: Math.max(field.left, 0),
    columnEnd: Math.min(field.left + field.width, width),
  };
}

/**
 * The values of a volume within the field, and how many beyond its slices are 0.
 * @param volume @param {number[]} shape (D, H, W) @param field
 */
function inField(volume, [depth, height, width], field) {
  const { rowBegin, rowEnd, columnBegin, columnEnd } = within(field, height, width);
  const own = columnEnd - columnBegin;
  const found = new volume.constructor(depth * (rowEnd - rowBegin) * own);
  let at = 0;
  for (let z = 0; z < depth; z++) {
    for (let y = rowBegin; y < rowEnd; y++, at += own) {
      const from = (z * height + y) * width + columnBegin;
      found.set(volume.subarray(from, from + own), at);
    }
  }
  return { values: found, beyond: depth * field.height * field.width - found.length };
}

/** All sequences as levels (D, H, W, 3), and the sequences that FLAIR stands in for. */
function normalizedSlices(volumes, shape, field, normalize, warnings) {
  const n = shape[0] * shape[1] * shape[2];
  const images = new Uint8Array(3 * n);
  const missing = SEQUENCES.filter((name) => !volumes[name]);
  for (const [channel, name] of SEQUENCES.entries()) {
    if (missing.includes(name)) continue;
    const { values, beyond } = inField(volumes[name], shape, field);
    const statistics = tissueStatistics(distinct(values, beyond));
    if (!statistics || !(statistics.p99 > 0)) {
      if (name === "flair") throw new Unsuitable("FLAIR: all voxels in the field of view are alike");
      warnings.push(`${NAMES[name]}: all voxels in the field of view are alike`);
      missing.push(name);
      continue;
    }
    const level = normalizer(statistics, normalize);
    for (let k = 0; k < n; k++) images[3 * k + channel] = level(volumes[name][k]);
  }
  for (const name of missing) {
    const channel = SEQUENCES.indexOf(name);
    for (let k = 0; k < n; k++) images[3 * k + channel] = images[3 * k + 1];
  }
  return { images, missing: SEQUENCES.filter((name) => missing.includes(name)) };
}

/**
 * A slice's field as the network takes it, (S, S, 3).
 * @param images @param at @param {number[]} shape (D, H, W)
 */
function shown(images, at, [, height, width], field, imageSize) {
  const cut = new Uint8Array(field.height * field.width * 3);
  const { rowBegin, rowEnd, columnBegin, columnEnd } = within(field, height, width);
  for (let y = rowBegin; y < rowEnd; y++) {
    const from = 3 * ((at * height + y) * width + columnBegin);
    const row = images.subarray(from, from + 3 * (columnEnd - columnBegin));
    cut.set(row, 3 * ((y - field.top) * field.width + columnBegin - field.left));
  }
  const [rows, columns] = field.squared;
  const squared = resize(cut, field.height, field.width, 3, rows, columns);
  return fit(squared, rows, columns, 3, imageSize);
}

/**
 * Levels of probability of a slice, (H, W), from the network's answer for its field, (S, S).
 * @param answer @param size @param {number[]} shape (D, H, W)
 */
function levelsOf(answer, size, [, height, width], field, imageSize, out) {
  const logits = Float32Array.from(answer, (p) => {
    const logit = Math.log(p) - Math.log1p(-p);
    return Math.min(MOST_LOGIT, Math.max(-MOST_LOGIT, logit));
  });
  const scaled = unfit(logits, size, field.height, field.width, imageSize, field.squared);
  const { rowBegin, rowEnd, columnBegin, columnEnd } = within(field, height, width);
  for (let y = rowBegin; y < rowEnd; y++) {
    for (let x = columnBegin; x < columnEnd; x++) {
      const odds = Math.exp(scaled[(y - field.top) * field.width + x - field.left] / 2);
      out[y * width + x] = Math.ceil(255 * (2 / Math.PI) * Math.atan(odds) - 0.5);
    }
  }
}

/** The lowest level whose probability is above a threshold. */
export function firstLevelAbove(threshold) {
  for (let level = 0; level < 256; level++) {
    if (Math.sin((Math.PI / 2) * (level / 255)) ** 2 > threshold) return level;
  }
  return 256;
}

function describe({ flair, images, tissue, shape, voxel, field }) {
  const found = [];
  const [spacing, ...pixel] = voxel;
  if (spacing < THIN || spacing > THICK) {
    found.push(
      `slices are ${spacing.toFixed(1)} mm apart; the training's are about 5 mm apart, and how well the model does on others is not known`,
    );
  }
  if (tilt(flair.affine) > OBLIQUE)
    found.push(`slices are tilted by ${Math.round(tilt(flair.affine))}° from the axial plane`);
  const [, height, width] = shape;
  const { rowBegin, rowEnd, columnBegin, columnEnd } = within(field, height, width);
  let all = 0,
    outside = 0;
  for (let at = 0; at < tissue.length; at++) {
    if (!tissue[at]) continue;
    all++;
    const x = at % width,
      y = Math.floor(at / width) % height;
    if (x < columnBegin || x >= columnEnd || y < rowBegin || y >= rowEnd) outside++;
  }
  if (outside > CROPPED * all) {
    found.push(
      `the head is larger than the model's field of view: ${percent(outside / all)} of its tissue is not looked at`,
    );
  }
  if (skullShare(images, shape, Math.min(...pixel)) < LEAST_BONE) {
    found.push(
      "the skull seems to have been removed; the training's scans show whole heads, and how well the model does on others is not known",
    );
  }
  return found;
}

/** How well patients were segmented in the test who lack these sequences. */
function scoreWithout(missing, description) {
  const lacking = missing.length === 2 ? "pre and post-contrast" : missing[0].replace("_", "-");
  const group = description.test.by_missing_sequence.find((each) => each.missing === lacking);
  if (!group) return `the test had no patient without ${lacking}, so how well it does is not known`;
  const patients = group.n_patients > 1 ? `${group.n_patients} patients` : "one patient";
  return `Dice ${group.dice_patient_mean.toFixed(3)} in the ${patients} of the test without ${lacking}`;
}

/**
 * The levels of probability of all slices, from normalized ones (D, H, W, 3). Of thin slices every
 * `stride`th are shown together, so that neighbors are as far apart as they were in the training.
 * @param {Uint8Array} images @param {number[]} shape
 */
async function predictedLevels(images, shape, field, imageSize, stride, run, step) {
  const [depth, height, width] = shape;
  const size = paddedSize(imageSize);
  const area = size * size;
  const levels = new Uint8Array(depth * height * width);
  for (let first = 0; first < Math.min(stride, depth); first++) {
    const places = [];
    for (let at = first; at < depth; at += stride) places.push(at);
    for (let begin = 0; begin < places.length; begin += CHUNK) {
      const end = Math.min(begin + CHUNK, places.length);
      const from = Math.max(begin - 1, 0); // a slice more at each end, for the network sees neighbors
      const to = Math.min(end + 1, places.length);
      const input = new Uint8Array(3 * area * (to - from));
      for (let k = from; k < to; k++) {
        input.set(shown(images, places[k], shape, field, imageSize), 3 * area * (k - from));
      }
      const answers = await run(input, to - from, size);
      for (let k = begin; k < end; k++) {
        const answer = answers.subarray(area * (k - from), area * (k - from + 1));
        const own = levels.subarray(places[k] * height * width, (places[k] + 1) * height * width);
        levelsOf(answer, size, shape, field, imageSize, own);
        step(places[k], depth);
      }
    }
  }
  return levels;
}

/**
 * Segment one patient. `series` has FLAIR and what else there is, as readNifti returns them.
 * `run` takes slices (n, S, S, 3) and promises probabilities (n, S, S).
 * @param {(at: number, n: number) => void} step called for each slice that is done: its place, how many there are
 */
export async function segment(series, description, run, step = () => {}) {
  const warnings = [];
  let { volumes, axial, shape, voxel } = onOneGrid(series, warnings);
  const { image_size: imageSize, field_of_view_mm: fieldOfView, slice_spacing_mm: apart } = description.input;
  let sum = 0;
  for (const value of volumes.flair) sum += value;
  const mean = sum / volumes.flair.length;
  const tissue = Uint8Array.from(volumes.flair, (value) => (value > mean ? 1 : 0));
  const field = chooseField(tissue, shape, voxel.slice(1), fieldOfView);
  const { images, missing } = normalizedSlices(volumes, shape, field, description.input.normalize, warnings);
  volumes = null; // which may be large
  const stride = Math.max(1, roundHalfEven(apart / voxel[0]));
  const levels = await predictedLevels(images, shape, field, imageSize, stride, run, step);
  if (missing.length) {
    const names = missing.map((name) => NAMES[name]).join(" and ");
    warnings.push(`no ${names}: FLAIR stands in; expect less (${scoreWithout(missing, description)})`);
  }
  warnings.push(...describe({ flair: series.flair, images, tissue, shape, voxel, field }));
  const milliliters = Math.abs(determinant(series.flair.affine)) / 1000; // of a voxel
  return { images, levels, missing, axial, shape, voxel, milliliters, warnings };
}
