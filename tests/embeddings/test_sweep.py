"""Tests the task sweep: representations, linear scores, folds, shards and outputs."""

import json

import datasets
import numpy as np
import pandas
import pytest
import torch
from audio_files import write_class_folders, write_tone
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stopped_shards import stop_after
from tiny_runs import write_recipe
from transformers import AutoModelForAudioClassification

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForPreTraining, DualSSASTModel
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training import tasks
from training.base import outputs, ridge
from training.classification import train
from training.data.dataset import ClipDataset
from training.data.labels import find_labels
from training.data.splits import make_folds
from training.embeddings import probe, sweep
from training.embeddings.arguments import SweepArguments
from training.embeddings.representations import (
    Represented,
    block_features,
    blocks,
    compose,
    fill_shards,
    fused,
    name_of,
    representations,
    subsets,
)
from training.errors import InputError
from training.inference.shards import Part, Segment, Shards

SIZES = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_length=64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A pretrained folder, with weights large enough for layers to differ."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    extractor = DualSSASTFeatureExtractor(max_length=64, mean=-6.0, std=4.0)
    config = DualSSASTConfig(**SIZES, initializer_range=0.2, padding_value=extractor.padding_value)
    DualSSASTForPreTraining(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 12)


@pytest.fixture
def recipe(tmp_path, encoder, clips):
    settings = {"task": "sweep", "model_name_or_path": encoder, "dataset_name": clips, "num_folds": 3, "shard_clips": 5}
    return lambda **values: write_recipe(tmp_path, settings | values, "sweep")


def table(labels: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"label": labels})


def run(path: str, *words: str):
    _, *parts = tasks.parse([path, *words])
    sweep.run(*parts)


def some_batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(5, 64, dtype=torch.long)
    mask[1, 30:] = 0
    return {"input_values": torch.randn(5, 64, 128), "attention_mask": mask}


def test_candidates_are_all_of_them_once():
    found = sweep.candidates(list(range(13)), ["patches", "prefix", "frames"])
    assert len(found) == len(set(found)) == 91 * (11 + 1 + 11)
    assert len(sweep.candidates(list(range(13)), ["patches"])) > 900 and len(subsets()) == 7


@pytest.mark.slow
@pytest.mark.parametrize("fusion_norm", ["shared", "shared_twice", "separate", "none"])
def test_composed_features_are_those_of_the_model(encoder, fusion_norm):
    """Every readout, pooling and combination: what the sweep composes is the `pooler_output` of that configuration."""
    model = DualSSASTModel.from_pretrained(encoder, fusion_norm=fusion_norm).eval()
    arrays = {name: value.numpy() for name, value in representations(model, some_batch()).items()}
    layers = [(0,), (3,), (0, 2), (1, 3)]
    for candidate in sweep.candidates(list(range(4)), ["patches", "prefix", "frames"]):
        if candidate.layers in layers:
            same = DualSSASTModel.from_pretrained(encoder, fusion_norm=fusion_norm, **candidate.settings()).eval()
            with torch.no_grad():
                expected = same(**some_batch()).pooler_output
            composed = compose(arrays, candidate.readout, candidate.layers, candidate.pooling, candidate.combination)
            np.testing.assert_allclose(composed, expected.numpy(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_scores_are_those_of_scikit_learn(kind):
    """Standardised on the training clips, a ridge with intercept: predictions and scores, class by class."""
    rng = np.random.default_rng(0)
    names = [name_of("patches", layer, pooling) for layer in range(4) for pooling in ("mean", "max", "min")]
    arrays = {name: rng.normal(size=(40, 10)) for name in names}
    arrays["patches.1.max"][:, 3] = 0.25  # a feature that never changes
    labels = {
        "single": [f"class {number}" for number in rng.integers(3, size=40)],
        "multi": [[f"class {c}" for c in range(4) if rng.random() < 0.6] or ["class 0"] for _ in range(40)],
        "regression": [str(value) for value in rng.normal(size=40)],
    }[kind]
    label_set = find_labels(labels, "regression" if kind == "regression" else None)
    targets = ridge.make_targets(labels, label_set)
    folds = make_folds(table(labels), 4, kind == "single", seed=0)
    chosen = [("patches", (1,), ("mean",), "sum"), ("patches", (0, 3), ("mean", "max"), "concat"),
              ("patches", (1, 2), ("mean", "max", "min"), "sum")]  # fmt: skip
    configurations = [blocks(*candidate) for candidate in chosen]
    metric = ridge.metric_of(label_set.problem_type)[1]
    found = ridge.score_folds(lambda b: block_features(arrays, *b), configurations, targets, folds, [0.1, 1.0], metric)
    for candidate, blocks_, score in zip(chosen, configurations, found.with_best_penalty()):
        features = compose(arrays, *candidate)
        assert score.alpha == pytest.approx(score.ridge * features.shape[1])
        for number, (training, test) in enumerate(folds):
            ours = next(
                prediction
                for _, _, prediction, _ in ridge.held_out_predictions(
                    lambda b: block_features(arrays, *b), [blocks_], targets, (training, test), [score.ridge]
                )
            )
            if kind == "single":
                classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=score.alpha))
                classifier.fit(features[training], targets[training].argmax(axis=1))
                np.testing.assert_array_equal(ours.argmax(axis=1), classifier.predict(features[test]))
                assert score.folds[number] == classifier.score(features[test], targets[test].argmax(axis=1))
            regression = make_pipeline(StandardScaler(), Ridge(alpha=score.alpha))
            theirs = regression.fit(features[training], targets[training]).predict(features[test])
            np.testing.assert_allclose(ours, theirs.reshape(ours.shape), atol=1e-9)
            assert score.folds[number] == pytest.approx(metric(targets[test], theirs.reshape(ours.shape)))


