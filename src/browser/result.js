// What probabilities come to at a threshold: the mask, its parts and its volume.
import { largeComponents } from "./components.js";
import { firstLevelAbove } from "./segmentation.js";

/**
 * The mask of a result at a threshold, tumor voxels of each slice, voxels of each part, volume in mL.
 * @param {{levels: Uint8Array, shape: number[], milliliters: number}} result whose
 * `milliliters` are those of a voxel
 */
export function measured({ levels, shape, milliliters }, threshold, share) {
  const [depth, height, width] = shape;
  const least = firstLevelAbove(threshold);
  const above = new Uint8Array(levels.length);
  for (let k = 0; k < levels.length; k++) above[k] = levels[k] >= least ? 1 : 0;
  const { mask, sizes } = largeComponents(above, depth, height, width, share);
  const areas = Array.from({ length: depth }, (_, at) => {
    let n = 0;
    for (let k = at * height * width; k < (at + 1) * height * width; k++) n += mask[k];
    return n;
  });
  const nVoxels = areas.reduce((sum, n) => sum + n, 0);
  return { mask, sizes, areas, nVoxels, milliliters: nVoxels * milliliters };
}
