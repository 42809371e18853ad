// The web worker. Its first message has the runtime and the model; later ones have files to segment.
import * as ort from "onnxruntime-web/wasm";
import { readNifti, Unsuitable } from "./nifti.js";
import { NAMES, segment } from "./segmentation.js";

/** @type {Promise<ort.InferenceSession>} */
let starting;

/** Decode base64 text and decompress it with gzip; return the bytes. */
async function decompressed(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let k = 0; k < letters.length; k++) bytes[k] = letters.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start(runtime, model) {
  ort.env.wasm.wasmBinary = await decompressed(runtime);
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  return ort.InferenceSession.create(await decompressed(model), { executionProviders: ["wasm"] });
}

/** Return the series of the files, and warnings about unreadable sequences other than FLAIR. */
async function readFiles(files) {
  const series = {};
  const notes = [];
  for (const sequence of Object.keys(NAMES)) {
    if (!files[sequence]) continue;
    try {
      series[sequence] = await readNifti(files[sequence]);
    } catch (error) {
      if (sequence === "flair" || !(error instanceof Unsuitable)) throw error;
      notes.push(`${NAMES[sequence]} is not used: ${error.message}`);
    }
  }
  return { series, notes };
}

self.onmessage = async ({ data }) => {
  if (data.model) {
    starting = start(data.runtime, data.model);
    starting.catch(() => {}); // the error is reported when files arrive
    return;
  }
  try {
    const session = await starting;
    const { series, notes } = await readFiles(data.files);
    const { header, little, shape } = series.flair;
    const { input, output } = data.description;
    const run = async (slices, n, size) => {
      const tensor = new ort.Tensor("uint8", slices, [n, size, size, 3]);
      return (await session.run({ [input.name]: tensor }))[output.name].data;
    };
    let done = 0;
    const onProgress = (_, n) => self.postMessage({ done: ++done, n });
    const result = await segment(series, data.description, run, onProgress);
    result.warnings.unshift(...notes);
    const buffers = [result.images.buffer, result.levels.buffer];
    self.postMessage({ result, scan: { header, little, shape } }, { transfer: buffers });
  } catch (error) {
    if (error instanceof Unsuitable) self.postMessage({ error: error.message });
    else self.postMessage({ error: `Unexpected error: ${error.message ?? error}`, isBroken: true });
  }
};