def test_the_better_penalty_is_chosen():
    rng = np.random.default_rng(0)
    arrays = {name_of("prefix", 0): rng.normal(size=(30, 60))}
    labels = [str(number) for number in rng.integers(2, size=30)]
    targets = ridge.make_targets(labels, find_labels(labels, None))
    folds = make_folds(table(labels), 3, True, seed=0, num_repeats=2)
    assert len(folds) == 6
    features, configurations = lambda b: block_features(arrays, *b), [[("prefix", 0, ())]]
    *alone, both = (
        ridge.score_folds(features, configurations, targets, folds, penalties, accuracy).with_best_penalty()[0]
        for penalties in ([0.001], [10.0], [0.001, 10.0])
    )
    assert both.folds.mean() == max(score.folds.mean() for score in alone)


def accuracy(targets, predictions):
    return ridge.metric_of("single_label_classification")[1](targets, predictions)


def test_shards_continue_and_refuse_other_settings(tmp_path):
    shards = Shards(tmp_path / "s", 10, 4, {"model": "a"})
    shards.prepare()
    assert [list(shards.clips(shard)) for shard in shards.missing()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    values = np.arange(10.0)[:, None]

    def part(shard: int, first: int = 0, last: int = 4) -> Part:
        clips = shards.clips(shard)[first:last]
        return Part([Segment(clip, f"{clip}.wav", 1, 1) for clip in clips], {"x": values[clips.start : clips.stop]})

    shards.save(1, 0, 1, part(1))
    shards.save(0, 1, 2, part(0, 2))  # the second of two parts
    again = Shards(tmp_path / "s", 10, 4, {"model": "a"})
    again.prepare()
    again.look()
    assert again.missing() == [0, 2] and again.num_stored == (1, 1)
    assert again.has(0, 1, 2) and not again.has(0, 0, 2) and not again.has(0, 1, 3)
    with pytest.raises(InputError, match="shard 0 is not complete"):
        again.means()
    again.save(2, 0, 1, part(2))
    again.save(0, 0, 2, part(0, 0, 2))
    np.testing.assert_array_equal(again.means()["x"], values)
    with pytest.raises(InputError, match="was made with model 'a', now 'b'; use another folder, or set overwrite"):
        Shards(tmp_path / "s", 10, 4, {"model": "b"}).prepare()
    with pytest.raises(ValueError, match="expected arrays of 4 rows"):
        shards.save(0, 0, 1, Part(part(0).segments, {"x": values}))
    assert not list((tmp_path / "s").glob(".*"))


def test_a_sweep_leaves_tables_pictures_and_a_recipe(recipe, clips, capsys, tmp_path, caplog):
    path, output = recipe()
    run(path)
    printed = capsys.readouterr().out
    table = pandas.read_csv(output / "sweep.csv", dtype={"layers": str, "pooling": str}, keep_default_na=False)
    assert len(table) == 10 * 23 and f"{len(table)} candidates, 21 clips" in printed
    assert table["accuracy"].is_monotonic_decreasing and table["accuracy"].max() > 0.6
    assert {"layers_patches.png", "layers_prefix.png", "layers_frames.png", "layers.png"} <= {
        entry.name for entry in output.iterdir()
    }
    compared = pandas.read_csv(output / "comparison.csv")
    assert len(compared) == 23 and compared[["last", "middle", "dual"]].notna().all(axis=None)
    best = json.loads((output / "best.json").read_text())["model"]
    results = json.loads((output / "results.json").read_text())
    assert results["candidates"] == len(table) and results["clips"] == 21 and results["folds"] == 3
    assert results["best"]["model"] == best and table["verdict"].tolist()[0] == "best"
    assert results["best"]["accuracy"] == table["accuracy"].max() >= results["best"]["nested"]["accuracy"]
    assert len(results["best"]["nested"]["folds"]) == 3 and set(table["verdict"][1:]) <= {"not told apart", "worse"}
    simplest = results["one_standard_error"]["model"]
    assert len(simplest["fusion_layers"]) == 1 and len(simplest.get("pooling", [""])) == 1
    assert set(compared["better"]) <= {"not told apart", "dual", "last"} and "one_standard_error" in printed
    with pytest.raises(InputError, match="holds a sweep already"):
        run(path)
    # Its recipe fine-tunes, and so does any other one that names the sweep.
    tuned = tmp_path / "tuned"
    words = ["--output_dir", str(tuned), "--num_train_epochs", "1", "--disable_tqdm", "true"]
    _, *parts = tasks.parse([str(output / "finetune.yaml"), *words])
    train.run(*parts)
    config = AutoModelForAudioClassification.from_pretrained(tuned).config
    assert config.readout == best["readout"] and config.fusion_layers == best["fusion_layers"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"dataset_name": str(clips), "output_dir": "x", "from_sweep": str(output)}))
    _, model, *_ = tasks.parse([str(other)])
    assert model.model_name_or_path == best["model_name_or_path"]
    assert model.overrides()["fusion_layers"] == best["fusion_layers"]
    assert "which is not taken" not in caplog.text
    _, model, *_ = tasks.parse([str(other), "--fusion_layers", "0"])
    assert model.overrides()["fusion_layers"] == [0]  # what is said by hand wins
    assert f"set fusion_layers [0]; the sweep has chosen {best['fusion_layers']}, which is not taken" in caplog.text


