// The page: inputs, the recording in windows, results. Labels and names of files are only ever set as text.

import {
  atLeastOneFrame, clock, eventsAsAudacity, eventsAsCsv, findEvents, firstFrames, joinFrames, probabilities, tickStep,
  wholeLogits, windowStarts, windowsAsCsv,
} from "./analysis.js";

const ROWS = 10; // classes to show
const LARGEST = 500e6; // bytes of a file: decoded, it has to fit into the memory
const $ = (id) => document.getElementById(id);
const settings = await (await fetch("space.json")).json();

// ---- the worker ----

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let requests = 0;

function ask(action, values, transfer = []) {
  const id = ++requests;
  worker.postMessage({ id, action, ...values }, transfer);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

worker.onmessage = ({ data }) => {
  if (data.progress) return showProgress(data.progress.loaded / data.progress.total);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  return "error" in data ? reject(new Error(data.error)) : resolve(data.result);
};
worker.onerror = (event) => {
  for (const { reject } of waiting.values()) reject(new Error(event.message ?? "the worker cannot be loaded"));
  waiting.clear();
};

let loaded = null; // {key, model}: a promise of what the worker reports about its model

function loadModel() {
  const chosen = settings.models[$("model").selectedIndex];
  const dtype = $("dtype").value;
  const key = `${chosen.source} ${dtype}`;
  if (loaded?.key !== key) {
    say(`Loading ${chosen.name} …`);
    const at = (path) => new URL(path, document.baseURI).href;
    const folder = chosen.isLocal ? at("./") : null;
    const library = at(settings.library);
    const runtime = settings.runtime ? at(settings.runtime) : null;
    const model = ask("load", { library, runtime, source: chosen.source, folder, dtype }).catch((error) => {
      loaded = null;
      throw new Error(`The model cannot be loaded (${error.message}). Check the connection, and try again.`);
    });
    model.then(({ frames }) => ($("window").disabled = Boolean(frames)), () => {}); // its frames lie in whole windows
    loaded = { key, model };
  }
  return loaded.model;
}

// ---- audio: mono samples at the model's rate ----

async function decode(bytes, rate) {
  let buffer;
  try {
    buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes); // it resamples, too
  } catch {
    throw new Error("This browser cannot decode the file. Convert it to WAV, FLAC, MP3 or Ogg.");
  }
  const mono = buffer.getChannelData(0).slice();
  for (let channel = 1; channel < buffer.numberOfChannels; channel++) {
    buffer.getChannelData(channel).forEach((value, index) => (mono[index] += value));
  }
  return mono.map((value) => value / buffer.numberOfChannels);
}

async function resample(samples, from, to, length) {
  const context = new OfflineAudioContext(1, length, to);
  const buffer = context.createBuffer(1, samples.length, from);
  buffer.copyToChannel(samples, 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** What the microphone has recorded so far; `more` resolves with the next samples, or at the end. */
class Microphone {
  blocks = [];
  length = 0;
  isOver = false;

  async start() {
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new Error(`There is no microphone for this page (${error.message}). Allow it, or choose a file.`);
    }
    this.context = new AudioContext();
    this.rate = this.context.sampleRate;
    await this.context.audioWorklet.addModule("recorder.js");
  }

  record() {
    const node = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      this.blocks.push(data);
      this.length += data.length;
      this.wake?.();
    };
    this.context.createMediaStreamSource(this.stream).connect(node);
  }

  stop() {
    this.isOver = true;
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") this.context.close();
    this.wake?.();
  }

  more() {
    return new Promise((resolve) => (this.wake = resolve));
  }

  /** Samples recorded so far, at another rate. */
  lengthAt(rate) {
    return Math.floor((this.length * rate) / this.rate);
  }

  /** `count` samples from `start`, both at `rate`. */
  async samples(start, count, rate) {
    const first = Math.round((start * this.rate) / rate);
    const last = Math.min(Math.round(((start + count) * this.rate) / rate), this.length);
    const joined = new Float32Array(Math.max(last - first, 1));
    let place = 0;
    for (const block of this.blocks) {
      const from = Math.max(first - place, 0);
      const to = Math.min(last - place, block.length);
      if (from < to) joined.set(block.subarray(from, to), place + from - first);
      place += block.length;
    }
    return this.rate === rate ? joined : resample(joined, this.rate, rate, count);
  }
}

// ---- the analysis ----

