// Compute mask, components and volume at a threshold.
import { largeComponents } from "./components.js";
import { firstLevelAbove } from "./segmentation.js";

/**
 * Return the mask at a threshold, the voxel counts of its slices and components, and its volume in mL.
 * @param {{levels: Uint8Array, shape: number[], milliliters: number}} result `milliliters` is the volume
 * of a voxel
 */
export function measured({ levels, shape, milliliters }, threshold, share) {
  const [depth, height, width] = shape;
  const least = firstLevelAbove(threshold);
  const above = new Uint8Array(levels.length);
  for (let k = 0; k < levels.length; k++) above[k] = levels[k] >= least ? 1 : 0;
  const { mask, sizes } = largeComponents(above, depth, height, width, share);
  const areas = Array.from({ length: depth }, (_, index) => {
    let n = 0;
    for (let k = index * height * width; k < (index + 1) * height * width; k++) n += mask[k];
    return n;
  });
  const nVoxels = areas.reduce((sum, n) => sum + n, 0);
  return { mask, sizes, areas, nVoxels, milliliters: nVoxels * milliliters };
}
