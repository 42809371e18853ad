// Segment the series of a patient, as in application/segmentation.py.
import {
  chooseField,
  determinant,
  axialOf,
  resampled,
  tilt,
  hasImplausibleSize,
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
const CHUNK = 8; // slices computed at a time
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
    throw new Unsuitable(
      `${series.name}: only ${seen.size} distinct value${seen.size === 1 ? "" : "s"}: it seems to be a mask; use a scan`,
    );
  if (negative / values.length <= NEGATIVE) return values;
  const hasBackground = zeros / values.length > BACKGROUND;
  const black = hasBackground ? "and all zeros are" : "is";
  warnings.push(
    `${series.name}: negative intensities: the lowest value (${Number(lowest.toPrecision(6))}) ${black} treated as black`,
  );
  return Float32Array.from(values, (value) => (hasBackground && value === 0 ? 0 : value - lowest));
}

/** Return the sequences as axial slices on FLAIR's grid, their shape (D, H, W) and voxel size in mm. */
function onOneGrid(series, warnings) {
  const { flair } = series;
  if (hasImplausibleSize(flair.affine)) {
    const sizes = voxelSizes(flair.affine)
      .map((size) => Number(size.toPrecision(6)))
      .join(" × ");
    throw new Unsuitable(
      `${flair.name}: implausible voxel size (${sizes} mm); correct the units in the header`,
    );
  }
  const plane = wrongPlane(flair.affine);
  if (plane) {
    const apart = Math.max(...voxelSizes(flair.affine)).toFixed(1);
    throw new Unsuitable(
      `${flair.name}: ${plane} slices ${apart} mm apart. The model needs axial slices: use an axial scan, or a 3-D scan with small voxels.`,
    );
  }
  const axial = axialOf(flair.affine);
  const volumes = {};
  for (const [sequence, volume] of Object.entries(series)) {
    warnings.push(...volume.notes);
    let values, covered;
    try {
      ({ values, covered } = resampled({ ...volume, values: checkedValues(volume, warnings) }, flair));
      if (covered < LEAST_COVERED) {
        throw new Unsuitable(
          `${volume.name} covers only ${percent(covered)} of ${flair.name}; use scans of the same examination`,
        );
      }
    } catch (error) {
      if (sequence === "flair" || !(error instanceof Unsuitable)) throw error;
      warnings.push(`${NAMES[sequence]} is not used: ${error.message}`);
      continue;
    }
    if (covered < COVERED)
      warnings.push(
        `${NAMES[sequence]} covers only ${percent(covered)} of FLAIR's grid; the other voxels are set to 0`,
      );
    volumes[sequence] = turn(values, flair.shape, axial);
    volume.values = null; // to free memory
  }
  const sizes = voxelSizes(flair.affine);
  return {
    volumes,
    axial,
    shape: axial.axes.map((axis) => flair.shape[axis]),
    voxel: axial.axes.map((axis) => sizes[axis]),
  };
}

/** Return the range of a slice's rows and columns inside a field. */
function within(field, height, width) {
  return {
    rowBegin: Math.max(field.top, 0),
    rowEnd: Math.min(field.top + field.height, height),
    columnBegin: Math.max(field.left, 0),
    columnEnd: Math.min(field.left + field.width, width),
  };
}

/**
 * Return a volume's values inside the field, and the number of zeros where the field exceeds the slices.
 * @param volume @param {number[]} shape (D, H, W) @param field
 */
function inField(volume, [depth, height, width], field) {
  const { rowBegin, rowEnd, columnBegin, columnEnd } = within(field, height, width);
  const nColumns = columnEnd - columnBegin;
  const found = new volume.constructor(depth * (rowEnd - rowBegin) * nColumns);
  let index = 0;
  for (let z = 0; z < depth; z++) {
    for (let y = rowBegin; y < rowEnd; y++, index += nColumns) {
      const from = (z * height + y) * width + columnBegin;
      found.set(volume.subarray(from, from + nColumns), index);
    }
  }
  return { values: found, beyond: depth * field.height * field.width - found.length };
}

