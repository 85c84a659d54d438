"""
Tests events on synthetic field recordings: what background and thresholds are worth.

Three hours of noise hold calls of five kinds at known times, one of them none. Four models learn from short clips of
recordings of the same kind by `train_hf.py`, and `predict_hf.py` finds the events.
"""

import itertools
import json

import numpy as np
import pytest
import scipy.signal
import soundfile
from tiny_runs import TINY, train

import predict_hf
from training.data.events import Event, read_events, write_events
from training.prepare import background

RATE = 8000
KINDS = ("rising", "falling", "trill", "warble", "buzz")
RECIPE = {
    "sampling_rate": RATE, "max_length": 200, "frequency_stride": 16, "time_stride": 16, "pooling": ["mean", "max"],
    "config_overrides": TINY["config_overrides"] | {"hidden_size": 32, "intermediate_size": 64},
    "num_train_epochs": 25, "per_device_train_batch_size": 16, "learning_rate": 4e-3, "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1, "compute_statistics": True, "mean": None, "std": None, "html_report": False, "seed": 0,
    "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
}  # fmt: skip
COLLAR_S = 1.0


def call(kind: str, seconds: float, pitch: float) -> np.ndarray:
    """Returns a call of root mean square 1: (samples,)"""
    times = np.arange(round(seconds * RATE)) / RATE
    sweep = {"rising": 1 + 0.6 * times / seconds, "falling": 1.6 - 0.6 * times / seconds, "trill": 1.5, "buzz": 0.25}
    hz = 1400 * pitch * sweep.get(kind, 1 + 0.25 * np.sign(np.sin(2 * np.pi * 4 * times)))
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, times.shape)) / RATE
    wave = sum(np.sin(n * phase) / n for n in range(1, 9)) if kind == "buzz" else np.sin(phase)
    wave = wave * (1 + np.sin(2 * np.pi * 15 * times)) if kind == "trill" else wave
    wave = wave * scipy.signal.windows.tukey(len(times), 0.2)
    return wave / np.sqrt(np.mean(wave**2))


