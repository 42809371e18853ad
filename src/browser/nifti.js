// NIfTI files, read and written.
import { determinant } from "./geometry.js";

/** What is wrong with a file, in words for the person who chose it. */
export class Unsuitable extends Error {}

const DIFFERENT = 1; // mm by which positions of a corner may differ between qform and sform
// By the header's number of the type: bytes, what reads a value, and the array for values.
const TYPES = {
  2: [1, "getUint8", Uint8Array],
  256: [1, "getInt8", Int8Array],
  4: [2, "getInt16", Int16Array],
  512: [2, "getUint16", Uint16Array],
  8: [4, "getInt32", Int32Array],
  768: [4, "getUint32", Uint32Array],
  16: [4, "getFloat32", Float32Array],
  64: [8, "getFloat64", Float64Array],
  1024: [8, "getBigInt64", Float64Array],
  1280: [8, "getBigUint64", Float64Array],
};

async function unpacked(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Unsuitable(`${file.name}: damaged, it cannot be unpacked`);
  }
}

/** The affine that a header's sform gives. */
function sform(number) {
  return [...[0, 1, 2].map((row) => [0, 1, 2, 3].map((k) => number(280 + 16 * row + 4 * k))), [0, 0, 0, 1]];
}

/** The affine that a header's qform gives: a rotation by a quaternion, sizes, and an offset. */
function qform(number, sizes) {
  const [b, c, d] = [256, 260, 264].map(number);
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const rotation = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const signed = [sizes[0], sizes[1], sizes[2] * (number(76) < 0 ? -1 : 1)];
  return [
    ...rotation.map((row, k) => [...row.map((value, j) => value * signed[j]), number(268 + 4 * k)]),
    [0, 0, 0, 1],
  ];
}

/** The affine of a header that says nothing but sizes, as nibabel reads it. */
function fromSizes(sizes, shape) {
  const [x, y, z] = [-sizes[0], sizes[1], sizes[2]];
  const [i, j, k] = [x, y, z].map((size, axis) => (-size * (shape[axis] - 1)) / 2);
  return [
    [x, 0, 0, i],
    [0, y, 0, j],
    [0, 0, z, k],
    [0, 0, 0, 1],
  ];
}

/** The largest distance in mm between the corners of a volume under two affines, along an axis. */
function apart(one, other, shape) {
  let most = 0;
  for (let corner = 0; corner < 8; corner++) {
    const index = [...shape.map((n, axis) => ((corner >> axis) & 1 ? n - 1 : 0)), 1];
    for (let row = 0; row < 3; row++) {
      const between = index.reduce((sum, at, k) => sum + (one[row][k] - other[row][k]) * at, 0);
      most = Math.max(most, Math.abs(between));
    }
  }
  return most;
}

/** The affine of a header, sform before qform, and what a person should know of it. */
function affineOf(view, little, shape, name) {
  const number = (at) => view.getFloat32(at, little);
  const sizes = [80, 84, 88].map((at) => Math.abs(number(at)) || 1);
  const [hasQform, hasSform] = [252, 254].map((at) => view.getInt16(at, little) > 0);
  const notes = [];
  if (!hasQform && !hasSform) {
    notes.push(
      `${name}: its header does not say how the head lies (qform and sform are 0); it is read as nibabel ` +
        "does, with x from right to left",
    );
  }
  if (hasQform && hasSform) {
    const distance = apart(qform(number, sizes), sform(number), shape);
    if (distance > DIFFERENT) {
      notes.push(`${name}: qform and sform differ by up to ${distance.toFixed(0)} mm; sform is used`);
    }
  }
  const affine = hasSform ? sform(number) : hasQform ? qform(number, sizes) : fromSizes(sizes, shape);
  if (!affine.flat().every(Number.isFinite) || Math.abs(determinant(affine)) < 1e-12) {
    throw new Unsuitable(`${name}: its header places all voxels in one plane`);
  }
  return { affine, notes };
}