def test_a_stopped_sweep_goes_on(recipe, monkeypatch):
    path, output = recipe(readouts=["prefix"], storage_dtype="float16")
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    monkeypatch.undo()
    modified = {entry.name: entry.stat().st_mtime_ns for entry in (output / "representations").iterdir()}
    run(path)
    kept = {entry.name: entry.stat().st_mtime_ns for entry in (output / "representations").iterdir()}
    assert all(kept[name] == time for name, time in modified.items()) and len(kept) == 6
    table = pandas.read_csv(output / "sweep.csv")
    run(path, "--overwrite", "true")
    pandas.testing.assert_frame_equal(table, pandas.read_csv(output / "sweep.csv"))
    # So does one that overwrites a finished sweep, and whose own scoring is stopped.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep, "score_folds", stop)
        run(path, "--overwrite", "true")
    assert json.loads((output / outputs.EARLIER).read_text())["candidates"] == len(table)
    modified = {entry.name: entry.stat().st_mtime_ns for entry in (output / "representations").iterdir()}
    run(path)
    assert modified == {entry.name: entry.stat().st_mtime_ns for entry in (output / "representations").iterdir()}
    pandas.testing.assert_frame_equal(table, pandas.read_csv(output / "sweep.csv"))
    assert not (output / outputs.EARLIER).exists()


def stop(*arguments):
    raise KeyboardInterrupt


def test_a_sweep_leaves_nothing_of_an_earlier_one_in_its_folder(recipe):
    """What was chosen with labels must not be taken for the choice of a later sweep, such as one without."""
    path, output = recipe(readouts=["prefix", "frames"], figure_format="svg")
    run(path)
    (output / "notes.txt").write_text("mine")
    run(path, "--overwrite", "true", "--readouts", "prefix", "--figure_format", "png")
    names = {entry.name for entry in output.iterdir()}
    figures = {f"{name}.png" for name in ("layers", "layers_prefix", "unlabelled")}
    tables = {"best.json", "finetune.yaml", "sweep.csv", "comparison.csv", "unlabelled.csv", "results.json"}
    assert names == {"notes.txt", "representations"} | tables | figures
    run(path, "--overwrite", "true", "--unlabelled", "true", "--figure_format", "png")
    names = {entry.name for entry in output.iterdir()}
    assert names == {"notes.txt", "representations", "unlabelled.csv", "unlabelled.png", "results.json"}


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"model_name_or_path": None}, "model_name_or_path: is not set"),
        ({"readouts": ["patchs"]}, r"readouts: a dual_ssast model has no 'patchs', only patches, prefix, frames"),
        ({"ridge": [0.0]}, "ridge: must be above 0, got 0.0"),
        ({"num_folds": 1}, "num_folds: must be 2 or more, got 1"),
        ({"storage_dtype": "int8"}, "storage_dtype: must be float32 or float16"),
        ({"fold_column": "fold"}, "fold"),
        ({"learning_rate": 1.0}, "learning_rate: is no option of task sweep; leave it out"),
    ],
)
def test_bad_recipes_stop_with_one_line(recipe, values, pattern):
    path, output = recipe(**values)
    with pytest.raises(InputError, match=pattern):
        run(path)
    assert not (output / "results.json").exists()


