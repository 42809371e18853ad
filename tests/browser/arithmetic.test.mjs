// Tests of the page's code that need no browser: arithmetic, geometry, NIfTI, drawing.
import assert from "node:assert/strict";
import { test } from "node:test";
import { largeComponents } from "../../src/browser/components.js";
import { area, bars, outline, squared } from "../../src/browser/drawing.js";
import { fit, fittedSize, paddedSize, roundHalfEven, unfit } from "../../src/browser/fitting.js";
import { axialOf, chooseField, resampled, tilt, turn, turnBack } from "../../src/browser/geometry.js";
import { distinct, normalizer, tissueStatistics } from "../../src/browser/intensity.js";
import { niftiOf, readNifti, Unsuitable } from "../../src/browser/nifti.js";
import { exampleFiles } from "../../src/browser/phantom.js";
import { measured } from "../../src/browser/result.js";
import { firstLevelAbove } from "../../src/browser/segmentation.js";

const IDENTITY = [
  [1, 0, 0, 0],
  [0, 1, 0, 0],
  [0, 0, 1, 0],
  [0, 0, 0, 1],
];

test("halves are rounded to the even number", () => {
  assert.deepEqual([0.5, 1.5, 2.5, 2.4, -0.5].map(roundHalfEven), [0, 2, 2, 2, 0]);
});

test("half the size is the mean of 2 × 2 pixels, rounded", () => {
  const pixels = Uint8Array.from({ length: 64 * 64 }, (_, k) => (7 * k) % 256);
  const fitted = fit(pixels, 64, 64, 1, 32);
  const mean = (y, x) => [0, 1, 64, 65].reduce((sum, k) => sum + pixels[2 * y * 64 + 2 * x + k], 0) / 4;
  assert.equal(fitted.length, 32 * 32);
  for (const [y, x] of [
    [0, 0],
    [5, 9],
    [31, 31],
  ]) {
    assert.equal(fitted[y * 32 + x], Math.floor(mean(y, x) + 0.5));
  }
});

test("a slice that is not square is padded below and to the right", () => {
  assert.deepEqual(fittedSize(10, 20, 40), [20, 40]);
  assert.equal(paddedSize(40), 64);
  const fitted = fit(new Uint8Array(10 * 20).fill(9), 10, 20, 1, 40);
  assert.equal(fitted[19 * 64 + 39], 9);
  assert.equal(fitted[20 * 64], 0);
  assert.equal(fitted[40], 0);
});

test("a plane of values is restored to the slice's size", () => {
  const size = 32;
  const plane = Float32Array.from({ length: size * size }, (_, k) => Math.floor(k / size) + 10 * (k % size));
  const back = unfit(plane, size, 64, 64, size);
  assert.equal(back[33 * 64 + 20], 16.25 + 10 * 9.75);
});

test("components with at least a share of the largest one's voxels are kept", () => {
  const mask = Uint8Array.from([1, 1, 1, 0, 1, 1, 0, 1]); // a row of 3, of 2 and of 1
  assert.deepEqual([...largeComponents(mask, 1, 1, 8, 0.5).mask], [1, 1, 1, 0, 1, 1, 0, 0]);
  assert.deepEqual(largeComponents(mask, 1, 1, 8, 0.5).sizes, [3, 2]);
  assert.deepEqual(largeComponents(mask, 8, 1, 1, 1).sizes, [3]);
  assert.deepEqual(largeComponents(new Uint8Array(8), 1, 1, 8, 0.5).sizes, []);
});

test("tissue is brighter than the mean, and its 99th percentile becomes 191", () => {
  const values = Int16Array.from({ length: 200 }, (_, k) => (k < 100 ? 0 : k));
  const statistics = tissueStatistics(distinct(values));
  assert.deepEqual([statistics.median, statistics.p99], [149, 198]);
  const level = normalizer(statistics, "percentile");
  assert.deepEqual([0, 198, 1000, -5].map(level), [0, 191, 255, 0]);
  assert.equal(tissueStatistics(distinct(new Int16Array(9).fill(7))), null);
});