/** Whether a header is little-endian; refuses what is no NIfTI-1 in one file. */
function isLittle(bytes, view, name) {
  if (bytes.length < 352) throw new Unsuitable(`${name}: not a NIfTI image`);
  const little = view.getInt32(0, true) === 348;
  if (!little && view.getInt32(0, false) !== 348) {
    const isSecond = [true, false].some((order) => view.getInt32(0, order) === 540);
    throw new Unsuitable(
      `${name}: ${isSecond ? "NIfTI-2, which this page does not read" : "not a NIfTI image"}`,
    );
  }
  if (String.fromCharCode(...bytes.subarray(344, 347)) !== "n+1") {
    throw new Unsuitable(`${name}: its header and its values are in two files; this page reads one`);
  }
  return little;
}

/** The three lengths of a volume; refuses what is none. */
function shapeOf(view, little, name) {
  let shape = Array.from({ length: view.getInt16(40, little) }, (_, k) => view.getInt16(42 + 2 * k, little));
  while (shape.length > 3 && shape.at(-1) === 1) shape = shape.slice(0, -1);
  if (shape.length > 3) {
    throw new Unsuitable(`${name}: ${shape.length}-D, several volumes, as of a dynamic or diffusion scan`);
  }
  if (shape.length < 3 || shape.some((n) => n < 1)) throw new Unsuitable(`${name}: no volume in it`);
  return shape;
}

/** The values of a volume, scaled as its header says, and how many were no numbers and are 0 now. */
function valuesOf(bytes, view, little, n, name) {
  const type = view.getInt16(70, little);
  if (!TYPES[type]) throw new Unsuitable(`${name}: its values are not one real number a voxel`);
  const [width, get, Values] = TYPES[type];
  const begin = Math.trunc(view.getFloat32(108, little));
  if (begin + n * width > bytes.length) throw new Unsuitable(`${name}: damaged, values are missing`);
  const slope = view.getFloat32(112, little);
  const inter = view.getFloat32(116, little);
  const isScaled = Number.isFinite(slope) && slope !== 0 && (slope !== 1 || inter !== 0);
  const values = isScaled ? new Float64Array(n) : new Values(n);
  let strange = 0;
  for (let k = 0; k < n; k++) {
    let value = Number(view[get](begin + k * width, little));
    if (isScaled) value = value * slope + inter;
    if (!Number.isFinite(value)) {
      strange++;
      value = 0;
    }
    values[k] = value;
  }
  return { values, strange };
}

/**
 * The volume in a file: values with the first axis fastest, shape, affine, notes for a person, and
 * the header's bytes, for a mask that is to lie where the scan does.
 * @param {File} file
 */
export async function readNifti(file) {
  const { name } = file;
  const bytes = await unpacked(file);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = isLittle(bytes, view, name);
  const shape = shapeOf(view, little, name);
  const { affine, notes } = affineOf(view, little, shape, name);
  const { values, strange } = valuesOf(bytes, view, little, shape[0] * shape[1] * shape[2], name);
  if (strange) notes.push(`${name}: values that are no numbers are taken for 0`);
  return { name, values, shape, affine, notes, header: bytes.slice(0, 348), little };
}

/** A mask (first axis fastest) as a packed NIfTI file with a scan's header. */
export async function niftiOf(mask, scan) {
  const bytes = new Uint8Array(352 + mask.length);
  bytes.set(scan.header);
  const view = new DataView(bytes.buffer);
  const little = scan.little;
  view.setInt16(40, 3, little);
  for (let k = 0; k < 7; k++) view.setInt16(42 + 2 * k, k < 3 ? scan.shape[k] : 1, little);
  view.setInt16(70, 2, little); // uint8
  view.setInt16(72, 8, little);
  view.setFloat32(108, 352, little);
  view.setFloat32(112, 1, little);
  view.setFloat32(116, 0, little);
  view.setFloat32(124, 0, little); // range of display
  view.setFloat32(128, 0, little);
  bytes.fill(0, 148, 252); // description and name of another file
  bytes.set(mask, 352);
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Blob([await new Response(stream).arrayBuffer()], { type: "application/gzip" });
}
