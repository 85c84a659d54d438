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

/** The mean of the windows' logits, per class. */
export function meanLogits(windows) {
  return windows[0].logits.map((_, index) => windows.reduce((sum, { logits }) => sum + logits[index], 0) / windows.length);
}

/** What thresholds are compared with: of one label per clip the winning class alone; "background" is no event. */
function eventScores({ scores }, { labels, isMultiLabel }) {
  const winner = scores.indexOf(Math.max(...scores));
  return scores.map((score, index) => (labels[index] !== "background" && (isMultiLabel || index === winner) ? score : 0));
}

/**
 * Events in windows ({start, end, scores}, in order), by the rules of `EventFinder` in training/base/event_detection.py:
 * an event begins above `high`, goes on above `low` (one of each per class), and windows share their overlap half and
 * half. Gaps of at most `gap` seconds are closed, then events below `shortest` seconds left out.
 */
export function findEvents(windows, model, { high, low, shortest, gap }) {
  const rows = windows.map((window) => eventScores(window, model));
  const borders = windows.map(({ start }, place) => (place ? (windows[place - 1].end + start) / 2 : start));
  borders.push(windows.at(-1).end);
  const events = [];
  for (const index of model.labels.keys()) {
    let event = null;
    let isActive = false;
    for (const [place, scores] of rows.entries()) {
      const wasActive = isActive;
      isActive = scores[index] > (wasActive ? low : high)[index];
      if (!isActive) continue;
      if (!event || !(wasActive || borders[place] - event.end <= gap + TOLERANCE)) {
        event = { index, start: borders[place], score: 0 };
        events.push(event);
      }
      event.end = borders[place + 1];
      event.score = Math.max(event.score, scores[index]);
    }
  }
  const long = ({ start, end }) => end > start && end - start >= shortest - TOLERANCE;
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
