// Scale and pad slices to the square that the network takes, and back, as in scans/fitting.py. The
// arithmetic is that of Pillow's reduce and resize.

const STRIDE = 32; // because an encoder halves a slice five times
const PRECISION = 22; // bits of Pillow's weights

/** Return height and width, scaled so that the longer one is `imageSize`. */
export function fittedSize(height, width, imageSize) {
  const scale = imageSize / Math.max(height, width);
  return [height, width].map((n) => Math.max(1, roundHalfEven(n * scale)));
}

/** Round a number as Python and NumPy do: halves go to the even number. */
export function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

export const paddedSize = (imageSize) => Math.ceil(imageSize / STRIDE) * STRIDE;

/**
 * Return the rounded means of blocks of pixels; blocks at the right and lower border may be smaller.
 * @param {Uint8Array} pixels (H, W, C) @returns {{pixels: Uint8Array, height: number, width: number}}
 */
export function reduce(pixels, height, width, channels, factorY, factorX) {
  const rows = Math.ceil(height / factorY);
  const columns = Math.ceil(width / factorX);
  const out = new Uint8Array(rows * columns * channels);
  for (let row = 0; row < rows; row++) {
    const yEnd = Math.min((row + 1) * factorY, height);
    for (let column = 0; column < columns; column++) {
      const xEnd = Math.min((column + 1) * factorX, width);
      const n = (yEnd - row * factorY) * (xEnd - column * factorX);
      const multiplier = Math.floor(2 ** 24 / n);
      for (let channel = 0; channel < channels; channel++) {
        let sum = Math.floor(n / 2);
        for (let y = row * factorY; y < yEnd; y++) {
          for (let x = column * factorX; x < xEnd; x++) sum += pixels[(y * width + x) * channels + channel];
        }
        out[(row * columns + column) * channels + channel] = Math.floor((sum * multiplier) / 2 ** 24);
      }
    }
  }
  return { pixels: out, height: rows, width: columns };
}

/** Return for each of `nOut` pixels its first input pixel, and the weights from there on. */
function weights(nIn, nOut, length) {
  const scale = length / nOut;
  const filterScale = Math.max(scale, 1);
  return Array.from({ length: nOut }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - filterScale + 0.5));
    const end = Math.min(nIn, Math.trunc(center + filterScale + 0.5));
    const found = [];
    for (let k = first; k < end; k++) {
      found.push(Math.max(0, 1 - Math.abs((k - center + 0.5) / filterScale)));
    }
    const sum = found.reduce((a, b) => a + b, 0);
    return { first, weights: found.map((w) => Math.trunc(0.5 + (w / sum) * 2 ** PRECISION)) };
  });
}

/**
 * Resize pixels (H, W, C) with a triangle filter; downscaling is antialiased.
 * `box` is the height and width of the part of the input to use; they need not be integers.
 */
export function resize(pixels, height, width, channels, newHeight, newWidth, box = [height, width]) {
  let current = pixels;
  let columns = width;
  if (newWidth !== width || box[1] !== newWidth) {
    const taps = weights(width, newWidth, box[1]);
    const out = new Uint8Array(height * newWidth * channels);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < newWidth; x++) {
        const { first, weights: kernel } = taps[x];
        for (let c = 0; c < channels; c++) {
          let sum = 2 ** (PRECISION - 1);
          for (let k = 0; k < kernel.length; k++)
            sum += current[(y * width + first + k) * channels + c] * kernel[k];
          out[(y * newWidth + x) * channels + c] = Math.min(255, Math.floor(sum / 2 ** PRECISION));
        }
      }
    }
    current = out;
    columns = newWidth;
  }
  if (newHeight !== height || box[0] !== newHeight) {
    const taps = weights(height, newHeight, box[0]);
    const out = new Uint8Array(newHeight * columns * channels);
    const stride = columns * channels;
    for (let y = 0; y < newHeight; y++) {
      const { first, weights: kernel } = taps[y];
      for (let x = 0; x < stride; x++) {
        let sum = 2 ** (PRECISION - 1);
        for (let k = 0; k < kernel.length; k++) sum += current[(first + k) * stride + x] * kernel[k];
        out[y * stride + x] = Math.min(255, Math.floor(sum / 2 ** PRECISION));
      }
    }
    current = out;
  }
  return current;
}

/** Return a slice (H, W, C) scaled to `imageSize` and padded below and to the right, (S, S, C). */
export function fit(pixels, height, width, channels, imageSize) {
  const [rows, columns] = fittedSize(height, width, imageSize);
  let scaled = pixels;
  if (rows !== height || columns !== width) {
    const factorX = Math.trunc(width / columns) || 1;
    const factorY = Math.trunc(height / rows) || 1;
    let current = { pixels, height, width };
    if (factorX > 1 || factorY > 1) {
      current = reduce(pixels, height, width, channels, factorY, factorX);
    }
    const box = [height / factorY, width / factorX].map(Math.fround); // Pillow stores them as float32
    scaled = resize(current.pixels, current.height, current.width, channels, rows, columns, box);
  }
  const size = paddedSize(imageSize);
  const out = new Uint8Array(size * size * channels);
  for (let y = 0; y < rows; y++) {
    out.set(scaled.subarray(y * columns * channels, (y + 1) * columns * channels), y * size * channels);
  }
  return out;
}

/** Return for each of `nOut` positions its two input neighbors, and the weight of the second. */
function interpolation(nOut, nIn) {
  return Array.from({ length: nOut }, (_, index) => {
    const position = Math.min(Math.max(((index + 0.5) * nIn) / nOut - 0.5, 0), nIn - 1);
    const below = Math.floor(position);
    return { below, above: Math.min(below + 1, nIn - 1), weight: position - below };
  });
}

/**
 * Return values (S, S) of a fitted slice at the slice's original size (H, W), bilinear. `resized` is
 * the slice's height and width when it was fitted, if it had been resized before.
 */
export function unfit(fitted, size, height, width, imageSize, resized = [height, width]) {
  const [rows, columns] = fittedSize(resized[0], resized[1], imageSize);
  const vertical = interpolation(height, rows);
  const horizontal = interpolation(width, columns);
  const out = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const { below, above, weight } = vertical[y];
    for (let x = 0; x < width; x++) {
      const h = horizontal[x];
      const upper =
        fitted[below * size + h.below] * (1 - h.weight) + fitted[below * size + h.above] * h.weight;
      const lower =
        fitted[above * size + h.below] * (1 - h.weight) + fitted[above * size + h.above] * h.weight;
      out[y * width + x] = upper * (1 - weight) + lower * weight;
    }
  }
  return out;
}