test("volumes with all 48 orders and directions of axes have the same axial slices", () => {
  const orders = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
  ];
  const lengths = [3, 4, 5]; // along x, y and z
  for (const order of orders) {
    for (let signs = 0; signs < 8; signs++) {
      const shape = order.map((axis) => lengths[axis]);
      const affine = IDENTITY.map((row) => row.map(() => 0));
      order.forEach((axis, k) => (affine[axis][k] = (signs >> k) & 1 ? -1 : 1));
      const values = new Int32Array(60);
      for (let k = 0; k < 60; k++) {
        const index = [
          k % shape[0],
          Math.floor(k / shape[0]) % shape[1],
          Math.floor(k / shape[0] / shape[1]),
        ];
        const position = [0, 1, 2].map((axis) => {
          const at = order.indexOf(axis);
          return affine[axis][at] < 0 ? lengths[axis] - 1 - index[at] : index[at];
        });
        values[k] = position[0] + 10 * position[1] + 100 * position[2];
      }
      const axial = axialOf(affine);
      const slices = turn(values, shape, axial);
      const expected = [];
      for (let z = 0; z < 5; z++) {
        for (let y = 3; y >= 0; y--) for (let x = 2; x >= 0; x--) expected.push(x + 10 * y + 100 * z);
      }
      assert.deepEqual([...slices], expected);
      assert.deepEqual(turnBack(slices, shape, axial), values);
    }
  }
  assert.equal(tilt(IDENTITY), 0);
});

test("another grid is interpolated, and voxels that it does not cover are 0", () => {
  const values = Float32Array.from({ length: 4 * 4 * 4 }, (_, k) => k % 4);
  const fine = IDENTITY.map((row, i) => row.map((value, j) => (i === j && i < 3 ? 0.5 : value)));
  const found = resampled(
    { values, shape: [4, 4, 4], affine: IDENTITY },
    { shape: [12, 2, 2], affine: fine },
  );
  assert.deepEqual([...found.values.slice(0, 12)], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3, 3, 0, 0, 0]);
  assert.equal(found.covered, 0.75);
});

test("the field of view is the whole slice, or is centered on the head", () => {
  const tissue = new Uint8Array(100 * 100);
  for (let y = 30; y < 50; y++) tissue.fill(1, y * 100 + 60, y * 100 + 80);
  const whole = chooseField(tissue, [1, 100, 100], [2.3, 2.3], 230);
  assert.deepEqual([whole.top, whole.left, whole.height, whole.width], [0, 0, 100, 100]);
  const cropped = chooseField(tissue, [1, 100, 100], [5, 5], 230);
  assert.deepEqual([cropped.top, cropped.left, cropped.height, cropped.width], [17, 47, 46, 46]);
});

test("the example is NIfTI, and a mask written with its header can be read", async () => {
  const files = exampleFiles();
  assert.deepEqual(
    files.map((file) => file.name),
    ["example_flair.nii", "example_t1.nii", "example_t1ce.nii"],
  );
  const scan = await readNifti(files[0]);
  assert.deepEqual(scan.shape, [128, 128, 24]);
  assert.deepEqual(
    scan.affine[0].map((value) => Number(value.toFixed(4))),
    [-1.8, 0, 0, 115],
  );
  assert.ok(scan.values.some((value) => value > 300));
  const mask = Uint8Array.from(scan.values, (value) => (value > 300 ? 1 : 0));
  const blob = await niftiOf(mask, scan);
  const back = await readNifti(new File([blob], "mask.nii.gz"));
  assert.deepEqual([back.shape, back.affine], [scan.shape, scan.affine]);
  assert.deepEqual([...back.values], [...mask]);
});

