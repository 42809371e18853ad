// Turn volumes into axial slices and back, and resample them to another grid, as in scans/series.py;
// choose the field of view, as in application/field.py. Affines are rows of four numbers, voxel to mm,
// RAS+.
import { roundHalfEven } from "./fitting.js";

const FLAT = 1.5,
  THICK = 2,
  SAME = 1e-3,
  SIZES = [0.1, 20];
const AS_TRAINED = 0.12,
  SQUARE = 0.01;

export const voxelSizes = (affine) =>
  [0, 1, 2].map((axis) => Math.hypot(...affine.slice(0, 3).map((row) => row[axis])));

/** Return the nearest spatial axis and its direction for each axis of a volume, as nibabel does. */
export function orientation(affine) {
  const sizes = voxelSizes(affine).map((size) => size || 1);
  const rotation = polar(
    affine.slice(0, 3).map((row) => row.slice(0, 3).map((value, axis) => value / sizes[axis])),
  );
  const strength = (axis) => Math.max(...rotation.map((row) => Math.abs(row[axis])));
  const order = [0, 1, 2].sort((a, b) => strength(b) - strength(a));
  const found = [];
  const free = rotation.map((row) => row.slice());
  for (const axis of order) {
    const column = free.map((row) => Math.abs(row[axis]));
    const out = column.indexOf(Math.max(...column));
    found[axis] = { axis: out, sign: rotation[out][axis] < 0 ? -1 : 1 };
    free[out] = [0, 0, 0];
  }
  return found;
}

/** Return the rotation nearest to a matrix, by Newton's iteration for the polar decomposition. */
function polar(matrix) {
  let current = matrix;
  for (let k = 0; k < 30; k++) {
    const inverted = inverse3(current);
    current = current.map((row, i) => row.map((value, j) => (value + inverted[j][i]) / 2));
  }
  return current;
}

export function inverse3(m) {
  const [[a, b, c], [d, e, f], [g, h, i]] = m;
  const A = e * i - f * h,
    B = f * g - d * i,
    C = d * h - e * g;
  const det = a * A + b * B + c * C;
  return [
    [A / det, (c * h - b * i) / det, (b * f - c * e) / det],
    [B / det, (a * i - c * g) / det, (c * d - a * f) / det],
    [C / det, (b * g - a * h) / det, (a * e - b * d) / det],
  ];
}

export function determinant(affine) {
  const [[a, b, c], [d, e, f], [g, h, i]] = affine;
  return a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g);
}

/**
 * Return the axes and flips that turn a volume into axial slices (D, H, W): slices from inferior to
 * superior, rows from anterior to posterior, columns from right to left.
 */
export function axialOf(affine) {
  const nearest = orientation(affine);
  const directions = [
    [2, 1],
    [1, -1],
    [0, -1],
  ]; // superior, posterior, left
  const axes = directions.map(([axis]) => nearest.findIndex((found) => found.axis === axis));
  return { axes, flips: directions.map(([, sign], k) => nearest[axes[k]].sign !== sign) };
}

/** Call `visit` with each voxel's index in the axial slices, in order, and its index in the volume. */
function eachVoxel(shape, axial, visit) {
  const step = [1, shape[0], shape[0] * shape[1]]; // in NIfTI the first axis is the fastest
  const [depth, height, width] = axial.axes.map((axis) => shape[axis]);
  const steps = axial.axes.map((axis, k) => (axial.flips[k] ? -step[axis] : step[axis]));
  const begins = axial.axes.map((axis, k) => (axial.flips[k] ? step[axis] * (shape[axis] - 1) : 0));
  const begin = begins[0] + begins[1] + begins[2];
  let position = 0;
  for (let z = 0; z < depth; z++) {
    for (let y = 0; y < height; y++) {
      let index = begin + z * steps[0] + y * steps[1];
      for (let x = 0; x < width; x++, index += steps[2]) visit(position++, index);
    }
  }
}

/** Return the axial slices of a volume, as an array of the same type. */
export function turn(values, shape, axial) {
  const out = new values.constructor(values.length);
  eachVoxel(shape, axial, (position, index) => {
    out[position] = values[index];
  });
  return out;
}

/** Return axial slices in the orientation of the volume. */
export function turnBack(slices, shape, axial) {
  const out = new slices.constructor(slices.length);
  eachVoxel(shape, axial, (position, index) => {
    out[index] = slices[position];
  });
  return out;
}

/** Return the angle between the slices and the axial plane in degrees. */
export function tilt(affine) {
  const axis = axialOf(affine).axes[0];
  const column = affine.slice(0, 3).map((row) => row[axis]);
  return (Math.acos(Math.min(1, Math.abs(column[2]) / Math.hypot(...column))) * 180) / Math.PI;
}

/** Return whether the voxel size is implausible for a head. */
export const hasImplausibleSize = (affine) =>
  voxelSizes(affine).some((size) => size < SIZES[0] || size > SIZES[1]);

