"""Tests temperature and thresholds: known ones are found, scores improve, and every program uses them."""

import json

import evaluate
import numpy as np
import pandas
import pytest
import torch
from audio_files import ROOT, write_tone
from fresh_process import audio, run
from tiny_models import save_tiny_classifier, save_tiny_cnn
from tiny_runs import TINY, train
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification

import predict_hf
from modeling_dual_ssast import DualSSASTConfig, VGGishConfig
from training.classification import calibration
from training.classification.calibration import calibration_scores, choose_thresholds, fit_temperature
from training.data.labels import LabelSet

pytestmark = pytest.mark.figures

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.fixture(scope="module", autouse=True)
def few_clips_are_enough():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "MIN_CLIPS", 2)
        yield


def overconfident(problem_type: str, temperature: float, num_clips: int = 6000, seed: int = 0):
    """Logits that are `temperature` times those that the targets were drawn by."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (num_clips, 5))
    if problem_type == SINGLE:
        targets = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    else:
        targets = (logits + rng.logistic(size=logits.shape) > 0).astype(np.float32)
    return (temperature * logits).astype(np.float32), targets


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_generated_the_logits_is_found(problem_type, temperature):
    found = fit_temperature(*overconfident(problem_type, temperature), problem_type)
    assert found == pytest.approx(temperature, rel=0.05)
    logits, targets = overconfident(problem_type, temperature, seed=1)
    before, after = (calibration_scores(logits, targets, problem_type, value) for value in (1.0, found))
    assert after["expected_calibration_error"] < 0.02
    if temperature != 1:
        for name in ("expected_calibration_error", "negative_log_likelihood", "brier_score"):
            assert after[name] < 0.98 * before[name], name


def test_a_temperature_at_a_bound_is_none():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]], dtype=np.float32)
    assert fit_temperature(logits, np.array([0, 1, 0]), SINGLE) == 1.0  # all right: as sharp as can be
    assert fit_temperature(logits, np.array([1, 0, 1]), SINGLE) == 1.0  # all wrong: as flat as can be
    assert fit_temperature(np.zeros((3, 2)), np.array([1, 0, 1]), SINGLE) == 1.0  # no temperature is better


def test_scores_are_those_worked_out_by_hand():
    logits = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.38, 0.62]])
    targets = np.array([0, 1, 1, 1])
    scores = calibration_scores(logits, targets, SINGLE, 1.0)
    # Bins of 1/15: 0.62 and 0.7 have bins of their own, so have 0.8 and 0.9; one of the four is wrong.
    assert scores["expected_calibration_error"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.38) / 4, abs=1e-6)
    assert scores["brier_score"] == pytest.approx(2 * (0.01 + 0.64 + 0.09 + 0.1444) / 4, abs=1e-6)
    likelihood = -np.log([0.9, 0.2, 0.7, 0.62]).mean()
    assert scores["negative_log_likelihood"] == pytest.approx(likelihood, abs=1e-6)
    assert sum(scores["bins"]["count"]) == 4 and scores["bins"]["count"][9] == 1
    several = calibration_scores(np.log([[9.0, 1 / 9]]), np.array([[1.0, 0.0]]), MULTI, 1.0)
    assert several["expected_calibration_error"] == pytest.approx(0.1, abs=1e-6)
    assert several["brier_score"] == pytest.approx(0.01, abs=1e-6)


def skewed(seed: int, num_clips: int = 2000):
    """Rare labels whose scores seldom reach one half, and one that always does."""
    rng = np.random.default_rng(seed)
    targets = rng.random((num_clips, 3)) < [0.05, 0.1, 0.6]
    logits = rng.normal(0, 1, targets.shape) + 2 * targets - [3.0, 2.5, -1.0]
    return (1 / (1 + np.exp(-logits))).astype(np.float32), targets


def test_thresholds_beat_one_half_on_skewed_data():
    thresholds = choose_thresholds(*skewed(0))
    metric = evaluate.load(str(ROOT / "training" / "classification" / "audio_classification.py"), MULTI)
    for seed in (0, 1):  # the clips they were chosen on, and others
        scores, targets = skewed(seed)
        chosen, half = (
            metric.compute(predictions=scores, references=targets.astype(np.float32), thresholds=values)
            for values in (thresholds, None)
        )
        assert chosen["macro_f1"] > half["macro_f1"] + 0.1 and chosen["micro_f1"] > half["micro_f1"]
        assert chosen["mean_average_precision"] == half["mean_average_precision"]


def test_a_rare_class_with_tiny_scores_is_still_given():
    scores = np.array([[1e-9], [2e-8], [3e-8], [1e-10]], dtype=np.float32)
    threshold = choose_thresholds(scores, np.array([[False], [True], [True], [False]]))[0]
    assert ((scores[:, 0] > threshold) == [False, True, True, False]).all() and 0 < threshold < 1


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([0.1, 0.9, 0.95, 0.003], [1, 1, 1, 0], 0.5),  # one faint clip
        ([0.1, 0.11, 0.9, 0.95, 0.003], [1, 1, 1, 1, 0], 0.0515),  # two of them
        ([0.8, 0.9, 0.95, 0.003], [0, 1, 1, 0], 0.5),  # one false alarm
        ([0.8, 0.81, 0.9, 0.95, 0.003], [0, 0, 1, 1, 0], 0.855),
        ([0.3, 0.003], [1, 0], 0.5),  # the only clip of a class
        ([0.5, 0.4, 0.3], [1, 1, 0], 0.35),  # 0.5 is not above 0.5
    ],
)
def test_a_single_clip_moves_no_threshold(scores, targets, expected):
    found = choose_thresholds(np.array(scores)[:, None], np.array(targets)[:, None] > 0)
    assert found == pytest.approx([expected])


def test_no_threshold_has_a_higher_f1():
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(50):
        targets = rng.random((12, 1)) < 0.4
        scores = rng.random((12, 1)).round(1).astype(np.float32)
        (threshold,) = choose_thresholds(scores, targets)

        def f1(value, scores=scores, targets=targets):
            return 2 * ((scores > value) & targets).sum() / max((scores > value).sum() + targets.sum(), 1)

        best = max(f1(value) for value in np.linspace(0.01, 0.99, 99))
        assert f1(threshold) == best or threshold == 0.5
        assert f1(0.5) < best or threshold == 0.5
        if threshold == 0.5:  # as good as the best but for one clip
            changed = [np.where(np.arange(12)[:, None] == clip, targets, scores) for clip in range(12)]
            assert max(f1(0.5, values) for values in [scores, *changed]) >= best
        moved += threshold != 0.5
    assert 10 < moved < 50
    assert choose_thresholds(np.array([[0.7], [0.2]]), np.array([[False], [False]])) == [0.5]
    assert choose_thresholds(np.array([[1e-9], [0.0]]), np.array([[True], [False]]))[0] > 0


@pytest.mark.parametrize("config_class", [DualSSASTConfig, VGGishConfig])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"calibration_temperature": 0.0}, "calibration_temperature must be a positive number, got 0.0"),
        ({"calibration_temperature": float("inf")}, "calibration_temperature must be a finite number, got inf"),
        ({"calibration_temperature": "2"}, "calibration_temperature must be a positive number, got '2'"),
        ({"decision_thresholds": [0.5]}, r"a list of 3 numbers, one per label, got \[0.5\]"),
        ({"decision_thresholds": 0.5}, "a list of 3 numbers, one per label, got 0.5"),
        ({"decision_thresholds": [0.5, 0.5, 1.0]}, "above 0 and below 1, got 1.0"),
        ({"decision_thresholds": [0.5, float("nan"), 0.5]}, "above 0 and below 1, got nan"),
    ],
)
def test_impossible_calibrations_are_refused(config_class, values, message):
    with pytest.raises(ValueError, match=message):
        config_class(num_labels=3, **values)


def test_a_classifier_for_other_labels_is_not_calibrated(tmp_path):
    names = {"id2label": {0: "a", 1: "b", 2: "c"}}
    DualSSASTConfig(calibration_temperature=2.0, decision_thresholds=(0.2, 0.3, 0.4), **names).save_pretrained(tmp_path)
    for options in ({}, {"num_labels": 3}, names):
        config = AutoConfig.from_pretrained(tmp_path, **options)
        assert (config.calibration_temperature, config.decision_thresholds) == (2.0, [0.2, 0.3, 0.4])
    for options in ({"num_labels": 4}, {"id2label": {0: "a", 1: "b", 2: "d"}}):
        config = AutoConfig.from_pretrained(tmp_path, **options)
        assert (config.calibration_temperature, config.decision_thresholds) == (1.0, None)
    assert AutoConfig.from_pretrained(tmp_path, calibration_temperature=3.0).calibration_temperature == 3.0


REMOTE = """
folder, expected = sys.argv[1], np.load(sys.argv[2])
model, extractor = load(AutoModelForAudioClassification, folder), load(AutoFeatureExtractor, folder)
assert model.config.calibration_temperature == 2.5 and model.config.decision_thresholds == [0.3, 0.5, 0.9], model.config
features = extractor(expected["audio"], sampling_rate=extractor.sampling_rate, return_tensors="pt")
with torch.no_grad():
    logits = model(**features).logits
