"""
Tests that the metrics of sound events are those of the field's own libraries: sed_scores_eval, sed_eval and psds_eval.

They are needed for this comparison alone, and skipped where they are not installed: `make test-metrics` installs them.
"""

import numpy as np
import pandas
import pytest
from random_events import random_annotations, random_scores

from training.base.detection_scores import PSDS, detection_metrics, event_metrics

pytestmark = pytest.mark.filterwarnings("ignore")
LABELS = ["dog", "rain", "voice", "bell"]
SEEDS = range(12)


class WritableFrame(pandas.DataFrame):
    """Gives arrays that may be written to: pandas 3 protects them, and sed_scores_eval 0.0.4 asks for others."""

    _constructor = property(lambda self: WritableFrame)

    def to_numpy(self, *args, **kwargs):
        return np.array(super().to_numpy(*args, **kwargs))


def triples(events) -> list[tuple]:
    return [event[:3] for event in events]


@pytest.mark.parametrize("seed", SEEDS)
def test_psds_is_that_of_sed_scores_eval(seed):
    """All thresholds, ties, recordings of different lengths and without events, and frames of different lengths."""
    library = pytest.importorskip("sed_scores_eval")
    rng = np.random.default_rng(seed)
    durations_s = {f"{index}.wav": float(rng.integers(4, 30)) for index in range(6)}
    annotations = random_annotations(rng, durations_s, LABELS)
    scores = random_scores(rng, durations_s, annotations, LABELS, is_coarse=seed % 2 == 0)
    found = detection_metrics(scores, annotations, durations_s, LABELS)
    occurring = [label for label in LABELS if any(e.label == label for own in annotations.values() for e in own)]
    frames = {}
    for name, (values, edges) in scores.items():
        table = {"onset": edges[:-1], "offset": edges[1:]}
        frames[name] = WritableFrame(table | {label: values[:, LABELS.index(label)] for label in occurring})
    for name, scenario in PSDS.items():
        crossing = {"cttc_threshold": scenario.crossing} if scenario.cross_weight else {}
        value, single, *_ = library.intersection_based.psds(
            scores=frames,
            ground_truth={name: triples(own) for name, own in annotations.items()},
            audio_durations=durations_s,
            dtc_threshold=scenario.detection,
            gtc_threshold=scenario.coverage,
            alpha_ct=scenario.cross_weight,
            alpha_st=1.0,
            max_efpr=100.0,
            **crossing,
        )
        assert found["metrics"][name] == pytest.approx(value, abs=1e-9)
        assert found["metrics"][f"{name}_macro"] == pytest.approx(np.mean(list(single.values())), abs=1e-9)
        for label in occurring:
            assert found["per_class"][label][name] == pytest.approx(single[label], abs=1e-9), label


@pytest.mark.parametrize("segment_s", [1.0, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_events_and_segments_are_those_of_sed_eval(seed, segment_s):
    library = pytest.importorskip("sed_eval")
    rng = np.random.default_rng(seed)
    durations_s = {f"{index}.wav": 20.0 for index in range(5)}
    wanted = random_annotations(rng, durations_s, LABELS)
    predicted = random_annotations(rng, durations_s, LABELS, near=wanted)
    found = event_metrics(predicted, wanted, durations_s, LABELS, segment_s=segment_s)
    events = library.sound_event.EventBasedMetrics(LABELS, t_collar=0.2, percentage_of_length=0.2)
    segments = library.sound_event.SegmentBasedMetrics(LABELS, time_resolution=segment_s)
    for name in wanted:
        sides = (
            [{"event_onset": e.onset_s, "event_offset": e.offset_s, "event_label": e.label, "file": name} for e in own]
            for own in (wanted[name], predicted[name])
        )
        sides = list(sides)
        events.evaluate(*sides)
        segments.evaluate(*sides)
    for kind, theirs in (("event", events), ("segment", segments)):
        overall = theirs.results_overall_metrics()
        for name, their_name in (("precision", "precision"), ("recall", "recall"), ("f1", "f_measure")):
            value = overall["f_measure"][their_name]
            assert found["metrics"][f"{kind}_{name}_micro"] == pytest.approx(value, abs=1e-12, nan_ok=True)
            for label, own in theirs.results_class_wise_metrics().items():
                expected = own["f_measure"][their_name]
                if name == "f1" and np.isnan(expected):
                    expected = 0.0  # sed_eval has no F1 for a label that is predicted or annotated, and not both
                    if not own["count"]["Nref"] + own["count"]["Nsys"]:
                        expected = np.nan
                ours = found["per_class"][label][f"{kind}_{name}"]
                assert ours == pytest.approx(expected, abs=1e-12, nan_ok=True), (label, name)
    value = segments.results_overall_metrics()["error_rate"]["error_rate"]
    assert found["metrics"]["segment_error_rate"] == pytest.approx(value, abs=1e-12)
    for label, own in segments.results_class_wise_metrics().items():
        if own["count"]["Nref"]:
            expected = own["error_rate"]["error_rate"]
            assert found["per_class"][label]["segment_error_rate"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_intersection_based_f1_is_that_of_psds_eval(seed):
    library = pytest.importorskip("psds_eval")
    rng = np.random.default_rng(seed)
    durations_s = {f"{index}.wav": 20.0 for index in range(5)}
    # With 9 decimals no event is covered by exactly a half, which psds_eval compares without a tolerance.
    wanted = random_annotations(rng, durations_s, LABELS, decimals=9)
    annotated = sorted({event.label for own in wanted.values() for event in own})
    predicted = random_annotations(rng, durations_s, annotated, near=wanted, decimals=9)
    names = ["filename", "onset", "offset", "event_label"]
    tables = [
        pandas.DataFrame([(name, *event[:3]) for name, own in side.items() for event in own], columns=names)
        for side in (wanted, predicted)
    ]
    lengths = pandas.DataFrame(list(durations_s.items()), columns=["filename", "duration"])
    evaluation = library.PSDSEval(0.5, 0.5, 0.3, ground_truth=tables[0], metadata=lengths)
    _, single = evaluation.compute_macro_f_score(tables[1])
    single = {label: np.nan_to_num(value) for label, value in single.items()}  # it has no F1 for a label without hits
    found = event_metrics(predicted, wanted, durations_s, annotated)
    for label in annotated:
        assert found["per_class"][label]["intersection_f1"] == pytest.approx(single[label], abs=1e-9), label
    expected = np.mean([single[label] for label in annotated])
    assert found["metrics"]["intersection_f1_macro"] == pytest.approx(expected, abs=1e-9)
