// Runs the model beside the page, which stays usable meanwhile. Messages: {id, action, ...} -> {id, result} or {id, error}.

let model, processor;

const actions = {
  /** Loads Transformers.js and a model; returns what the page has to know of it. */
  async load({ library, runtime, source, folder, dtype }) {
    const { env, AutoModelForAudioClassification, AutoProcessor } = await import(library);
    if (runtime) env.backends.onnx.wasm.wasmPaths = runtime;
    env.allowLocalModels = Boolean(folder); // a model of this page; others are on the Hub
    env.allowRemoteModels = !folder;
    if (folder) {
      env.localModelPath = folder;
      env.useBrowserCache = false; // it would keep the weights of an earlier push; the browser's own cache asks
    }
    const progress_callback = (progress) => {
      if (progress.status === "progress") self.postMessage({ progress: { loaded: progress.loaded, total: progress.total } });
    };
    await model?.dispose();
    processor = await AutoProcessor.from_pretrained(source, { progress_callback });
    model = await AutoModelForAudioClassification.from_pretrained(source, { dtype, device: "wasm", progress_callback });
    const { config } = model;
    const { sampling_rate, max_length } = processor.feature_extractor.config;
    return {
      labels: Object.keys(config.id2label).map((_, index) => config.id2label[index]),
      isMultiLabel: config.problem_type === "multi_label_classification",
      thresholds: config.decision_thresholds ?? null,
      events: config.event_detection ?? null, // how they are found; a setting per label
      frames: config.time_frames ?? null, // where time frames lie; null: a clip has one answer
      rate: sampling_rate,
      longest: (max_length - 1) * 160 + 400, // the samples that fill the features
    };
  },

  /** Classifies samples; returns the logits, or those of each time frame. */
  async classify({ samples }) {
    const { logits } = await model(await processor(samples));
    return logits.tolist()[0];
  },
};

async function answer(data) {
  try {
    self.postMessage({ id: data.id, result: await actions[data.action](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: error?.message ?? String(error) });
  }
}

let last = Promise.resolve(); // one after the other: the model that was asked for last is the one that stays
self.onmessage = ({ data }) => (last = last.then(() => answer(data)));