/** Return all sequences as levels (D, H, W, 3), and the missing sequences, which FLAIR replaces. */
function normalizedSlices(volumes, shape, field, normalize, warnings) {
  const n = shape[0] * shape[1] * shape[2];
  const images = new Uint8Array(3 * n);
  const missing = SEQUENCES.filter((name) => !volumes[name]);
  for (const [channel, name] of SEQUENCES.entries()) {
    if (missing.includes(name)) continue;
    const { values, beyond } = inField(volumes[name], shape, field);
    const statistics = tissueStatistics(distinct(values, beyond));
    if (!statistics || !(statistics.p99 > 0)) {
      if (name === "flair")
        throw new Unsuitable("FLAIR: all voxels in the field of view have the same value");
      warnings.push(`${NAMES[name]}: all voxels in the field of view have the same value`);
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
 * Return the field of the slice `index` as the network takes it, (S, S, 3).
 * @param images @param index @param {number[]} shape (D, H, W)
 */
function networkInput(images, index, [, height, width], field, imageSize) {
  const cut = new Uint8Array(field.height * field.width * 3);
  const { rowBegin, rowEnd, columnBegin, columnEnd } = within(field, height, width);
  for (let y = rowBegin; y < rowEnd; y++) {
    const from = 3 * ((index * height + y) * width + columnBegin);
    const row = images.subarray(from, from + 3 * (columnEnd - columnBegin));
    cut.set(row, 3 * ((y - field.top) * field.width + columnBegin - field.left));
  }
  const [rows, columns] = field.squared;
  const squared = resize(cut, field.height, field.width, 3, rows, columns);
  return fit(squared, rows, columns, 3, imageSize);
}

/**
 * Encode the probabilities of a slice's field, (S, S), as levels of the slice, (H, W), in `out`.
 * @param probabilities @param size @param {number[]} shape (D, H, W)
 */
function encodeLevels(probabilities, size, [, height, width], field, imageSize, out) {
  const logits = Float32Array.from(probabilities, (p) => {
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

/** Return the lowest level whose probability is above a threshold. */
export function firstLevelAbove(threshold) {
  for (let level = 0; level < 256; level++) {
    if (Math.sin((Math.PI / 2) * (level / 255)) ** 2 > threshold) return level;
  }
  return 256;
}

/** Return warnings if a scan is unlike the scans that the model was trained on. */
function describeScan({ flair, images, tissue, shape, voxel, field }) {
  const found = [];
  const [spacing, ...pixel] = voxel;
  if (spacing < THIN || spacing > THICK) {
    found.push(
      `slices are ${spacing.toFixed(1)} mm apart; the model was trained on slices about 5 mm apart, and its accuracy on others is unknown`,
    );
  }
  if (tilt(flair.affine) > OBLIQUE)
    found.push(`slices are tilted by ${Math.round(tilt(flair.affine))}° from the axial plane`);
  const [, height, width] = shape;
  const { rowBegin, rowEnd, columnBegin, columnEnd } = within(field, height, width);
  let all = 0,
    outside = 0;
  for (let index = 0; index < tissue.length; index++) {
    if (!tissue[index]) continue;
    all++;
    const x = index % width,
      y = Math.floor(index / width) % height;
    if (x < columnBegin || x >= columnEnd || y < rowBegin || y >= rowEnd) outside++;
  }
  if (outside > CROPPED * all) {
    found.push(
      `the head is larger than the model's field of view: ${percent(outside / all)} of its tissue is outside and not segmented`,
    );
  }
  if (skullShare(images, shape, Math.min(...pixel)) < LEAST_BONE) {
    found.push(
      "the scan seems to be skull-stripped; the model was trained on whole heads, and its accuracy on skull-stripped scans is unknown",
    );
  }
  return found;
}

/** Return the test score of patients without these sequences, as a phrase. */
function scoreWithout(missing, description) {
  const phrase = missing.length === 2 ? "pre and post-contrast" : missing[0].replace("_", "-");
  const group = description.test.by_missing_sequence.find((candidate) => candidate.missing === phrase);
  if (!group) return `accuracy unknown: no test patient lacked ${phrase}`;
  const patients = group.n_patients > 1 ? `${group.n_patients} test patients` : "one test patient";
  return `Dice ${group.dice_patient_mean.toFixed(3)} in ${patients} without ${phrase}`;
}

/**
 * Return the encoded probabilities of normalized slices (D, H, W, 3). If slices are thin, the network
 * sees every `stride`th slice as neighbors, so that neighbors are as far apart as in training.
 * @param {Uint8Array} images @param {number[]} shape
 */
async function predictedLevels(images, shape, field, imageSize, stride, run, onProgress) {
  const [depth, height, width] = shape;
  const size = paddedSize(imageSize);
  const area = size * size;
  const levels = new Uint8Array(depth * height * width);
  for (let first = 0; first < Math.min(stride, depth); first++) {
    const group = [];
    for (let index = first; index < depth; index += stride) group.push(index);
    for (let begin = 0; begin < group.length; begin += CHUNK) {
      const end = Math.min(begin + CHUNK, group.length);
      const from = Math.max(begin - 1, 0); // one more slice at each end, because the network sees neighbors
      const to = Math.min(end + 1, group.length);
      const input = new Uint8Array(3 * area * (to - from));
      for (let k = from; k < to; k++) {
        input.set(networkInput(images, group[k], shape, field, imageSize), 3 * area * (k - from));
      }
      const outputs = await run(input, to - from, size);
      for (let k = begin; k < end; k++) {
        const output = outputs.subarray(area * (k - from), area * (k - from + 1));
        const out = levels.subarray(group[k] * height * width, (group[k] + 1) * height * width);
        encodeLevels(output, size, shape, field, imageSize, out);
        onProgress(group[k], depth);
      }
    }
  }
  return levels;
}

/**
 * Segment one patient. `series` has FLAIR and other available series, as readNifti returns them.
 * `run` takes slices (n, S, S, 3) and returns a promise of probabilities (n, S, S).
 * @param {(index: number, n: number) => void} onProgress called after each slice with its position and their number
 */
export async function segment(series, description, run, onProgress = () => {}) {
  const warnings = [];
  let { volumes, axial, shape, voxel } = onOneGrid(series, warnings);
  const { image_size: imageSize, field_of_view_mm: fieldOfView, slice_spacing_mm: apart } = description.input;
  let sum = 0;
  for (const value of volumes.flair) sum += value;
  const mean = sum / volumes.flair.length;
  const tissue = Uint8Array.from(volumes.flair, (value) => (value > mean ? 1 : 0));
  const field = chooseField(tissue, shape, voxel.slice(1), fieldOfView);
  const { images, missing } = normalizedSlices(volumes, shape, field, description.input.normalize, warnings);
  volumes = null; // to free memory
  const stride = Math.max(1, roundHalfEven(apart / voxel[0]));
  const levels = await predictedLevels(images, shape, field, imageSize, stride, run, onProgress);
  if (missing.length) {
    const names = missing.map((name) => NAMES[name]).join(" and ");
    warnings.push(
      `no ${names}: FLAIR is used instead; expect lower accuracy (${scoreWithout(missing, description)})`,
    );
  }
  warnings.push(...describeScan({ flair: series.flair, images, tissue, shape, voxel, field }));
  const milliliters = Math.abs(determinant(series.flair.affine)) / 1000; // volume of a voxel
  return { images, levels, missing, axial, shape, voxel, milliliters, warnings };
}
