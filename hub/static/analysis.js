// What follows from windows and scores, without the page and the model: numbers in, numbers and text out.

export const SHORTEST = 400; // samples of one frame of the features
const TOLERANCE = 1e-6; // seconds: sums of times are not exact

/** The first sample of each window: a hop apart, except the last one, which ends with the recording. */
export function windowStarts(length, window, hop) {
  const last = Math.max(length - window, 0);
  const starts = [];
  for (let start = 0; start < last; start += hop) starts.push(start);
  return [...starts, last];
}

/** The first time frame of each window of a recording, as `FrameGrid.windows` in training/base/label_frames.py. */
export function firstFrames(length, { step, frames, length: window, hop, group }) {
  const beyond = Math.ceil(Math.max(length - window, 0) / (step * group)) * group;
  return windowStarts(frames + beyond, frames, hop);
}

/**
 * Time frames ({start, end, logits}, in seconds) of windows ({first, rows}: number of the first frame, logits of each).
 * Where windows overlap, they have the mean. `length`: samples of the recording.
 */
export function joinFrames(windows, { rate, step, offset, frames }, length) {
  const joined = [];
  for (const { first, rows } of windows) {
    for (const [place, row] of rows.slice(0, frames).entries()) {
      const frame = (joined[first + place] ??= { count: 0, logits: row.map(() => 0) });
      frame.count += 1;
      row.forEach((value, index) => (frame.logits[index] += value));
    }
  }
  const held = joined.slice(0, Math.ceil(length / step)); // some models pad short recordings
  return held.map(({ count, logits }, index) => ({
    start: index ? (index * step + offset) / rate : 0,
    end: (index === held.length - 1 ? length : Math.min((index + 1) * step + offset, length)) / rate,
    logits: logits.map((sum) => sum / count),
  }));
}

/** Samples that are shorter than a frame, lengthened with zeros as in Python: after the removal of their mean. */
export function atLeastOneFrame(samples) {
  if (samples.length >= SHORTEST) return samples;
  const mean = samples.reduce((sum, value) => sum + value, 0) / samples.length;
  const longer = new Float32Array(SHORTEST);
  longer.set(samples.map((value) => value - mean));
  return longer;
}

/** Probabilities of logits, which the exported graph has divided by the model's temperature. */
export function probabilities(logits, isMultiLabel) {
  if (isMultiLabel) return logits.map((value) => 1 / (1 + Math.exp(-value)));
  const highest = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

/** The logits of a whole recording, per class: the mean of its windows, or the highest of its time frames. */
export function wholeLogits(windows, areFrames) {
  return windows[0].logits.map((_, index) => {
    const own = windows.map(({ logits }) => logits[index]);
    return areFrames ? own.reduce((a, b) => Math.max(a, b)) : own.reduce((a, b) => a + b) / own.length;
  });
}

/** What thresholds are compared with: of one label per clip the winning class alone; "background" is no event. */
function eventScores({ scores }, { labels, isMultiLabel }) {
  const winner = scores.indexOf(Math.max(...scores));
  return scores.map((score, index) => (labels[index] !== "background" && (isMultiLabel || index === winner) ? score : 0));
}

/** Median filter of odd size over numbers in time, with mirrored edges. */
function medianFiltered(values, size) {
  if (size === 1) return values;
  const reach = (size - 1) / 2;
  const mirrored = (place) => {
    const inside = ((place % (2 * values.length)) + 2 * values.length) % (2 * values.length);
    return values[inside < values.length ? inside : 2 * values.length - 1 - inside];
  };
  return values.map((_, place) => {
    const around = Float64Array.from({ length: size }, (_, index) => mirrored(place - reach + index));
    return around.sort()[reach];
  });
}

/**
 * Events in windows or time frames ({start, end, scores}, in order), by the rules of `EventFinder` in
 * training/base/event_detection.py: after a median filter of `median` steps, an event begins above `high`, goes on above
 * `low`, and windows share their overlap half and half. Gaps of at most `gap` seconds are closed, then events below
 * `shortest` seconds left out. Each setting has a value per class.
 */
export function findEvents(windows, model, { high, low, shortest, gap, median }) {
  const rows = windows.map((window) => eventScores(window, model));
  const borders = windows.map(({ start }, place) => (place ? (windows[place - 1].end + start) / 2 : start));
  borders.push(windows.at(-1).end);
  const events = [];
  for (const index of model.labels.keys()) {
    const column = rows.map((scores) => scores[index]);
    if (!column.some((score) => score > high[index])) continue; // nor is a median
    let event = null;
    let isActive = false;
    for (const [place, score] of medianFiltered(column, median[index]).entries()) {
      const wasActive = isActive;
      isActive = score > (wasActive ? low : high)[index];
      if (!isActive) continue;
      if (!event || !(wasActive || borders[place] - event.end <= gap[index] + TOLERANCE)) {
        event = { index, start: borders[place], score: 0 };
        events.push(event);
      }
      event.end = borders[place + 1];
      event.score = Math.max(event.score, score);
    }
  }
  const long = ({ index, start, end }) => end > start && end - start >= shortest[index] - TOLERANCE;
  return events.filter(long).sort((a, b) => a.start - b.start || a.end - b.end || a.index - b.index);
}

const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
const csv = (rows) => rows.map((row) => row.map(cell).join(",") + "\n").join("");

export function eventsAsCsv(events, labels) {
  const rows = events.map(({ index, start, end, score }) => [start.toFixed(3), end.toFixed(3), labels[index], score.toFixed(4)]);
  return csv([["start_s", "end_s", "label", "score"], ...rows]);
}

/** Audacity's label track: a label has no tab and no end of line. */
export function eventsAsAudacity(events, labels) {
  const line = ({ index, start, end }) => [start.toFixed(6), end.toFixed(6), labels[index].replace(/\s+/g, " ")].join("\t");
  return events.map((event) => line(event) + "\n").join("");
}

export function windowsAsCsv(windows, labels) {
  const rows = windows.map(({ start, end, scores }) => [start.toFixed(3), end.toFixed(3), ...scores.map((s) => s.toFixed(6))]);
  return csv([["start_s", "end_s", ...labels], ...rows]);
}

/** Seconds as 1:02.5 */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${String(((tenths % 600) / 10).toFixed(1)).padStart(4, "0")}`;
}

/** Seconds between the marks of a time axis, so that there are at most `most`. */
export function tickStep(seconds, most) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200];
  return steps.find((step) => seconds / step <= most) ?? seconds;
}
