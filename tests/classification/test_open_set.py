"""Tests what rejects unknown sounds: its formulas, the training that fits it, and predict_hf.py that uses it."""

import json
import shutil

import numpy as np
import pandas
import pytest
import torch
from audio_files import ROOT, write_class_folders, write_tone
from safetensors.torch import load_file
from tiny_models import save_tiny_classifier
from tiny_runs import TINY, train

import predict_hf
from hub import push
from training.base import open_set
from training.base.inference import load_classifier
from training.base.open_set import SCORES, OpenSet, energies, normalise
from training.classification import open_set as fitting
from training.classification.open_set import describe, fit_statistics, leave_out
from training.errors import InputError
from training.export import recordings


def correlated(num_clips: int, size: int, num_classes: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(num_classes, size=num_clips)
    means, mixing = rng.normal(0, 3, (num_classes, size)), rng.normal(size=(size, size))
    return means[targets] + rng.normal(size=(num_clips, size)) @ mixing, targets


@pytest.mark.parametrize("num_clips", [40, 2000])
def test_the_distance_is_that_of_the_shrunk_covariance(num_clips):
    from sklearn.covariance import LedoitWolf

    embeddings, targets = correlated(num_clips, 7, 3)
    found = fit_statistics(embeddings, targets, 3)
    means = np.stack([embeddings[targets == index].mean(axis=0) for index in range(3)])
    offsets = embeddings - means[targets]
    shrinkage = LedoitWolf(assume_centered=True).fit(offsets).shrinkage_
    covariance = np.cov(offsets.T)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.square(offsets).mean() * np.eye(7)
    others, _ = correlated(20, 7, 3, seed=1)
    expected = [
        min(np.sqrt((row - mean) @ np.linalg.solve(covariance, row - mean)) for mean in means) for row in others
    ]
    np.testing.assert_allclose(found.distances(torch.from_numpy(others)), expected, rtol=1e-4)


@pytest.mark.parametrize(("num_clips", "size", "num_classes"), [(4, 500, 2), (3, 5, 3), (300, 300, 2), (10, 8, 12)])
def test_few_clips_and_missing_classes_give_finite_distances(num_clips, size, num_classes):
    rng = np.random.default_rng(0)
    embeddings, targets = rng.normal(size=(num_clips, size)), np.arange(num_clips) % num_classes
    found = fit_statistics(embeddings, targets, num_classes)
    far = torch.from_numpy(embeddings[:1] + 100)
    assert 0 <= found.distances(torch.from_numpy(embeddings)).max() < found.distances(far).item() < 1e6


def test_clips_that_are_all_the_same_give_finite_distances():
    found = fit_statistics(np.ones((6, 4)), np.arange(6) % 2, 2)
    distances = found.distances(torch.tensor([[1.0] * 4, [2.0] * 4]))
    assert distances[0] == 0 and 0 < distances[1] < np.inf


def test_embeddings_are_compared_without_offset_and_scale():
    embeddings = torch.randn(3, 16)
    torch.testing.assert_close(normalise(5 * embeddings + 7), normalise(embeddings), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normalise(embeddings).square().mean(dim=1), torch.ones(3), rtol=1e-3, atol=0)


@torch.no_grad()
def test_of_tokens_the_mean_is_compared(tmp_path):
    model, _ = load_classifier(str(save_tiny_classifier(tmp_path, classifier="prototypes", pooling=["mean"])))
    values, mask = torch.randn(2, 64, 128), torch.ones(2, 64, dtype=torch.long)
    mask[1, 20:] = 0
    hook = open_set.EmbeddingHook(model)
    model(values, mask)
    expected = normalise(model.dual_ssast(values, mask).pooler_output)  # the mean
    torch.testing.assert_close(hook.take(), expected, atol=1e-4, rtol=1e-4)


def test_energy_is_that_of_the_paper():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(energies(logits), torch.tensor([-np.log(4), -100.0], dtype=torch.float32))


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("num_clips", [20, 333, 5000])
def test_a_threshold_keeps_the_share_of_the_validation_clips(kept, num_clips):
    values = np.random.default_rng(0).exponential(size=num_clips)
    shares = np.linspace(0, 1, open_set.NUM_QUANTILES)
    quantiles = torch.from_numpy(np.quantile(values, shares, method="inverted_cdf"))
    threshold = OpenSet(None, None, None, {"distance": quantiles}).threshold("distance", kept)
    assert kept <= (values <= threshold).mean() < kept + 1 / num_clips


def test_the_area_under_the_curve_and_the_shares_are_those_worked_out_by_hand():
    scores = {name: np.array(values) for name, values in {"test": [1.0, 2, 3, 9], "unknown": [2.5, 8, 10]}.items()}
    found = describe(3.0, scores)
    assert found["share_kept"] == {"test": 0.75, "unknown": 1 / 3}
    assert found["auroc"] == pytest.approx((2 + 3 + 4) / 12)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has left a class out, and its recipe."""
    folder = tmp_path_factory.mktemp("open_set")
    write_class_folders(folder / "clips", 10, ("high", "low", "other"))
    recipe = folder / "recipe.json"
    settings = TINY | {"dataset_name": str(folder / "clips"), "unknown_classes": ["other"], "report_clips": 1}
    recipe.write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "MIN_CLIPS", 2)
        train(str(recipe), "--output_dir", str(folder / "run"))
    return folder / "run", recipe


def test_a_run_leaves_classes_out_and_reports_their_rejection(finished):
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    found = results["open_set"]
    assert results["labels"] == ["high", "low"] and "other" not in results["clips_per_class"]["train"]
    assert found["clips"] == results["clips"] | {"unknown": 10} and found["kept"] == 0.95
    assert not any("other" in name for name in pandas.read_csv(folder / "predictions.csv")["file"])
    card, page = ((folder / name).read_text() for name in ("README.md", "report.html"))
    for score in SCORES:
        assert 0 <= found[score]["auroc"] <= 1 and found[score]["share_kept"]["validation"] >= 0.95
        rejected = 1 - found[score]["share_kept"]["unknown"]
        figures = [f"{value:.3f}" for value in (found[score]["auroc"], found[score]["share_kept"]["test"], rejected)]
        assert f"| {score} | {' | '.join(figures)} |" in card
        assert f"<td>{score}</td><td>{figures[0]}</td><td>{figures[1]}</td>\n    <td>{figures[2]}</td>" in page
    assert "10 clips of classes that the training left out\n(other)." in card


def scores_of(folder, clips, path, *words) -> pandas.DataFrame:
    words = (folder, clips, "--output", path, "--dtype", "float32", "--overwrite", *words)
    assert predict_hf.main(list(map(str, words))) == 0
    return pandas.read_csv(path)


@pytest.mark.parametrize("score", SCORES)
def test_predictions_have_the_run_s_own_scores_and_thresholds(finished, tmp_path, capfd, score):
    folder, recipe = finished
    clips = recipe.parent / "clips" / "other"
    found = json.loads((folder / "results.json").read_text())["open_set"][score]
    table = scores_of(folder, clips, tmp_path / "a.csv", "--reject", 0.95, "--reject_by", score)
    assert list(table)[:3] == ["file", "prediction", score]
    is_unknown = table["prediction"] == "unknown"
    assert (1 - is_unknown.mean()) == pytest.approx(found["share_kept"]["unknown"])
    np.testing.assert_array_equal(is_unknown, table[score] > found["threshold"])
    assert capfd.readouterr().out.count("\tunknown (") == is_unknown.sum()
    plain = scores_of(folder, clips, tmp_path / "b.csv")
    assert score not in plain and not (plain["prediction"] == "unknown").any()
    np.testing.assert_array_equal(plain["probability_high"], table["probability_high"])


def test_windows_are_rejected_one_by_one_and_a_clip_by_their_mean(finished, tmp_path):
    folder, _ = finished
    write_tone(tmp_path / "clips" / "long.wav", seconds=2.0)
    write_tone(tmp_path / "clips" / "short.wav", seconds=0.2)
    table = scores_of(folder, tmp_path / "clips", tmp_path / "a.csv", "--reject", 0.5, "--windows", tmp_path / "w.csv")
    windows = pandas.read_csv(tmp_path / "w.csv")
    assert len(windows) > 4 and list(windows)[3:5] == ["prediction", "distance"]
    means = windows.groupby("file")["distance"].mean()
    np.testing.assert_allclose(means[table["file"]], table["distance"], rtol=1e-5)
    threshold = OpenSet.load(str(folder), load_classifier(str(folder))[0]).threshold("distance", 0.5)
    for one in (table, windows):
        np.testing.assert_array_equal(one["prediction"] == "unknown", one["distance"] > threshold)


def test_statistics_are_pushed(finished):
    assert open_set.FILE == push.OPEN_SET
    assert open_set.FILE in push.choose_files(finished[0], "user/name")[0]
    assert open_set.FILE in push.PUBLISHED  # a later push without them deletes them


def test_a_later_run_in_the_folder_removes_what_no_longer_fits(finished, tmp_path):
    folder, recipe = finished
    shutil.copytree(folder, tmp_path / "run")
    train(str(recipe), "--output_dir", str(tmp_path / "run"), "--overwrite", "true", "--num_train_epochs", "1")
    assert not (tmp_path / "run" / open_set.FILE).exists()  # too few validation clips without the fixture's patch
    assert "open_set" not in json.loads((tmp_path / "run" / "results.json").read_text())


def _other_weights(folder):
    other = save_tiny_classifier(folder.parent / "other", labels=("high", "low"))
    shutil.copy(folder / open_set.FILE, other)
    return other


def _cut_off(folder):
    path = folder / open_set.FILE
    path.write_bytes(path.read_bytes()[:-8])


def _damaged(folder, **changes):
    from safetensors.torch import save_file

    tensors = load_file(folder / open_set.FILE)
    save_file({name: tensors[name] for name in tensors} | changes, folder / open_set.FILE)


CASES = {
    "missing": (lambda folder: (folder / open_set.FILE).unlink(), "has no open_set.safetensors, which --reject needs"),
    "of other weights": (_other_weights, "belongs to other weights than those beside it"),
    "cut off": (_cut_off, "cannot be read"),
    "NaN": (lambda folder: _damaged(folder, means=torch.full((2, 16), torch.nan)), "cannot be read"),
    "of another size": (lambda folder: _damaged(folder, distance=torch.zeros(5)), "cannot be read"),
}


@pytest.mark.parametrize("case", CASES)
def test_statistics_that_do_not_fit_are_an_error_in_one_line(finished, tmp_path, capsys, case):
    change, message = CASES[case]
    folder = shutil.copytree(finished[0], tmp_path / "run")
    folder = change(folder) or folder
    clip = write_tone(tmp_path / "clip.wav")
    assert predict_hf.main([str(folder), str(clip), "--reject", "0.95"]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line and "fine-tune" in line
    assert predict_hf.main([str(folder), str(clip)]) == 0  # nothing else needs them


def test_thresholds_per_class_need_no_rejection(tmp_path, capsys):
    folder = save_tiny_classifier(tmp_path / "model", problem_type="multi_label_classification")
    assert predict_hf.main([str(folder), str(write_tone(tmp_path / "clip.wav")), "--reject", "0.95"]) != 0
    assert "a softmax alone needs it; leave it out" in capsys.readouterr().err


def splits_of(*labels):
    import datasets

    return {"train": datasets.Dataset.from_dict({"audio": ["0.wav"] * len(labels), "label": list(labels)})}


@pytest.mark.parametrize(
    ("splits", "names", "message"),
    [
        (splits_of("a", "b", "c"), ["bb"], "no training clip has the label 'bb'"),
        (splits_of("a", "b"), ["a", "b"], "no clip of the train split is left"),
        (splits_of(["a"], ["b"]), ["a"], "needs one label per clip"),
    ],
)
def test_classes_that_cannot_be_left_out_are_an_error(splits, names, message):
    with pytest.raises(InputError, match=f"unknown_classes: .*{message}"):
        leave_out(splits, names)


def test_names_of_classes_left_out_are_compared_like_all_names():
    kept, unknown = leave_out(splits_of("a", "b\u00e4r", "01", "1"), ["ba\u0308r ", "01"])
    assert kept["train"]["label"][:] == ["a", "1"] and unknown["label"][:] == ["b\u00e4r", "01"]


@pytest.mark.parametrize(("unknown", "is_found"), [(None, True), (["b"], False)])
def test_exports_are_not_compared_on_clips_of_unknown_classes(tmp_path, unknown, is_found):
    table = tmp_path / "clips.csv"
    table.touch()
    settings = {"test_file": str(table), "unknown_classes": unknown}
    results = {"problem_type": "single_label_classification", "recipe": {"DataArguments": settings}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert recordings.test_clips_of(tmp_path)[0] == (table if is_found else None)


@pytest.mark.slow
def test_languages_that_were_left_out_are_rejected(tmp_path):
    """The figures of docs/guides/evaluation.md."""
    train(str(ROOT / "recipes" / "open_set.yaml"), "--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true")
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    print(found["metrics"]["test"], found["open_set"])
    assert found["open_set"]["clips"]["unknown"] == 171
    assert found["open_set"]["distance"]["auroc"] > 0.8 and found["open_set"]["energy"]["auroc"] > 0.7
    assert found["open_set"]["distance"]["share_kept"]["test"] > 0.85
