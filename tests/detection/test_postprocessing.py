"""Tests the chosen settings of events, and what unsure time does to the metrics."""

import numpy as np
import pytest

from training.base.event_detection import step_times
from training.data.events import Event
from training.detection.metrics import find_all, frame_precisions, score_events, without_unsure
from training.detection.postprocessing import choose_settings
from training.detection.recordings import Stretch

HOP_S = 0.1


def events_of(*times: tuple, label: str = "a") -> list[Event]:
    return [Event(*pair, label) for pair in times]


def test_frames_that_nobody_knows_count_for_nothing():
    targets = np.array([[0.0, 1.0], [1.0, 1.0], [np.nan, 1.0]])
    scores = np.array([[0.1, 0.5], [0.9, 0.5], [1.0, 0.5]])
    found = frame_precisions([scores[:1], scores[1:]], [targets[:1], targets[1:]])
    assert found[0] == 1.0 and np.isnan(found[1])


def noisy_scores(events: list[Event], num_frames: int, rng, flicker: float) -> np.ndarray:
    """Scores of 0.7 within events and 0.1 outside, with single frames that are wrong."""
    starts_s, ends_s = step_times(num_frames, HOP_S)
    scores = np.full(num_frames, 0.1)
    for event in events:
        scores[(starts_s < event.offset_s - 1e-6) & (ends_s > event.onset_s + 1e-6)] = 0.7
    wrong = rng.random(num_frames) < flicker
    wrong &= ~np.roll(wrong, 1)
    return np.where(wrong, 0.8 - scores, scores)


def test_settings_remove_flicker_and_fit_each_label():
    rng, names = np.random.default_rng(0), ["a", "b", "c"]
    events = [
        events_of((2.0, 4.0), (6.0, 8.0)) + events_of((1.0, 3.0), label="b"),
        events_of((1.0, 3.0)) + events_of((5.0, 9.0), label="b"),
    ]
    wanted = [Stretch("x.wav", f"{index}.wav", 10.0, tuple(own)) for index, own in enumerate(events)]
    scores, edges = [], []
    for own in events:
        columns = [noisy_scores([e for e in own if e.label == "a"], 100, rng, 0.06)]
        columns.append(0.2 * noisy_scores([e for e in own if e.label == "b"], 100, rng, 0.0))
        scores.append(np.stack([*columns, rng.random(100)], axis=1))
        edges.append(np.arange(101) * HOP_S)

    def f1_of(settings: dict) -> list[float]:
        per_class = score_events(find_all(scores, edges, names, settings), wanted, names, 0.2)["per_class"]
        return [per_class[name]["event_f1"] for name in names[:2]]

    settings = choose_settings(scores, edges, wanted, names, 0.2)
    plain = f1_of({"high": 0.5})
    assert plain[0] < 0.7 and plain[1] == 0
    assert f1_of(settings) == [1.0, 1.0]
    assert settings["median_steps"][0] > 1 == settings["median_steps"][1]
    assert settings["high"][1] < 0.15 < settings["high"][0]
    assert settings["high"][2] == pytest.approx(np.median(settings["high"][:2]))  # no event: the others' middle
    assert choose_settings(scores, edges, [one._replace(events=()) for one in wanted], names, 0.2) is None


def test_events_in_unsure_stretches_count_for_nothing():
    unsure = events_of((1.0, 2.0), (1.5, 3.0), (6.0, 6.5))
    found = events_of((0.0, 1.5), (0.0, 2.1), (2.9, 3.2), (5.9, 6.6), (7.0, 8.0), (6.2, 6.2))
    kept = [event[:2] for event in without_unsure(found, unsure)]
    assert kept == [(0.0, 1.5), (2.9, 3.2), (7.0, 8.0), (6.2, 6.2)]
    assert without_unsure(found, []) == found
