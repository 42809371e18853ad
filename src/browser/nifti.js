// Read and write NIfTI files.
import { determinant } from "./geometry.js";

/** An error about a file, with a message for the person who chose it. */
export class Unsuitable extends Error {}

const DIFFERENT = 1; // mm; a corner's position may differ by this between qform and sform
// By the header's data type code: bytes per value, the method that reads a value, and the array type.
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

async function decompressed(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Unsuitable(`${file.name}: damaged, gzip cannot decompress it`);
  }
}

/** Return the affine of a header's sform. */
function sform(number) {
  return [...[0, 1, 2].map((row) => [0, 1, 2, 3].map((k) => number(280 + 16 * row + 4 * k))), [0, 0, 0, 1]];
}

/** Return the affine of a header's qform: a quaternion rotation, voxel sizes, and an offset. */
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

/** Return the affine of a header that has only voxel sizes, as nibabel does. */
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

/** Return the largest difference along an axis, in mm, between a volume's corners under two affines. */
function cornerDistance(first, second, shape) {
  let most = 0;
  for (let corner = 0; corner < 8; corner++) {
    const index = [...shape.map((n, axis) => ((corner >> axis) & 1 ? n - 1 : 0)), 1];
    for (let row = 0; row < 3; row++) {
      const shift = index.reduce(
        (sum, coordinate, k) => sum + (first[row][k] - second[row][k]) * coordinate,
        0,
      );
      most = Math.max(most, Math.abs(shift));
    }
  }
  return most;
}

/** Return the affine of a header, preferring sform to qform, and warnings about it. */
function affineOf(view, little, shape, name) {
  const number = (offset) => view.getFloat32(offset, little);
  const sizes = [80, 84, 88].map((offset) => Math.abs(number(offset)) || 1);
  const [hasQform, hasSform] = [252, 254].map((offset) => view.getInt16(offset, little) > 0);
  const notes = [];
  if (!hasQform && !hasSform) {
    notes.push(
      `${name}: its header does not give the orientation (qform and sform are 0); x is assumed to run ` +
        "from right to left, as in nibabel",
    );
  }
  if (hasQform && hasSform) {
    const distance = cornerDistance(qform(number, sizes), sform(number), shape);
    if (distance > DIFFERENT) {
      notes.push(`${name}: qform and sform differ by up to ${distance.toFixed(0)} mm; the sform is used`);
    }
  }
  const affine = hasSform ? sform(number) : hasQform ? qform(number, sizes) : fromSizes(sizes, shape);
  if (!affine.flat().every(Number.isFinite) || Math.abs(determinant(affine)) < 1e-12) {
    throw new Unsuitable(
      `${name}: the affine in its header is invalid or places all voxels in one plane; correct the header or convert the scan again`,
    );
  }
  return { affine, notes };
}

/** Return whether a header is little-endian; throw an error unless it is NIfTI-1 in a single file. */
function isLittle(bytes, view, name) {
  if (bytes.length < 352) throw new Unsuitable(`${name}: not a NIfTI image`);
  const little = view.getInt32(0, true) === 348;
  if (!little && view.getInt32(0, false) !== 348) {
    const isSecond = [true, false].some((order) => view.getInt32(0, order) === 540);
    throw new Unsuitable(
      `${name}: ${isSecond ? "NIfTI-2; this page reads only NIfTI-1" : "not a NIfTI image"}`,
    );
  }
  if (String.fromCharCode(...bytes.subarray(344, 347)) !== "n+1") {
    throw new Unsuitable(
      `${name}: header and values are in two files; this page reads only NIfTI in a single file`,
    );
  }
  return little;
}

/** Return the three lengths of a volume; throw an error if it is not one volume. */
function shapeOf(view, little, name) {
  const stored = Array.from({ length: view.getInt16(40, little) }, (_, k) =>
    view.getInt16(42 + 2 * k, little),
  );
  let shape = stored;
  while (shape.length > 3 && shape.at(-1) === 1) shape = shape.slice(0, -1);
  if (shape.length !== 3 || shape.some((n) => n < 1)) {
    const several = shape.length > 3 ? ", as in a dynamic or diffusion scan" : "";
    throw new Unsuitable(
      `${name}: expected one 3-D volume, found shape (${stored.join(", ")})${several}; use a file with one 3-D volume`,
    );
  }
  return shape;
}

/** Return the scaled values of a volume, and the number of NaN and infinite ones, replaced by 0. */
function valuesOf(bytes, view, little, n, name) {
  const type = view.getInt16(70, little);
  if (!TYPES[type])
    throw new Unsuitable(
      `${name}: its values are not one real number per voxel; convert it to one real value per voxel`,
    );
  const [width, get, Values] = TYPES[type];
  const begin = Math.trunc(view.getFloat32(108, little));
  if (begin + n * width > bytes.length) throw new Unsuitable(`${name}: damaged, values are missing`);
  const slope = view.getFloat32(112, little);
  const inter = view.getFloat32(116, little);
  const isScaled = Number.isFinite(slope) && slope !== 0 && (slope !== 1 || inter !== 0);
  const values = isScaled ? new Float64Array(n) : new Values(n);
  let nReplaced = 0;
  for (let k = 0; k < n; k++) {
    let value = Number(view[get](begin + k * width, little));
    if (isScaled) value = value * slope + inter;
    if (!Number.isFinite(value)) {
      nReplaced++;
      value = 0;
    }
    values[k] = value;
  }
  return { values, nReplaced };
}

/**
 * Return the volume in a file: values with the first axis fastest, shape, affine, warnings, and the
 * header's bytes, which a mask in the same space needs.
 * @param {File} file
 */
export async function readNifti(file) {
  const { name } = file;
  const bytes = await decompressed(file);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = isLittle(bytes, view, name);
  const shape = shapeOf(view, little, name);
  const { affine, notes } = affineOf(view, little, shape, name);
  const { values, nReplaced } = valuesOf(bytes, view, little, shape[0] * shape[1] * shape[2], name);
  if (nReplaced) notes.push(`${name}: NaN and infinite values are replaced by 0`);
  return { name, values, shape, affine, notes, header: bytes.slice(0, 348), little };
}

/** Return a mask (first axis fastest) as a gzipped NIfTI file with a scan's header. */
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
  view.setFloat32(124, 0, little); // cal_max and cal_min: display range
  view.setFloat32(128, 0, little);
  bytes.fill(0, 148, 252); // descrip and aux_file
  bytes.set(mask, 352);
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Blob([await new Response(stream).arrayBuffer()], { type: "application/gzip" });
}
