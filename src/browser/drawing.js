// Draw a slice and its mask for the viewer, as page/drawing.py does in Python.
import { SEQUENCES } from "./segmentation.js";

const QUALITY = 0.8; // WebP quality, 0 to 1

/** Return the border of a mask (H, W) as a path of short lines between midpoints of pixel edges. */
export function outline(mask, height, width) {
  const inside = (y, x) => y >= 0 && x >= 0 && y < height && x < width && mask[y * width + x];
  const parts = [];
  // For each square between four pixel centers: its corners, and where the border crosses its sides.
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      const corners = [inside(y - 1, x - 1), inside(y - 1, x), inside(y, x), inside(y, x - 1)].map(Boolean);
      const sides = [
        [x, y - 0.5],
        [x + 0.5, y],
        [x, y + 0.5],
        [x - 0.5, y],
      ];
      const crossed = sides.filter((_, k) => corners[k] !== corners[(k + 1) % 4]);
      for (let k = 0; k + 1 < crossed.length; k += 2) {
        const [[x1, y1], [x2, y2]] = crossed.slice(k, k + 2);
        parts.push(`M${x1} ${y1}L${x2} ${y2}`);
      }
    }
  }
  return parts.join("");
}

/** Return all pixels of a mask as a path with a rectangle for each horizontal run. */
export function area(mask, height, width) {
  const parts = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      const begin = x;
      while (x < width && mask[y * width + x]) x++;
      parts.push(`M${begin} ${y}h${x - begin}v1h${begin - x}z`);
    }
  }
  return parts.join("");
}

/** Return the tumor area of each slice as a step plot: a path from (0, 1) to (n, 1). */
export function bars(areas) {
  const highest = Math.max(1, ...areas);
  return `M0 1${areas.map((n) => `V${(1 - n / highest).toFixed(3)}h1`).join("")}V1`;
}

/** Return one sequence of the slice `index`, drawn with `width` × `height` pixels, as a data URI. */
function picture(result, index, channel, width, height) {
  const [, rows, columns] = result.shape;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const pixels = new ImageData(columns, rows);
  const from = index * rows * columns;
  for (let k = 0; k < rows * columns; k++) {
    pixels.data.fill(result.images[3 * (from + k) + channel], 4 * k, 4 * k + 3);
    pixels.data[4 * k + 3] = 255;
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").drawImage(small, 0, 0, width, height);
  return canvas.toDataURL("image/webp", QUALITY);
}

/** Return the mask of a slice resized to (height, width), by nearest neighbor. */
export function squared(mask, rows, columns, height, width) {
  const out = new Uint8Array(height * width);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * rows) / height) * columns;
    for (let x = 0; x < width; x++)
      out[y * width + x] = mask[row + Math.floor(((x + 0.5) * columns) / width)];
  }
  return out;
}

/** A slice for the viewer; its pictures and paths are computed on demand. */
export class ShownSlice {
  #views = [];

  constructor(result, index) {
    this.result = result;
    this.index = index;
    const [, rows, columns] = result.shape;
    const [, y, x] = result.voxel;
    this.size = [Math.round((columns * x) / Math.min(x, y)), Math.round((rows * y) / Math.min(x, y))];
  }

  get views() {
    return SEQUENCES.map((name, channel) => {
      if (this.result.missing.includes(name)) return "";
      return (this.#views[channel] ??= picture(this.result, this.index, channel, this.size[0], this.size[1]));
    });
  }

  get paths() {
    const [, rows, columns] = this.result.shape;
    const [width, height] = this.size;
    const stored = this.result.now.mask.subarray(
      this.index * rows * columns,
      (this.index + 1) * rows * columns,
    );
    const mask = squared(stored, rows, columns, height, width);
    return { prediction: outline(mask, height, width), right: area(mask, height, width) };
  }

  get words() {
    const n = this.result.now.areas[this.index];
    const [, y, x] = this.result.voxel;
    return n ? `Tumor area: ${((n * x * y) / 100).toFixed(1)} cm²` : "No tumor";
  }
}
