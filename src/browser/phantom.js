// A synthetic head with a tumor, to try the page with. It says nothing about real patients.

const DEPTH = 24,
  SIDE = 128,
  PIXEL = 1.8,
  SPACING = 5;
const SEED = 1;
// Intensities of brain, its rim, fluid, tumor and scalp in each sequence.
const KINDS = {
  flair: [210, 235, 90, 330, 330],
  t1: [260, 240, 120, 215, 420],
  t1ce: [270, 250, 120, 235, 430],
};

/** Return a seeded generator of random numbers between 0 and 1 (mulberry32). */
function randomNumbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Return the values of one sequence, the first axis fastest, columns to the patient's left.
 * @param {number[]} kind @param {() => number} random
 */
function slicesOf([brain, rim, fluid, tumor, scalp], random) {
  const out = new Int16Array(DEPTH * SIDE * SIDE);
  let index = 0;
  for (let z = 0; z < DEPTH; z++) {
    const shrunk = Math.sqrt(Math.max(0.05, 1 - ((z - 8) / 22) ** 2));
    for (let y = 0; y < SIDE; y++) {
      for (let x = 0; x < SIDE; x++, index++) {
        const radius = Math.hypot((y - 64) / (56 * shrunk), (x - 64) / (45 * shrunk));
        const noise = random() + random() + random() - 1.5;
        let value = 10 * Math.abs(noise);
        if (radius <= 0.86) {
          const angle = Math.atan2(y - 64, x - 64);
          const isFold = radius > 0.7 && Math.cos(22 * angle + Math.sin(5 * angle + z)) > 0.75;
          const isVentricle =
            Math.hypot((Math.abs(x - 64) - 5) / 3.5, (y - 62) / 13) < 1 && Math.abs(z - 11) < 4;
          value = isFold ? fluid + 40 : isVentricle ? fluid : radius > 0.72 ? rim : brain;
          const inTumor = Math.hypot((y - 52) / 13, (x - 44) / 10, (z - 13) / 3.6);
          const share = 1 / (1 + Math.exp(14 * (inTumor - 1)));
          value = value * (1 - share) + tumor * share + 8 * noise;
        } else if (radius <= 0.94) value += 30;
        else if (radius <= 1) value += scalp;
        out[index] = Math.max(0, Math.round(value));
      }
    }
  }
  return out;
}

/** Return the example as NIfTI files, as if the user had dropped them on the page. */
export function exampleFiles() {
  const random = randomNumbers(SEED);
  return Object.entries(KINDS).map(([name, kind]) => {
    const values = slicesOf(kind, random);
    const bytes = new Uint8Array(352 + 2 * values.length);
    const view = new DataView(bytes.buffer);
    view.setInt32(0, 348, true);
    [3, SIDE, SIDE, DEPTH, 1, 1, 1, 1].forEach((n, k) => view.setInt16(40 + 2 * k, n, true));
    view.setInt16(70, 4, true); // int16
    view.setInt16(72, 16, true);
    [1, PIXEL, PIXEL, SPACING, 1, 1, 1, 1].forEach((size, k) => view.setFloat32(76 + 4 * k, size, true));
    view.setFloat32(108, 352, true);
    view.setFloat32(112, 1, true);
    bytes[123] = 2; // mm
    view.setInt16(254, 1, true);
    const affine = [
      [-PIXEL, 0, 0, 115],
      [0, -PIXEL, 0, 115],
      [0, 0, SPACING, -40],
    ];
    affine.flat().forEach((value, k) => view.setFloat32(280 + 4 * k, value, true));
    bytes.set([0x6e, 0x2b, 0x31, 0], 344); // n+1
    new Int16Array(bytes.buffer, 352).set(values); // little-endian, as browsers are
    return new File([bytes], `example_${name}.nii`);
  });
}
