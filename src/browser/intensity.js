// Normalize intensities to the same scale for all patients, as in scans/intensity.py.
import { roundHalfEven } from "./fitting.js";

const P99 = 191,
  MEDIAN = 75,
  MEAN = 115,
  STD = 57;

/**
 * Return the distinct values in ascending order, and the voxel count of each. `extra` zeros are added.
 * @param {ArrayLike<number> & {slice: Function}} values a typed array
 */
export function distinct(values, extra = 0) {
  const sorted = values.slice().sort();
  const found = new Float64Array(sorted.length + 1);
  const counts = new Float64Array(sorted.length + 1);
  let n = 0;
  const add = (value, times) => {
    if (n && found[n - 1] === value) counts[n - 1] += times;
    else {
      found[n] = value;
      counts[n++] = times;
    }
  };
  let zeros = extra;
  for (let k = 0; k < sorted.length; k++) {
    if (zeros && sorted[k] >= 0) {
      add(0, zeros);
      zeros = 0;
    }
    add(sorted[k], 1);
  }
  if (zeros) add(0, zeros);
  return { values: found.subarray(0, n), counts: counts.subarray(0, n) };
}

/** Return mean, standard deviation, median and 99th percentile of tissue; null if all voxels are equal. */
export function tissueStatistics({ values, counts }) {
  let n = 0,
    sum = 0;
  values.forEach((value, i) => {
    n += counts[i];
    sum += value * counts[i];
  });
  const threshold = sum / n;
  let nTissue = 0,
    sumTissue = 0;
  values.forEach((value, i) => {
    if (value > threshold) {
      nTissue += counts[i];
      sumTissue += value * counts[i];
    }
  });
  if (!nTissue) return null;
  const mean = sumTissue / nTissue;
  let squares = 0,
    seen = 0,
    median = NaN,
    p99 = NaN;
  values.forEach((value, i) => {
    if (value <= threshold) return;
    squares += counts[i] * (value - mean) ** 2;
    seen += counts[i];
    if (Number.isNaN(median) && seen >= 0.5 * nTissue) median = value;
    if (Number.isNaN(p99) && seen >= 0.99 * nTissue) p99 = value;
  });
  return { mean, std: Math.sqrt(squares / nTissue), median, p99 };
}

/** Return a function that maps an intensity to a level from 0 to 255. */
export function normalizer(statistics, normalize) {
  let scale = (value) => value;
  if (normalize === "percentile" && statistics.p99 > 0) scale = (value) => value * (P99 / statistics.p99);
  if (normalize === "median" && statistics.median > 0)
    scale = (value) => value * (MEDIAN / statistics.median);
  if (normalize === "z_score" && statistics.std > 0) {
    scale = (value) => MEAN + ((value - statistics.mean) * STD) / statistics.std;
  }
  return (value) => Math.min(255, Math.max(0, roundHalfEven(scale(value))));
}