let run = 0; // an analysis ends when another begins
let input = null; // the last one, which other settings are applied to: {name, decode(rate), address}
let microphone = null;
let result = null; // {model, windows, seconds, thresholds, events}

const windowOf = (model) => {
  const wanted = Math.round(Number($("window").value) * model.rate);
  return wanted > 0 ? Math.min(Math.max(wanted, 400), model.longest) : model.longest;
};

/** The windows of a recording of `length` samples: their size, hop and first samples. */
function layout(model, length) {
  const { frames } = model;
  if (frames) {
    const starts = firstFrames(length, frames).map((first) => first * frames.step);
    return { window: frames.length, hop: frames.hop * frames.step, starts };
  }
  const window = windowOf(model);
  const hop = Math.max(Math.round(window / 2), 1);
  return { window, hop, starts: windowStarts(length, window, hop) };
}

/** Adds what the model says of a window, or of its time frames; the recording ends with it so far. */
async function classify(found, samples, start) {
  const logits = await ask("classify", { samples: atLeastOneFrame(samples) });
  found.length = start + samples.length;
  found.read.push({ start, end: found.length, logits });
}

/** Windows or time frames with their scores, in seconds. */
function windowsOf({ model, read, length }) {
  const { rate, frames, isMultiLabel } = model;
  const windows = frames
    ? joinFrames(read.map(({ start, logits }) => ({ first: start / frames.step, rows: logits })), { ...frames, rate }, length)
    : read.map(({ start, end, logits }) => ({ start: start / rate, end: end / rate, logits }));
  return windows.map((window) => ({ ...window, scores: probabilities(window.logits, isMultiLabel) }));
}

async function analyse() {
  const current = ++run;
  begin(input.name);
  const model = await loadModel();
  if (current !== run) return;
  say("Decoding …");
  const samples = await input.decode(model.rate);
  if (!samples.length) throw new Error("The recording is empty. Choose another.");
  if (input.address) {
    $("player").hidden = false;
    $("player").src = input.address;
  }
  const { window, starts } = layout(model, samples.length);
  const found = { model, read: [], seconds: samples.length / model.rate };
  let shown = 0; // when the results were last brought up to date
  for (const [index, start] of starts.entries()) {
    say(`Window ${index + 1} of ${starts.length}`);
    showProgress(index / starts.length);
    await classify(found, samples.slice(start, start + window), start);
    if (current !== run) return;
    if (index === 0 || performance.now() - shown > 500) {
      show(found);
      shown = performance.now();
    }
  }
  show(found);
  end(`${input.name}: ${clock(found.seconds)}, ${starts.length} ${starts.length === 1 ? "window" : "windows"}`);
}

async function listen() {
  const current = ++run;
  begin("microphone");
  const own = (microphone = new Microphone());
  try {
    say("Waiting for the microphone …");
    await own.start();
    const model = await loadModel();
    if (current !== run || own.isOver) return end("");
    own.record();
    const { window, hop } = layout(model, 0);
    const found = { model, read: [], seconds: 0 };
    const add = async (start, length) => {
      await classify(found, await own.samples(start, length, model.rate), start);
      found.seconds = found.length / model.rate;
      if (current === run) show(found);
    };
    let start = 0;
    while (current === run) {
      const length = own.lengthAt(model.rate);
      if (start + window <= length) {
        await add(start, window);
        start += hop;
      } else if (own.isOver) {
        break;
      } else {
        say(`Recording: ${clock(own.length / own.rate)}. A result every ${(hop / model.rate).toFixed(1)} s, after the first window.`);
        await own.more();
      }
    }
    if (current !== run) return;
    const length = own.lengthAt(model.rate);
    if (!length) throw new Error("The microphone gave no sound. Record for longer.");
    const last = layout(model, length).starts.at(-1);
    if (!found.read.length || last > start - hop) await add(last, Math.min(window, length - last));
    input = { name: "microphone", address: null, decode: (rate) => own.samples(0, own.lengthAt(rate), rate) };
    end(`microphone: ${clock(found.seconds)}`);
  } finally {
    own.stop();
  }
}

// ---- the results ----

