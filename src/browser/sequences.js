// Recognize the sequence of a file by its name, as scans/sequences.py does and with its words.

/**
 * @typedef {object} Words Words in lower case, by their meaning.
 * @property {string[]} no_scan @property {string[]} flair @property {string[]} t1
 * @property {string[]} t1_contrast @property {string[]} contrast
 * @property {string[]} contrast_after_t1 @property {string[]} no_contrast @property {string[]} others
 * @property {Record<string, string>} alone @property {string} without @property {string} bids_entity
 */

/** Return the words of a name, without BIDS entities such as the subject. @param {Words} words */
function wordsOf(name, words) {
  const lower = name.toLowerCase();
  const without = new RegExp(words.without, "g");
  let text = lower.replaceAll("_", " ").replace(without, "unenhanced");
  if (name.startsWith("sub-")) {
    text = lower.replace(new RegExp(words.bids_entity, "g"), "").replace(without, "unenhanced");
    text = text.replace(/(?:^|_)ce-[^_]*/g, "_gadolinium");
  }
  text = text.replace(/dark[-_. ]fluid|\bda[-_ ]?fl\b/g, "darkfluid");
  return text.split(/[^a-z0-9]+/).filter(Boolean);
}

/**
 * Return the sequence of a BIDS name by its suffix, "" if the page does not use it, or undefined if the
 * name is not BIDS.
 * @param {string} stem @param {Words} words
 */
function bidsSequence(stem, words) {
  const parts = stem.toLowerCase().split("_");
  const suffix = parts.pop() ?? "";
  if (!stem.startsWith("sub-") || !["flair", "t1w", "t2w"].includes(suffix)) return undefined;
  const entity = (key) => parts.find((part) => part.startsWith(`${key}-`))?.slice(key.length + 1);
  if ((entity("part") ?? "mag") !== "mag" || suffix === "t2w") return "";
  if (suffix === "flair") return "flair";
  const agents = [...words.contrast, ...words.contrast_after_t1, ...words.t1_contrast];
  const acquisition = (entity("acq") ?? "").split(/[^a-z0-9]+/);
  const enhanced = (entity("ce") ?? "none") !== "none" || acquisition.some((word) => agents.includes(word));
  return enhanced ? "post_contrast" : "pre_contrast";
}

/**
 * Return the sequence that the name of a NIfTI file indicates: "" if the page does not use it, null if
 * the name does not indicate one.
 * @param {string} name @param {Words} words @returns {string | null}
 */
export function sequenceOf(name, words) {
  const stem = name.replace(/\.nii(\.gz)?$/i, "");
  const fromBids = bidsSequence(stem, words);
  if (fromBids !== undefined) return fromBids;
  const found = wordsOf(stem, words);
  const first = (known) => {
    const index = found.findIndex((word) => known.includes(word));
    return index < 0 ? found.length : index;
  };
  if (first(words.no_scan) < found.length) return "";
  const flair = first(words.flair),
    t1 = first([...words.t1, ...words.t1_contrast]);
  if (flair < t1) return "flair"; // the first word decides
  if (t1 < found.length) {
    const has = (known, from = 0) => found.slice(from).some((word) => known.includes(word));
    const enhanced = has(words.contrast) || has(words.contrast_after_t1, t1 + 1);
    const isContrast = words.t1_contrast.includes(found[t1]);
    return isContrast || (enhanced && !has(words.no_contrast)) ? "post_contrast" : "pre_contrast";
  }
  if (first(words.others) < found.length) return "";
  return found.length === 1 ? (words.alone[found[0]] ?? null) : null;
}
