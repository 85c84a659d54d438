// Classifies raw float32 samples in Node: node classify.mjs NODE_MODULES FOLDER DTYPE FILE... -> JSON, one entry per file.
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";

const [modules, folder, dtype, ...files] = process.argv.slice(2);
const library = resolve(modules, "@huggingface/transformers/dist/transformers.node.mjs");
const { env, pipeline } = await import(library);
env.allowRemoteModels = false;
const classify = await pipeline("audio-classification", folder, { dtype });
const found = [];
for (const file of files) {
  const bytes = await readFile(file);
  const samples = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  try {
    const { logits } = await classify.model(await classify.processor(samples));
    // There is no pipeline for time frames.
    const scores = logits.dims.length === 2 ? await classify(samples, { top_k: null }) : [];
    found.push({ scores: Object.fromEntries(scores.map(({ label, score }) => [label, score])), logits: logits.tolist()[0] });
  } catch (error) {
    found.push({ error: String(error) });
  }
}
console.log(JSON.stringify(found));