/** Settings of events per class: what is typed in, else the model's own. A threshold replaces both of the model's. */
function eventRules(model) {
  const typed = (id) => ($(id).value === "" ? null : Number($(id).value));
  const own = model.events ?? { high: model.isMultiLabel ? model.thresholds : null };
  const setting = (name, value, otherwise) => model.labels.map((_, index) => value ?? own[name]?.[index] ?? otherwise);
  const high = setting("high", typed("threshold"), 0.5);
  const low = setting("low", typed("low") ?? typed("threshold"), Infinity).map((value, index) => Math.min(value, high[index]));
  const [shortest, gap] = [setting("min_duration_s", typed("shortest"), 0), setting("max_gap_s", typed("gap"), 0)];
  return { high, low, shortest, gap, median: setting("median_steps", null, 1) };
}

function show(found) {
  result = found;
  const { model } = found;
  const windows = (found.windows = windowsOf(found));
  const rules = eventRules(model);
  const thresholds = (found.thresholds = rules.high);
  const events = (found.events = findEvents(windows, model, rules));
  const whole = probabilities(wholeLogits(windows, Boolean(model.frames)), model.isMultiLabel);
  const highest = model.labels.map((_, index) => windows.reduce((most, { scores }) => Math.max(most, scores[index]), 0));
  const order = model.labels.map((_, index) => index).sort((a, b) => highest[b] - highest[a]);
  $("results").hidden = false;
  const isFound = (index) => (model.frames ? events.some((event) => event.index === index) : whole[index] > thresholds[index]);
  $("answer").textContent = answer(model, whole, isFound);
  $("classes").tBodies[0].replaceChildren(
    ...order.slice(0, ROWS).map((index) => {
      const canvas = document.createElement("canvas");
      const place = windows.findIndex(({ scores }) => scores[index] === highest[index]);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `highest at ${clock(windows[place].start)}`);
      canvas.dataset.index = index;
      return row(heading(model.labels[index]), whole[index].toFixed(3), canvas, highest[index].toFixed(3));
    }),
  );
  $("no-events").hidden = events.length > 0;
  $("events").hidden = events.length === 0;
  $("events").tBodies[0].replaceChildren(
    ...events.map(({ index, start, end, score }) =>
      row(heading(model.labels[index]), moment(start), clock(end), score.toFixed(3)),
    ),
  );
  draw();
}

function answer(model, whole, isFound) {
  const name = (index) => `${model.labels[index]} ${whole[index].toFixed(3)}`;
  if (!model.isMultiLabel && !model.frames) return name(whole.indexOf(Math.max(...whole)));
  const found = whole.map((_, index) => index).filter(isFound);
  return found.length ? found.map(name).join(", ") : "None of the classes is above its threshold in the whole recording.";
}

function heading(text) {
  const element = document.createElement("th");
  element.scope = "row";
  element.textContent = text;
  return element;
}

function row(first, ...cells) {
  const element = document.createElement("tr");
  element.append(first);
  for (const content of cells) element.insertCell().append(content);
  return element;
}

/** A time, from which the recording can be played. */
function moment(seconds) {
  if ($("player").hidden) return clock(seconds);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = clock(seconds);
  button.title = "Play from here";
  button.onclick = () => {
    $("player").currentTime = seconds;
    $("player").play();
  };
  return button;
}

/** Makes a link's file when it is clicked. */
function offer(id, make) {
  $(id).onclick = () => {
    URL.revokeObjectURL($(id).href);
    const text = make(result);
    $(id).href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  };
}

/** Draws every class's scores. A window stands for the time that is nearer to its middle than to others'. */
function draw() {
  if (!result) return;
  const { windows, seconds, thresholds, events } = result;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const middles = windows.map(({ start, end }) => (start + end) / 2);
  const edges = [0, ...middles.slice(1).map((middle, index) => (middle + middles[index]) / 2), seconds];
  for (const canvas of $("classes").querySelectorAll("canvas")) {
    const { context, width, height } = fit(canvas);
    if (!("index" in canvas.dataset)) {
      drawAxis(context, width, seconds);
      continue;
    }
    const index = Number(canvas.dataset.index);
    const own = events.filter((event) => event.index === index);
    windows.forEach(({ scores }, place) => {
      const [left, right] = [edges[place], edges[place + 1]].map((time) => (time / seconds) * width);
      const top = height * (1 - scores[index]);
      const isEvent = own.some(({ start, end }) => start < middles[place] && middles[place] < end);
      context.fillStyle = colour(isEvent ? "--event" : "--score");
      context.fillRect(left, top, right - left + 0.5, height - top);
    });
    context.strokeStyle = colour("--soft");
    context.setLineDash([4, 4]);
    context.strokeRect(-1, height * (1 - thresholds[index]), width + 2, height * 2);
  }
}