def test_the_simplest_is_fine_tuned_if_it_is_asked_for(recipe, caplog):
    path, output = recipe(readouts=["patches"], choice="one_standard_error", num_folds=2)
    run(path)
    results = json.loads((output / "results.json").read_text())
    assert json.loads((output / "best.json").read_text()) == results["one_standard_error"] != results["best"]
    assert "two folds leave none to choose by" in caplog.text and "nested" not in results["best"]


def test_a_data_set_with_folds_of_its_own(recipe, clips, tmp_path):
    files = sorted(clips.rglob("*.wav"))
    rows = [{"file_name": str(file), "label": file.parent.name, "fold": index % 4} for index, file in enumerate(files)]
    pandas.DataFrame(rows).to_csv(tmp_path / "folds.csv", index=False)
    path, output = recipe(
        dataset_name=None, train_file=str(tmp_path / "folds.csv"), fold_column="fold", readouts=["prefix"]
    )
    run(path)
    assert json.loads((output / "results.json").read_text())["folds"] == 4
    assert "fold_3" in pandas.read_csv(output / "sweep.csv").columns


def test_long_clips_go_through_the_model_in_batches(encoder, tmp_path):
    """In windows; no more of them at once than clips. A clip is the mean over its windows, as `embed` has it."""
    model = DualSSASTModel.from_pretrained(encoder).eval()
    extractor = DualSSASTFeatureExtractor.from_pretrained(encoder)
    paths = [write_tone(tmp_path / f"{index}.wav", seconds=seconds) for index, seconds in enumerate((3.0, 0.4, 2.0))]
    examples = datasets.Dataset.from_dict({"audio": list(map(str, paths)), "label": ["a", "b", "a"]})
    labels = find_labels(examples["label"], None)
    dataset = ClipDataset(examples, extractor, labels, windows=window_and_hop(model, extractor))
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_values"])), with_kwargs=True
    )
    shards = Shards(tmp_path / "shards", 3, 10, {})
    shards.prepare(False)
    fill_shards(Represented(model, dataset, fused), dataset, shards, batch_size=2)
    assert max(sizes) <= 2 and sum(sizes) > 10
    expected = model.embed([dataset.waveform(index) for index in range(3)], 16000, extractor)
    np.testing.assert_allclose(shards.means()["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "labels", [{}, {"problem_type": "multi_label_classification"}], ids=["single_label", "multi_label"]
)
def test_the_clips_of_the_later_test_are_not_looked_at(recipe, clips, tmp_path, labels):
    path, output = recipe(readouts=["prefix"], mean=-7.0, max_length=32, test_fraction=0.25, **labels)
    run(path)
    tuned = tmp_path / "tuned"
    words = ["--output_dir", str(tuned), "--max_steps", "1", "--disable_tqdm", "true"]
    _, *parts = tasks.parse([str(output / "finetune.yaml"), *words])
    train.run(*parts)
    tested = set(pandas.read_csv(tuned / "predictions.csv")["file"])
    examples = sweep.load_clips(parts[1], SweepArguments(output_dir=str(tmp_path)))
    assert tested and not tested & set(examples["audio"]) and len(tested) + len(examples) == 24
    config = AutoModelForAudioClassification.from_pretrained(tuned).config
    assert config.max_length == 32 and parts[1].mean == -7.0


def test_a_stopped_sweep_goes_on_only_with_its_features(recipe):
    path, output = recipe(readouts=["prefix"])
    run(path)
    (output / "results.json").unlink()
    with pytest.raises(InputError, match=r"was made with features\.mean -6.0, now -1.0"):
        run(path, "--mean", "-1")
    with pytest.raises(InputError, match="compute_statistics: a frozen encoder keeps the statistics"):
        run(path, "--compute_statistics", "true")


def test_of_many_clips_a_sample_of_every_class(recipe):
    path, output = recipe(max_clips=12, readouts=["prefix"], num_folds=2)
    run(path)
    assert json.loads((output / "results.json").read_text())["clips"] == 12


def test_whatever_goes_on_with_a_sweep_tests_none_of_its_clips(recipe, clips, tmp_path):
    """With any seed of its own, and with that of EVAR's protocol; a repeated run divides as the first one."""
    path, output = recipe(readouts=["prefix"], test_fraction=0.25, seed=3)
    run(path)
    _, _, data, arguments = tasks.parse([path])
    chosen_with = set(sweep.load_clips(data, arguments)["audio"])
    assert json.loads((output / "best.json").read_text())["split_seed"] == 0

    def tested(name: str, run, *words: str) -> set[str]:
        _, *parts = tasks.parse([*words, "--output_dir", str(tmp_path / name)])
        run(*parts)
        return set(pandas.read_csv(tmp_path / name / "predictions.csv")["file"])

    own = ["--dataset_name", str(clips), "--test_fraction", "0.25", "--from_sweep", str(output)]
    probing = ["recipes/probe.yaml", *own, "--methods", "linear"]
    tuning = ["--max_steps", "1", "--disable_tqdm", "true", "--html_report", "false", "--report_clips", "0"]
    found = [
        tested("evar", probe.run, *probing, "--protocol", "evar"),
        tested("probe", probe.run, *probing, "--seed", "3", "--num_seeds", "1", "--num_epochs", "1"),
        tested("again", probe.run, str(tmp_path / "probe" / "results.json")),
        tested("recipe", train.run, str(output / "finetune.yaml"), "--seed", "1", *tuning),
        tested("tuned", train.run, "recipes/finetune.yaml", *own, "--seed", "2", *tuning),
    ]
    assert all(one == found[0] for one in found) and len(found[0]) == 6 and not found[0] & chosen_with


def write_table(path, clips, **columns):
    files = sorted(clips.rglob("*.wav"))
    values = {name: [value(index) for index in range(len(files))] for name, value in columns.items()}
    pandas.DataFrame({"file_name": list(map(str, files)), **values}).to_csv(path, index=False)
    return {"dataset_name": None, "train_file": str(path), "test_fraction": 0, "validation_fraction": 0}


@pytest.fixture
def unencoded(monkeypatch):
    monkeypatch.setattr(sweep, "encode", lambda *arguments: pytest.fail("has encoded the clips"))


@pytest.mark.parametrize(
    ("values", "columns", "pattern"),
    [
        (
            {"num_folds": 13},
            {"label": float},
            "num_folds: 13 leave a fold of one clip.*; set at most 12",
        ),
        (
            {"fold_column": "fold"},
            {"label": float, "fold": lambda index: "x" if index == 7 else index % 3},
            "fold_column: fold x is a fold of one clip, which has no r2; join it with another",
        ),
        (
            {"problem_type": "multi_label_classification"},
            {"label": lambda index: {0: "a", 5: "b"}.get(index)},
            "num_folds: 3 leave a fold of clips without any label; set fewer",
        ),
        (
            {"problem_type": "multi_label_classification", "fold_column": "fold"},
            {"label": lambda index: {0: "a", 5: "b"}.get(index), "fold": lambda index: index % 3},
            "fold_column: fold 1 is a fold of clips without any label",
        ),
        (
            {"fold_column": "fold", "num_repeats": 5},
            {"label": lambda index: "ab"[index % 2], "fold": lambda index: index % 3},
            "num_repeats: the folds of fold_column are the same in each; leave one of the two out",
        ),
    ],
)
def test_folds_that_cannot_be_scored_stop_before_the_encoding(
    recipe, clips, tmp_path, unencoded, values, columns, pattern
):
    table = write_table(tmp_path / "clips.csv", clips, **columns)
    kind = {} if "problem_type" in values or "num_repeats" in values else {"problem_type": "regression"}
    with pytest.raises(InputError, match=pattern):
        run(recipe(**table, **kind, **values)[0])


def test_a_sweep_goes_on_without_what_overflows(recipe, monkeypatch, caplog):
    """All layers of one pooling and one readout have no score: tables and figures say so."""
    encode = sweep.encode

    def overflow(*arguments):
        arrays = encode(*arguments)
        gone = {name for name in arrays if name.startswith("prefix") or name.endswith(".max")}
        return {name: np.full_like(values, np.inf) if name in gone else values for name, values in arrays.items()}

    monkeypatch.setattr(sweep, "encode", overflow)
    path, output = recipe(readouts=["patches", "prefix"])
    run(path)
    assert (output / "layers_patches.png").exists() and not (output / "layers_prefix.png").exists()
    assert "candidates have features or predictions that are not finite" in caplog.text
    assert pandas.read_csv(output / "sweep.csv")["accuracy"].notna().sum() == 10 * 4  # mean, min, and both
