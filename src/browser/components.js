// Connected components of a volume, as in scans/volume.py.

/**
 * Return the component labels of a mask (D, H, W), from 1, and the size of each. Voxels are connected
 * through their faces.
 * @param {Uint8Array} mask
 */
export function components(mask, depth, height, width) {
  const labels = new Int32Array(mask.length);
  const sizes = [];
  const area = height * width;
  const pending = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || labels[start]) continue;
    const label = sizes.length + 1;
    let size = 0;
    pending.push(start);
    labels[start] = label;
    while (pending.length) {
      const index = pending.pop();
      size++;
      const x = index % width,
        y = Math.floor(index / width) % height,
        z = Math.floor(index / area);
      const visit = (next) => {
        if (mask[next] && !labels[next]) {
          labels[next] = label;
          pending.push(next);
        }
      };
      if (x > 0) visit(index - 1);
      if (x < width - 1) visit(index + 1);
      if (y > 0) visit(index - width);
      if (y < height - 1) visit(index + width);
      if (z > 0) visit(index - area);
      if (z < depth - 1) visit(index + area);
    }
    sizes.push(size);
  }
  return { labels, sizes };
}

/**
 * Return the mask of the components with at least `share` of the largest one's voxels, and their sizes.
 * @param {Uint8Array} mask
 */
export function largeComponents(mask, depth, height, width, share) {
  const { labels, sizes } = components(mask, depth, height, width);
  const least = share * Math.max(0, ...sizes);
  const kept = new Uint8Array(mask.length);
  for (let k = 0; k < labels.length; k++) kept[k] = labels[k] && sizes[labels[k] - 1] >= least ? 1 : 0;
  return { mask: kept, sizes: sizes.filter((size) => size >= least).sort((a, b) => b - a) };
}