function drawAxis(context, width, seconds) {
  context.fillStyle = getComputedStyle(document.body).color;
  context.font = "12px system-ui, sans-serif";
  const step = tickStep(seconds, Math.max(Math.floor(width / 70), 1));
  for (let tick = 0; tick * step <= seconds; tick++) {
    const x = (tick * step * width) / seconds;
    context.fillRect(x, 0, 1, 4);
    context.textAlign = x < 10 ? "left" : x > width - 20 ? "right" : "center";
    const time = clock(tick * step);
    context.fillText(step < 1 ? time : time.slice(0, -2), x, 16);
  }
}

function fit(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  return { context, width, height };
}

// ---- what is said meanwhile ----

const say = (text) => ($("status").textContent = text);

function showProgress(share) {
  $("progress").hidden = !(share < 1);
  $("progress").value = share;
}

function begin(name) {
  result = null;
  $("results").hidden = $("error").hidden = true;
  $("stop").hidden = false;
  $("microphone").disabled = true;
  $("player").hidden = true;
  $("player").removeAttribute("src");
  say(name);
}

function end(text) {
  say(text);
  showProgress(1);
  $("stop").hidden = true;
  $("microphone").disabled = false;
}

/** Runs an analysis, and says what went wrong. */
async function attempt(work) {
  microphone?.stop();
  const current = run + 1;
  try {
    await work();
  } catch (error) {
    if (current !== run) return; // another has begun
    end("");
    $("error").textContent = error.message;
    $("error").hidden = false;
  }
}

// ---- the inputs ----

function useFile(file) {
  if (input?.address?.startsWith("blob:")) URL.revokeObjectURL(input.address);
  const address = URL.createObjectURL(file);
  const read = async (rate) => {
    if (file.size > LARGEST) throw new Error(`The file has more than ${LARGEST / 1e6} MB. Cut it into parts.`);
    return decode(await file.arrayBuffer(), rate);
  };
  input = { name: file.name, address, decode: read };
  attempt(analyse);
}

function useExample(path) {
  const address = path.split("/").map(encodeURIComponent).join("/");
  const read = async (rate) => {
    const response = await fetch(address);
    if (!response.ok) throw new Error(`${path} cannot be fetched (${response.status})`);
    return decode(await response.arrayBuffer(), rate);
  };
  input = { name: path.split("/").at(-1), address, decode: read };
  attempt(analyse);
}

function option(text, value) {
  const element = document.createElement("option");
  element.textContent = text;
  element.value = value;
  return element;
}

function offerWeights() {
  const names = { q8: "8 bits, the smallest", fp16: "16 bits", fp32: "32 bits, as in Python" };
  const { sizes } = settings.models[$("model").selectedIndex];
  const size = (dtype) => (sizes ? `: ${(sizes[dtype] / 1e6).toFixed(1)} MB` : "");
  $("dtype").replaceChildren(...Object.keys(names).map((dtype) => option(names[dtype] + size(dtype), dtype)));
}

offer("csv", ({ events, model }) => eventsAsCsv(events, model.labels));
offer("audacity", ({ events, model }) => eventsAsAudacity(events, model.labels));
offer("windows", ({ windows, model }) => windowsAsCsv(windows, model.labels));
$("model").replaceChildren(...settings.models.map(({ name, source }) => option(name, source)));
$("model-choice").hidden = settings.models.length === 1;
$("example").append(...settings.examples.map((address) => option(address.split("/").at(-1), address)));
$("example-choice").hidden = settings.examples.length === 0;
offerWeights();
$("model").onchange = () => {
  offerWeights();
  if (input) attempt(analyse);
};
$("dtype").onchange = $("window").onchange = () => input && attempt(analyse);
for (const id of ["threshold", "low", "shortest", "gap"]) $(id).oninput = () => result && show(result);
$("file").onchange = () => $("file").files.length && useFile($("file").files[0]);
$("example").onchange = () => $("example").value && useExample($("example").value);
$("microphone").onclick = () => attempt(listen);
$("stop").onclick = () => {
  if (microphone && !microphone.isOver) return microphone.stop();
  run++;
  end("Stopped.");
};
$("settings").onsubmit = (event) => event.preventDefault();
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
document.body.dataset.ready = "true";