/** Return "sagittal" or "coronal" if slices are thick and not axial, else null. */
export function wrongPlane(affine) {
  const sizes = voxelSizes(affine);
  const thick = sizes.indexOf(Math.max(...sizes));
  const second = sizes.slice().sort((a, b) => a - b)[1];
  if (sizes[thick] < Math.max(THICK, FLAT * second) || axialOf(affine).axes[0] === thick) return null;
  return ["sagittal", "coronal", "axial"][orientation(affine)[thick].axis];
}

/** Return a volume resampled linearly to a reference's grid, 0 outside, and the share covered. */
export function resampled(volume, reference) {
  const same = volume.affine.every((row, i) =>
    row.every((value, j) => Math.abs(value - reference.affine[i][j]) <= SAME),
  );
  if (same && volume.shape.every((n, k) => n === reference.shape[k]))
    return { values: volume.values, covered: 1 };
  const inverse = inverse3(volume.affine.map((row) => row.slice(0, 3)));
  const linear = inverse.map((row) =>
    [0, 1, 2].map((k) => row.reduce((sum, value, j) => sum + value * reference.affine[j][k], 0)),
  );
  const offset = inverse.map((row) =>
    row.reduce((sum, value, j) => sum + value * (reference.affine[j][3] - volume.affine[j][3]), 0),
  );
  const [nx, ny, nz] = volume.shape;
  const [mx, my, mz] = reference.shape;
  const out = new Float32Array(mx * my * mz);
  let outside = 0,
    index = 0;
  for (let k = 0; k < mz; k++) {
    for (let j = 0; j < my; j++) {
      for (let i = 0; i < mx; i++, index++) {
        const [x, y, z] = linear.map((row, r) => row[0] * i + row[1] * j + row[2] * k + offset[r]);
        if (x < -1 || y < -1 || z < -1 || x > nx || y > ny || z > nz) {
          outside++;
          continue;
        }
        // The border values extend by one voxel.
        const [xx, yy, zz] = [
          Math.min(Math.max(x, 0), nx - 1),
          Math.min(Math.max(y, 0), ny - 1),
          Math.min(Math.max(z, 0), nz - 1),
        ];
        const x0 = Math.floor(xx),
          y0 = Math.floor(yy),
          z0 = Math.floor(zz);
        const x1 = Math.min(x0 + 1, nx - 1),
          y1 = Math.min(y0 + 1, ny - 1),
          z1 = Math.min(z0 + 1, nz - 1);
        const u = xx - x0,
          v = yy - y0,
          w = zz - z0;
        const row = (j0, k0) => {
          const base = (k0 * ny + j0) * nx;
          return volume.values[base + x0] * (1 - u) + volume.values[base + x1] * u;
        };
        const plane = (k0) => row(y0, k0) * (1 - v) + row(y1, k0) * v;
        out[index] = plane(z0) * (1 - w) + plane(z1) * w;
      }
    }
  }
  return { values: out, covered: 1 - outside / out.length };
}

/**
 * Return the start of a field of `n` pixels along an axis, centered on the tissue, or on the axis if
 * the axis is not longer than the field or there is no tissue.
 */
function fieldStart(tissue, n) {
  const first = tissue.indexOf(true),
    last = tissue.lastIndexOf(true);
  if (n >= tissue.length || first < 0) return -Math.floor((n - tissue.length) / 2);
  return Math.floor((first + last + 1 - n) / 2);
}

/**
 * Return the field of view in slices whose tissue is (D, H, W), in pixels. It may extend beyond them.
 * @param {Uint8Array} tissue @param {number[]} shape @param {number[]} pixel height and width in mm
 */
export function chooseField(tissue, [depth, height, width], pixel, fieldOfView) {
  const longer = Math.max(height * pixel[0], width * pixel[1]);
  const field = { top: 0, left: 0, height, width };
  if (Math.abs(longer / fieldOfView - 1) > AS_TRAINED) {
    const rows = new Array(height).fill(false),
      columns = new Array(width).fill(false);
    for (let index = 0; index < tissue.length; index++) {
      if (tissue[index]) {
        columns[index % width] = true;
        rows[Math.floor(index / width) % height] = true;
      }
    }
    field.height = roundHalfEven(fieldOfView / pixel[0]);
    field.width = roundHalfEven(fieldOfView / pixel[1]);
    field.top = fieldStart(rows, field.height);
    field.left = fieldStart(columns, field.width);
  }
  const side = Math.min(...pixel);
  const isSquare = Math.abs(pixel[0] / pixel[1] - 1) <= SQUARE;
  return {
    ...field,
    squared: isSquare
      ? [field.height, field.width]
      : [roundHalfEven((field.height * pixel[0]) / side), roundHalfEven((field.width * pixel[1]) / side)],
  };
}