def recording(path, seconds: int, num_calls: int, rng: np.random.Generator) -> list[Event]:
    """Writes noise whose level and colour drift, with clicks, and calls two seconds apart; returns the calls."""
    noise = rng.standard_normal(seconds * RATE, dtype=np.float32)
    low = scipy.signal.lfilter([0.3], [1, -0.9], noise).astype(np.float32)
    knots = np.arange(0, seconds + 11, 10)
    share, level_db = (
        np.interp(np.arange(seconds * RATE) / RATE, knots, rng.uniform(*ends, len(knots))).astype(np.float32)
        for ends in ((0, 1), (-6, 6))
    )
    samples = 0.02 * 10 ** (level_db / 20) * (share * noise + (1 - share) * low)
    for start in rng.integers(0, len(samples) - 400, seconds // 5):  # rain
        samples[start : start + 400] += 0.2 * rng.standard_normal(400) * np.exp(-np.arange(400) / 50)
    events, slots = [], rng.permutation(seconds // 5 - 1)[:num_calls]
    for slot in slots:
        kind, duration_s = str(rng.choice(KINDS)), rng.uniform(1, 2.5)
        start = round((5 * slot + rng.uniform(0, 0.5)) * RATE)
        wave = call(kind, duration_s, rng.uniform(0.9, 1.1)) * 0.02 * 10 ** (rng.uniform(-3, 9) / 20)
        samples[start : start + len(wave)] += wave
        events.append(Event(start / RATE, start / RATE + len(wave) / RATE, kind))
    soundfile.write(path, np.clip(samples, -1, 1), RATE, subtype="PCM_16")
    return sorted(events)


def matches(found: list[Event], wanted: list[Event]) -> int:
    """
    Counts calls that an event of their kind fits, each event once: beginnings differ by at most a second, ends by at
    most a second or half of the call (sed_eval's rule for events).
    """
    left, count = list(found), 0
    for true in wanted:
        end_s = max(COLLAR_S, 0.5 * (true.offset_s - true.onset_s))
        for event in left:
            is_near = abs(event.onset_s - true.onset_s) <= COLLAR_S and abs(event.offset_s - true.offset_s) <= end_s
            if event.label == true.label and is_near:
                left.remove(event)
                count += 1
                break
    return count


def test_the_matcher_counts_each_event_once():
    wanted = [Event(1.0, 2.0, "a"), Event(2.5, 7.5, "a"), Event(1.0, 2.0, "b")]
    assert matches(wanted, wanted) == 3
    assert matches([Event(1.9, 2.9, "a"), Event(1.0, 2.0, "a")], wanted) == 1
    assert matches([Event(2.5, 5.1, "a")], wanted) == 1 and matches([Event(2.5, 4.9, "a")], wanted) == 0
    assert matches([Event(1.0, 2.0, "c"), Event(2.1, 2.0, "b")], wanted) == 0


# Those of docs/guides/events.md: an event of a single window, which lasts the hop of half a second, is none.
SETTINGS = ["--threshold", 0.7, "--low_threshold", 0.3, "--min_duration_s", 1, "--max_gap_s", 0.5]
MULTI = ["--problem_type", "multi_label_classification"]


@pytest.mark.slow
def test_an_empty_hour_has_no_events(tmp_path, capsys):
    """Prints the table of docs/guides/events.md."""
    rng = np.random.default_rng(0)
    for folder in ("known", "field"):
        (tmp_path / folder).mkdir()
    known = {f"{index}.wav": recording(tmp_path / "known" / f"{index}.wav", 240, 30, rng) for index in range(10)}
    write_events(tmp_path / "known.txt", known)
    hours = {"first": 150, "second": 150, "empty": 0}
    field = {f"{name}.wav": recording(tmp_path / "field" / f"{name}.wav", 3600, n, rng) for name, n in hours.items()}
    clips = {True: tmp_path / "clips.csv", False: tmp_path / "calls.csv"}
    background.program([str(tmp_path / "known.txt"), str(tmp_path / "known"), "--output", str(clips[True])])
    lines = clips[True].read_text().splitlines(keepends=True)
    clips[False].write_text("".join(line for line in lines if ",background," not in line))
    (tmp_path / "recipe.yaml").write_text(json.dumps(TINY | RECIPE))
    results = {}
    for is_multi, with_background in itertools.product((False, True), repeat=2):
        model = tmp_path / f"{is_multi}-{with_background}"
        words = ["--train_file", clips[with_background], "--output_dir", model, "--label_column", "label"]
        words += ["--start_column", "start", "--end_column", "end", "--group_column", "group"]
        words += ([*MULTI, "--none_label", "background"] if with_background else MULTI) if is_multi else []
        train(str(tmp_path / "recipe.yaml"), *map(str, words))
        words = [model, tmp_path / "field", "--window_s", 2, "--hop_s", 0.5, "--batch_size", 64]
        words += ["--events", f"{model}.json", *SETTINGS]
        assert predict_hf.main(list(map(str, words))) == 0
        found = {path.rsplit("/", 1)[1]: own for path, own in read_events(f"{model}.json").items()}
        true = sum(matches(found[file], field[file]) for file in field)
        f1 = 2 * true / (sum(map(len, found.values())) + sum(map(len, field.values())))
        empty = found["empty.wav"]
        results[is_multi, with_background] = f1, len(empty)
    with capsys.disabled():
        print()
        for (is_multi, with_background), (f1, count) in results.items():
            kind = "several labels, thresholds" if is_multi else "one label (softmax)"
            print(f"| {kind} | {'with' if with_background else 'without'} | {f1:.2f} | {count} |")
    for is_multi in (False, True):
        f1, count = results[is_multi, True]
        assert f1 > 0.9 > results[is_multi, False][0] and count == 0
