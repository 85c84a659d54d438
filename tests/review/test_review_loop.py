"""Tests the whole loop: errors are planted in annotations, suspected by a detector, corrected, merged, trained on."""

import json
from collections import Counter

import numpy as np
import pandas
import pytest
import soundfile
from annotated_tones import RATE, write_annotated_tones
from tiny_runs import TINY_DETECTION

import train_hf
from training.data.events import Event, read_events, write_events
from training.review import __main__ as review
from training.review.candidates import SUSPECTED

TRAINING = TINY_DETECTION | {"crops_per_epoch": 96, "num_train_epochs": 15, "test_fraction": 0}
OTHERS = {"high": "low", "low": "high"}
NOISE = 0.1
SHARE = 0.12  # of the events that get each kind of error


def plant(truth: dict[str, list[Event]], rng: np.random.Generator) -> tuple[dict[str, list[Event]], dict]:
    """
    Returns annotations with errors; and the errors: (recording, event as it is annotated, or `None`) -> true event, or
    `None`.
    """
    wrong, planted = {}, {}
    for name, events in truth.items():
        own = []
        for event in events:
            others = [one for one in events if one.label != event.label]
            is_alone = all(one.offset_s <= event.onset_s or one.onset_s >= event.offset_s for one in others)
            kind = rng.choice(["missing", "swapped", ""], p=[SHARE, SHARE, 1 - 2 * SHARE])
            annotated = event if kind != "missing" else None
            if kind == "swapped" and is_alone:
                annotated = event._replace(label=OTHERS[event.label])
            own += [] if annotated is None else [annotated]
            if annotated != event:
                planted[name, annotated, event] = "missing" if annotated is None else "swapped"
        for label in OTHERS:  # a phantom where nothing of the label is near
            onset_s = round(float(rng.uniform(0.1, 3.4)), 3)
            phantom = Event(onset_s, round(onset_s + 0.3, 3), label)
            near = [one for one in events if one.onset_s < phantom.offset_s + 0.15 and one.offset_s > onset_s - 0.15]
            if not any(one.label == label for one in near):
                own.append(phantom)
                planted[name, phantom, None] = "phantom"
        wrong[name] = own
    return wrong, planted


def true_event(row: dict, annotated: dict, truth: dict) -> Event | None:
    """Returns what really is where a candidate is: what somebody who listens to it would answer; `None`: nothing."""
    times, events = (float(row["onset_s"]), float(row["offset_s"])), truth[row["file"]]
    if row["annotated"]:
        return next((one for one in events if one[:2] == times), None)
    shared = [one for one in events if one.label == row["label"] and one not in annotated[row["file"]]]
    shared = [one for one in shared if min(one.offset_s, times[1]) > max(one.onset_s, times[0])]
    return shared[0] if shared else None


def error_of(row: dict, annotated: dict, truth: dict) -> tuple | None:
    """Returns the planted error that a candidate shows; `None`: it shows none."""
    true, times = true_event(row, annotated, truth), (float(row["onset_s"]), float(row["offset_s"]))
    own = [one for one in annotated[row["file"]] if row["annotated"] and one[:3] == (*times, row["annotated"])]
    error = (row["file"], own[0] if own else None, true)
    return None if error[1] == error[2] else error


@pytest.mark.slow
def test_planted_errors_are_suspected_corrected_and_trained_on(tmp_path, capsys):
    """A detector that learnt wrong annotations of one half of the recordings reviews those of the other half."""
    halves = {}
    for seed, half in enumerate(("a", "b")):
        rng = np.random.default_rng(seed + 10)
        truth = read_events(write_annotated_tones(tmp_path / half, num_recordings=30, seed=seed))
        truth = {f"r{number}.wav": truth.get(f"r{number}.wav", []) for number in range(30)}
        for name in truth:  # tones are weak, or nothing would be uncertain
            samples, _ = soundfile.read(tmp_path / half / name)
            noisy = 0.3 * samples + NOISE * rng.standard_normal(len(samples))
            soundfile.write(tmp_path / half / name, noisy, RATE)
        wrong, planted = plant(truth, rng)
        write_events(tmp_path / f"{half}.csv", wrong)
        halves[half] = truth, wrong, planted
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(TRAINING))

    def train(name: str, annotations, recordings, *words) -> int:
        paths = ["--train_annotations", annotations, "--recordings", recordings, "--output_dir", tmp_path / name]
        return train_hf.main(list(map(str, [recipe, *paths, *words])))

    assert train("model", tmp_path / "a.csv", tmp_path / "a") == 0
    table, half = tmp_path / "candidates.csv", tmp_path / "b"
    words = ["--annotations", tmp_path / "b.csv", "--output", table, "--limit", 1000, "--device", "cpu"]
    assert review.main(list(map(str, [tmp_path / "model", half, *words]))) == 0

    truth, wrong, planted = halves["b"]
    rows = pandas.read_csv(table, keep_default_na=False, dtype=str).to_dict("records")
    errors = [error_of(row, wrong, truth) for row in rows]
    suspected = [error for row, error in zip(rows, errors) if row["reason"] in SUSPECTED]
    # A swapped event is also found where the true label is said to be missing.
    right = [error for error in planted if {error, (error[0], None, error[2])} & set(suspected)]
    precision = sum(error is not None for error in suspected) / len(suspected)
    recall = len(right) / len(planted)
    kinds = Counter(planted[error] for error in right), Counter(planted.values())
    shown = ", ".join(f"{kinds[0][kind]} of {kinds[1][kind]} {kind}" for kind in sorted(kinds[1]))
    with capsys.disabled():
        print(f"\n{len(planted)} errors among {sum(map(len, wrong.values()))} events: {len(suspected)} suspected,")
        print(f"precision {precision:.2f}, recall {recall:.2f} ({shown});")
        print(f"{sum(error is not None for error in errors)} of all {len(rows)} candidates show errors")
    assert precision >= 0.9 and recall >= 0.65

    for row in rows:  # somebody listens to all candidates
        true = true_event(row, wrong, truth)
        row["review"] = "no" if true is None else true.label
        row["onset_s"], row["offset_s"] = true[:2] if true is not None else (row["onset_s"], row["offset_s"])
    pandas.DataFrame(rows).to_csv(table, index=False)
    merged = tmp_path / "merged.csv"
    words = ["merge", half, table, "--annotations", tmp_path / "b.csv", "--output", merged]
    assert review.main(list(map(str, words))) == 0
    wanted = {name: set(events) for name, events in wrong.items()}
    for name, annotated, true in set(errors) - {None}:
        wanted[name] = wanted[name] - {annotated} | {true} - {None}
    found = {name: set(events) for name, events in read_events(merged).items()}
    assert found == wanted
    left = sum(len(found[name] ^ set(events)) for name, events in truth.items())
    before = sum(len(set(wrong[name]) ^ set(events)) for name, events in truth.items())
    with capsys.disabled():
        print(f"wrong or missing events before: {before}, after the corrections: {left}")
    assert left <= 0.1 * before
    words = ["--model_name_or_path", tmp_path / "model", "--num_train_epochs", 1, "--exclude_labels", "unsure"]
    overrides = [f"--{name}=" for name in ("config_overrides", "max_length", "frequency_stride", "time_stride")]
    assert train("second", merged, half, *words, "--compute_statistics", "false", *overrides) == 0