close(logits, expected["logits"], "logits")
close(model.probabilities(logits), (logits / 2.5).sigmoid(), "probabilities")
row = torch.tensor([[-1.0, 1.0, 5.0], [-4.0, -1.0, 6.0]])
assert model.predict_labels(row) == [["dog", "cat"], ["owl"]], model.predict_labels(row)
model.save_pretrained(folder + "/again")
again = load(AutoConfig, folder + "/again")
assert (again.calibration_temperature, again.decision_thresholds) == (2.5, [0.3, 0.5, 0.9])
model.config.problem_type = "single_label_classification"
close(model.probabilities(row), (row / 2.5).softmax(-1), "probabilities of one label")
assert model.predict_labels(row) == ["owl", "owl"]
other = load(AutoModelForAudioClassification, folder, num_labels=5, ignore_mismatched_sizes=True)
assert (other.config.calibration_temperature, other.config.decision_thresholds) == (1.0, None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dual_ssast", "vggish"])
def test_a_saved_folder_is_calibrated_without_this_package(tmp_path, family):
    settings = {"problem_type": MULTI, "calibration_temperature": 2.5, "decision_thresholds": [0.3, 0.5, 0.9]}
    if family == "dual_ssast":
        folder = save_tiny_classifier(tmp_path / "saved", labels=("dog", "cat", "owl"), **settings)
    else:
        names = {0: "dog", 1: "cat", 2: "owl"}
        folder = save_tiny_cnn(tmp_path / "saved", "vggish", id2label=names, **settings)
    model = AutoModelForAudioClassification.from_pretrained(folder).eval()
    features = AutoFeatureExtractor.from_pretrained(folder)(audio(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        logits = model(**features).logits
    np.savez(tmp_path / "expected.npz", audio=audio(), logits=logits.numpy())
    run(REMOTE, tmp_path, folder, tmp_path / "expected.npz")


def test_one_output_is_a_number_whatever_the_temperature(tmp_path):
    folder = save_tiny_classifier(tmp_path, labels=("value",), calibration_temperature=4.0)
    model = AutoModelForAudioClassification.from_pretrained(folder)
    assert model.predict_labels(torch.tensor([[3.5], [-1.0]])) == [3.5, -1.0]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Trains with several labels per clip; some clips are longer than the model's input."""
    folder = tmp_path_factory.mktemp("several")
    rng, rows = np.random.default_rng(0), []
    for index in range(60):
        labels = [name for name, share in (("high", 0.5), ("low", 0.2), ("mid", 0.7)) if rng.random() < share]
        write_tone(folder / f"{index}.wav", seconds=0.2 + 0.2 * (index % 3), hz=200 + 20 * len(labels), seed=index)
        rows.append({"file_name": f"{index}.wav", "labels": ";".join(labels), "speaker": f"speaker {index // 2}"})
    pandas.DataFrame(rows).to_csv(folder / "clips.csv", index=False)
    recipe = {**TINY, "train_file": str(folder / "clips.csv"), "label_separator": ";", "label_column": "labels"}
    recipe |= {"group_column": "speaker", "hop_s": 0.1, "output_dir": str(folder / "run"), "learning_rate": 1e-2}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    train(str(folder / "recipe.json"))
    return folder


def test_a_run_is_calibrated_and_says_so(calibrated):
    results = json.loads((calibrated / "run" / "results.json").read_text())
    config, found = AutoConfig.from_pretrained(calibrated / "run"), results["calibration"]
    assert config.calibration_temperature == found["temperature"] != 1
    assert config.decision_thresholds == found["decision_thresholds"] != [0.5] * 3
    for split in ("validation", "test"):
        for when in ("before", "after"):
            scores = found[split][when]
            assert {"expected_calibration_error", "negative_log_likelihood", "brier_score"} < set(scores)
            assert sum(scores["bins"]["count"]) == 3 * results["clips"][split]
    before, after = (found["validation"][when]["negative_log_likelihood"] for when in ("before", "after"))
    assert after < before == pytest.approx(results["metrics"]["validation"]["loss"], abs=1e-5)
    names = ("mean_average_precision", "mean_auc", "d_prime", "micro_f1", "macro_f1")
    assert {*names, "loss"} == set(results["metrics"]["test"])
    intervals = results["confidence_intervals"]
    assert intervals["resampled"] == "groups" and set(intervals["intervals"]) == set(names)
    card = (calibrated / "run" / "README.md").read_text()
    lower, upper = intervals["intervals"]["micro_f1"]
    assert f"| micro f1 | {results['metrics']['test']['micro_f1']:.4f} ({lower:.3f}-{upper:.3f}) |" in card
    assert f"a temperature of {config.calibration_temperature:.3g}, and the" in card and "calibration.png" in card
    assert (calibrated / "run" / "calibration.png").stat().st_size > 1000
    assert AutoConfig.from_pretrained(next((calibrated / "run").glob("checkpoint-*"))).calibration_temperature == 1


def test_predictions_figures_and_predict_hf_agree(calibrated, tmp_path):
    table = pandas.read_csv(calibrated / "run" / "predictions.csv", keep_default_na=False)
    output = tmp_path / "scores.csv"
    assert predict_hf.main([str(calibrated / "run"), *table["file"], "--output", str(output), "--hop_s", "0.1"]) == 0
    predicted = pandas.read_csv(output, keep_default_na=False)
    scores = [name for name in predicted if not name.startswith(("max_", "share_"))]  # windows have been asked for
    assert scores == [name for name in table if name not in ("label", "group")]
    columns = [name for name in table if name.startswith("probability_")]
    np.testing.assert_allclose(table[columns], predicted[columns], atol=1e-6)
    assert table["prediction"].tolist() == predicted["prediction"].tolist()
    config = AutoConfig.from_pretrained(calibrated / "run")
    thresholds = dict(zip(columns, config.decision_thresholds))
    given = pandas.DataFrame({name: table[name] > thresholds[name] for name in columns})
    assert (given != (table[columns] > 0.5)).any(axis=None)
    names = np.array([name.removeprefix("probability_") for name in columns])
    assert table["prediction"].tolist() == [",".join(names[row]) for row in given.to_numpy()]
    targets = pandas.DataFrame({name: [name[12:] in text.split(",") for text in table["label"]] for name in columns})
    hits = (given & targets).to_numpy().sum()
    f1 = 2 * hits / (given.to_numpy().sum() + targets.to_numpy().sum())
    results = json.loads((calibrated / "run" / "results.json").read_text())
    assert results["metrics"]["test"]["micro_f1"] == pytest.approx(f1)


def test_fine_tuning_begins_uncalibrated(calibrated, tmp_path):
    """At a learning rate of zero the weights stay, and so must the temperature that the same clips give."""
    words = ["--model_name_or_path", str(calibrated / "run"), "--output_dir", str(tmp_path / "run")]
    recipe = json.loads((calibrated / "recipe.json").read_text()) | {"learning_rate": 0.0, "config_overrides": None}
    recipe["max_steps"] = 1
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    train(str(tmp_path / "recipe.json"), *words)
    first, second = (
        json.loads((folder / "run" / "results.json").read_text())["calibration"] for folder in (calibrated, tmp_path)
    )
    assert second["temperature"] == pytest.approx(first["temperature"], rel=1e-3)
    train(str(tmp_path / "recipe.json"), *words, "--calibrate", "false", "--overwrite", "true")
    config = AutoConfig.from_pretrained(tmp_path / "run")
    assert (config.calibration_temperature, config.decision_thresholds) == (1.0, None)
    assert "calibration" not in json.loads((tmp_path / "run" / "results.json").read_text())
    assert not (tmp_path / "run" / "calibration.png").exists()  # that of the run before


def test_without_a_validation_split_or_with_numbers_there_is_nothing_to_calibrate():
    class Outcome:
        predictions, label_ids = overconfident(SINGLE, 3.0, 50)

    config, labels = DualSSASTConfig(num_labels=5), LabelSet(("a", "b", "c", "d", "e"), SINGLE)
    assert calibration.calibrate(config, {"test": Outcome()}, labels) is None
    assert calibration.calibrate(config, {"validation": Outcome()}, LabelSet(("value",), "regression")) is None
    assert config.calibration_temperature == 1
    assert (
        calibration.calibrate(config, {"validation": Outcome()}, labels)["temperature"]
        == config.calibration_temperature
        != 1
    )
    assert config.decision_thresholds is None  # one label per clip: the likeliest is given


def test_few_clips_calibrate_nothing(monkeypatch):
    logits, targets = overconfident(SINGLE, 3.0)
    monkeypatch.setattr(calibration, "MIN_CLIPS", 30)
    for count, temperature in ((29, 1.0), (30, None)):
        config = DualSSASTConfig(num_labels=logits.shape[1])

        class Outcome:
            predictions, label_ids = logits[:count], targets[:count]

        labels = LabelSet(tuple(f"class {index}" for index in range(logits.shape[1])), SINGLE)
        found = calibration.calibrate(config, {"validation": Outcome()}, labels)
        assert (found is None) == (temperature is not None)
        assert temperature is None or config.calibration_temperature == temperature
