// Detect skull-stripped scans, as in scans/skull.py.
import { components } from "./components.js";

const TISSUE = 30,
  SHELL = [3, 12],
  DARK = 0.4;
const FAR = 1e20;

/** Return the mask dilated (`value` 1) or eroded (`value` 0) by a pixel; outside the image it is 0. */
function grown(mask, height, width, value) {
  const out = mask.slice();
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const index = y * width + x;
      const up = y > 0 ? mask[index - width] : 0,
        down = y < height - 1 ? mask[index + width] : 0;
      const left = x > 0 ? mask[index - 1] : 0,
        right = x < width - 1 ? mask[index + 1] : 0;
      if (value ? up || down || left || right : !(up && down && left && right)) out[index] = value;
    }
  }
  return out;
}

/** Return the mask with its holes filled: background that is not connected to the border. */
function withoutHoles(mask, height, width) {
  const { labels } = components(
    mask.map((value) => 1 - value),
    1,
    height,
    width,
  );
  const outside = new Set();
  for (let k = 0; k < labels.length; k++) {
    const x = k % width;
    const isBorder = x === 0 || x === width - 1 || k < width || k >= labels.length - width;
    if (isBorder && labels[k]) outside.add(labels[k]);
  }
  return Uint8Array.from(labels, (label) => (outside.has(label) ? 0 : 1));
}

/** Return the lower envelope of the parabolas `f[p] + (q - p)²` at each q (Felzenszwalb, 2012). */
function distances(f) {
  const n = f.length,
    v = [0],
    z = [-Infinity, Infinity],
    out = new Float64Array(n);
  for (let q = 1; q < n; q++) {
    let s;
    for (;;) {
      const p = v.at(-1);
      s = (f[q] + q * q - f[p] - p * p) / (2 * q - 2 * p);
      if (s > z[v.length - 1] || v.length === 1) break;
      v.pop();
      z.pop();
    }
    if (s <= z[v.length - 1]) {
      v[0] = q;
      z.length = 2;
      z[0] = -Infinity;
      z[1] = Infinity;
      continue;
    }
    z[v.length] = s;
    v.push(q);
    z.push(Infinity);
  }
  for (let q = 0, k = 0; q < n; q++) {
    while (z[k + 1] < q) k++;
    out[q] = (q - v[k]) ** 2 + f[v[k]];
  }
  return out;
}

/** Return the distance in pixels from each pixel of a mask to the nearest pixel outside it. */
function depthOf(mask, height, width) {
  const squared = Float64Array.from(mask, (value) => (value ? FAR : 0));
  for (let x = 0; x < width; x++) {
    const column = distances(Array.from({ length: height }, (_, y) => squared[y * width + x]));
    for (let y = 0; y < height; y++) squared[y * width + x] = column[y];
  }
  for (let y = 0; y < height; y++)
    squared.set(distances(squared.slice(y * width, (y + 1) * width)), y * width);
  return squared.map(Math.sqrt);
}

/**
 * Return the share of dark voxels in a shell below the surface of the head; NaN if there is no head.
 * @param {Uint8Array} images (D, H, W, 3) @param {number[]} shape @param {number} pixel size in mm
 */
export function skullShare(images, [depth, height, width], pixel) {
  const first = Math.floor(depth / 3);
  const end = Math.max(Math.floor((2 * depth) / 3), first + 1);
  let dark = 0,
    inShell = 0;
  for (let z = first; z < end; z++) {
    const image = Uint8Array.from(
      { length: height * width },
      (_, k) => images[3 * (z * height * width + k) + 1],
    );
    let mask = Uint8Array.from(image, (level) => (level > TISSUE ? 1 : 0));
    for (const value of [1, 1, 0, 0]) mask = grown(mask, height, width, value);
    const filled = withoutHoles(mask, height, width);
    const { labels, sizes } = components(filled, 1, height, width);
    if (!sizes.length) continue;
    const largest = sizes.indexOf(Math.max(...sizes)) + 1;
    const head = Uint8Array.from(labels, (label) => (label === largest ? 1 : 0));
    const deep = depthOf(head, height, width).map((value) => value * pixel);
    const inside = image.filter((_, k) => deep[k] > SHELL[1]).sort();
    if (!inside.length) continue;
    const half = inside.length / 2;
    const median = (inside[Math.ceil(half) - 1] + inside[Math.floor(half)]) / 2;
    image.forEach((level, k) => {
      if (deep[k] <= SHELL[0] || deep[k] > SHELL[1]) return;
      inShell++;
      if (level < DARK * median) dark++;
    });
  }
  return dark / inShell;
}