test("values are scaled by the header's slope and intercept, also in big-endian files", async () => {
  const bytes = new Uint8Array(352 + 16);
  const view = new DataView(bytes.buffer);
  view.setInt32(0, 348);
  [3, 2, 2, 2].forEach((n, k) => view.setInt16(40 + 2 * k, n));
  view.setInt16(70, 4);
  [1, 2, 2, 5].forEach((size, k) => view.setFloat32(76 + 4 * k, size));
  view.setFloat32(108, 352);
  view.setFloat32(112, 0.5);
  view.setFloat32(116, 10);
  bytes.set([0x6e, 0x2b, 0x31], 344);
  for (let k = 0; k < 8; k++) view.setInt16(352 + 2 * k, 4 * k);
  const scan = await readNifti(new File([bytes], "big.nii"));
  assert.deepEqual([...scan.values], [10, 12, 14, 16, 18, 20, 22, 24]);
  assert.equal(scan.notes.length, 1); // the header does not give the orientation
});

test("a qform that differs from the sform gives a warning", async () => {
  const bytes = new Uint8Array(await exampleFiles()[0].arrayBuffer());
  new DataView(bytes.buffer).setInt16(252, 1, true); // with a quaternion and an offset of 0
  const scan = await readNifti(new File([bytes], "scan.nii"));
  assert.equal(scan.notes.length, 1);
  assert.match(scan.notes[0], /^scan\.nii: .*qform.*sform.* 342 mm/);
});

test("an unsuitable file gives an error with the reason", async () => {
  const [file] = exampleFiles();
  const bytes = new Uint8Array(await file.arrayBuffer());
  const changed = (change) => {
    const copy = bytes.slice();
    change(new DataView(copy.buffer));
    return new File([copy], "scan.nii");
  };
  const cases = [
    [new File(["no scan"], "scan.nii"), /^scan\.nii: not .*NIfTI/],
    [new File([bytes.slice(0, 900)], "scan.nii"), /^scan\.nii: damaged/],
    [new File([new Uint8Array([0x1f, 0x8b, 8, 0, 1, 2, 3])], "scan.nii.gz"), /^scan\.nii\.gz: damaged.*gzip/],
    [
      changed((view) => [4, 64, 64, 24, 4].forEach((n, k) => view.setInt16(40 + 2 * k, n, true))),
      /^scan\.nii: .*\(64, 64, 24, 4\)/,
    ],
    [changed((view) => view.setInt16(40, 2, true)), /^scan\.nii: .*volume.* \(128, 128\)/],
    [changed((view) => view.setInt16(40, 0, true)), /^scan\.nii: .*volume.* \(\)/],
    [changed((view) => view.setInt16(70, 32, true)), /^scan\.nii: .*real number/],
    [changed((view) => view.setFloat32(280, 0, true)), /^scan\.nii: .*affine/],
    [changed((view) => view.setInt32(0, 540, true)), /^scan\.nii: NIfTI-2/],
    [changed((view) => view.setUint8(345, 0x69)), /^scan\.nii: .*two files/],
  ];
  for (const [wrong, message] of cases) {
    await assert.rejects(
      readNifti(wrong),
      (error) => error instanceof Unsuitable && message.test(error.message),
    );
  }
});

test("a threshold is converted to a level of the encoded probabilities", () => {
  assert.equal(firstLevelAbove(0.5), 128);
  assert.equal(firstLevelAbove(0.9999999), 255);
  const levels = Uint8Array.from([0, 127, 128, 255]);
  const found = measured({ levels, shape: [2, 1, 2], milliliters: 1.5 }, 0.5, 0.5);
  assert.deepEqual([found.areas, found.nVoxels, found.milliliters], [[0, 2], 2, 3]);
});

test("outline, fill and steps are drawn as paths", () => {
  const mask = Uint8Array.from([0, 0, 0, 0, 1, 1, 0, 0, 0]);
  assert.equal(area(mask, 3, 3), "M1 1h2v1h-2z");
  assert.equal(outline(mask, 3, 3).match(/M/g).length, 6);
  assert.equal(bars([0, 2, 1]), "M0 1V1.000h1V0.000h1V0.500h1V1");
  assert.deepEqual([...squared(Uint8Array.from([1, 0]), 1, 2, 2, 2)], [1, 0, 1, 0]);
});
