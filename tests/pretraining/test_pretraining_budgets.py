"""Tests benchmarks/pretraining_budgets.py: its scores beside scikit-learn, and its report of finished runs."""

import csv
import itertools
import json
import sys

import numpy as np
import pytest
from audio_files import write_tone
from benchmark_scripts import imported
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from modeling_dual_ssast import ASiTConfig, DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 64}
GROUPS = 8


@pytest.fixture(scope="module")
def script():
    with imported("pretraining_budgets") as scripts:
        yield scripts.pretraining_budgets


@pytest.fixture(scope="module")
def clips(tmp_path_factory, script):
    """Tones of two heights in eight groups, in the three tables that package_clips.py writes."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "audio").mkdir()
    rows = {split: [] for split in script.SPLITS}
    for index in range(4 * GROUPS):
        label, group = "high" if index % 2 else "low", index // 4
        name = f"audio/{index:02}.wav"
        write_tone(folder / name, seconds=0.3, hz=(900 if index % 2 else 300) + 40 * group, seed=index)
        rows[script.SPLITS[group % 3]].append([name, label, f"group {group}"])
    for split, own in rows.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["file_name", "label", "group"], *own])
    return folder


def read_rows(table):
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def save_encoder(folder):
    DualSSASTModel(DualSSASTConfig(**SIZES)).save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=64).save_pretrained(folder)
    return folder


def test_statistics_score_as_by_scikit_learn(script, clips, tmp_path, monkeypatch):
    """One kind and one penalty leave nothing to choose: the nested scores are those of plain folds of whole groups."""
    table = script.join_splits(clips)
    rows = read_rows(table)
    assert len(rows) == 4 * GROUPS
    monkeypatch.setattr(script, "KINDS", ((0, 1),))
    monkeypatch.setattr(script, "RIDGE", (0.1,))
    labelled = script.Clips(table, save_encoder(tmp_path / "encoder"))
    statistics = script.vectors_of(script.LOG_MEL_MODEL, table, tmp_path / "log_mel.parquet")
    features = statistics[:, :256].astype(np.float64)
    is_high = np.array([row["label"] == "high" for row in rows])
    groups = np.array([row["group"] for row in rows])
    expected = []
    for training, test in labelled.folds:
        assert not set(groups[training]) & set(groups[test])
        scaler = StandardScaler().fit(features[training])
        model = Ridge(alpha=0.1 * 256).fit(scaler.transform(features[training]), np.where(is_high[training], 1, -1))
        expected.append(((model.predict(scaler.transform(features[test])) > 0) == is_high[test]).mean())
    assert labelled.nested_of_log_mel(statistics).tolist() == pytest.approx(expected)
    assert labelled.share == pytest.approx(np.mean([len(test) / len(training) for training, test in labelled.folds]))


@pytest.mark.slow
def test_few_labels_are_those_of_the_training_clips_of_a_fold(script, clips, tmp_path):
    """Vectors that give the class, or for each fold the training clips alone, or nothing."""
    labelled = script.Clips(script.join_splits(clips), save_encoder(tmp_path / "encoder"))
    one_hot = np.eye(2)[labelled.classes]
    assert all((folds == 1).all() for folds in labelled.few_of(one_hot).values())
    nothing = labelled.few_of(np.zeros((len(one_hot), 3)))
    for place, (_, test) in enumerate(labelled.folds):
        share = (labelled.classes[test] == 0).mean()
        assert all(folds[place] == share for folds in nothing.values())
        hidden = one_hot.copy()
        hidden[test] = 1 - one_hot[test]
        assert labelled.few_of(hidden)["16"][place] == 0


def test_vectors_of_other_clips_are_refused(script, clips, tmp_path):
    table = script.join_splits(clips)
    path = tmp_path / "log_mel.parquet"
    script.vectors_of(script.LOG_MEL_MODEL, table, path)
    fewer = tmp_path / "all.csv"
    rows = table.read_text(encoding="utf-8").splitlines()
    fewer.write_text("\n".join(rows[:-1]), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"log_mel\.parquet: has not the clips of .*all\.csv; remove it"):
        script.vectors_of(script.LOG_MEL_MODEL, fewer, path)


def write_run(folder, **results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))


def run(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["pretraining_budgets.py", *map(str, words)])
    script.main()


@pytest.mark.slow
def test_finished_runs_are_not_repeated(script, clips, tmp_path, monkeypatch, capsys):
    """Three encoders of one shape, two of one title, and their random weights, by finished pretrainings and sweeps."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mandarin-tones").symlink_to(clips)
    scores = {"joint-5-seed0": 0.5, "contrast-5-seed0": 0.75, "contrast-5-seed1": 0.65}
    scores |= {f"random-16x16-seed{seed}": 0.2 + 0.05 * seed for seed in script.RANDOM_SEEDS}
    for name, score in scores.items():
        if not name.startswith("random"):
            training = {"seconds": 90, "audio_hours": 0.5}
            write_run(save_encoder(tmp_path / "encoders" / name), training=training)
        model = {"fusion_layers": [0, 2], "readout": "frames", "pooling": ["mean", "max"], "pooling_combination": "sum"}
        folds = [score + step for step in 2 * (-0.02, 0.01, 0.01)]
        best = {"model": model, "accuracy": 1.0, "nested": {"accuracy": score, "folds": folds}}
        write_run(tmp_path / "sweeps" / f"{name}-mandarin-tones", best=best)
    words = ["--packages", tmp_path, "--output", tmp_path, "--sets", "mandarin-tones"]
    run(script, monkeypatch, *words, "--runs", "contrast:5", "joint:5", "contrast:5:1")
    report = json.loads((tmp_path / "pretraining_budgets.json").read_text())
    assert [run["minutes"] for run in report["runs"].values()] == 3 * [1.5]
    rows = {row["features"]: row for row in report["scores"]["mandarin-tones"]}
    assert list(rows) == [
        "log-mel statistics", "random weights, 16x16", "generative and contrast, 16x16, 5 steps",
        "both objectives (SSAST), 16x16, 5 steps",
    ]  # fmt: skip
    both = rows["generative and contrast, 16x16, 5 steps"]
    assert both["chosen"] == ["layers 0, 2; frames; mean, max (sum)"]
    score = both["scores"]["all"]
    assert score["mean"] == pytest.approx(0.7) and len(score["folds"]) == 6
    assert score["seeds"] == pytest.approx([0.75, 0.65])
    assert score["beyond"]["random weights"]["difference"] == pytest.approx(0.45)
    assert list(both["scores"]) == ["2", "4", "8", "16", "all"]
    few = [rows[name]["scores"]["4"]["mean"] for name in rows]
    assert both["scores"]["4"]["beyond"]["log-mel statistics"]["difference"] == pytest.approx(few[2] - few[0])
    assert len(rows["random weights, 16x16"]["scores"]["4"]["seeds"]) == 3
    statistics = rows["log-mel statistics"]["scores"]
    assert statistics["2"]["beyond"] == {} and min(statistics["16"]["folds"]) == 1.0  # tones of two heights
    printed = capsys.readouterr().out
    assert "0.700 (0.650-0.750)" in printed and "+0.450" in printed
    assert (tmp_path / "pretraining_budgets.png").stat().st_size > 10_000
    assert not list(tmp_path.rglob("*.log"))  # nothing was run


def test_a_fold_is_fine_tuned_with_the_rate_that_is_best_in_the_others(script, clips, tmp_path):
    """
    The first fold makes the last rate the best of all folds together. It gets the first rate itself, which is best in
    the others; each of the others gets the last one.
    """
    table = script.join_splits(clips)
    labelled = script.Clips(table, save_encoder(tmp_path / "encoder"))
    encoders = [tmp_path / "one", tmp_path / "two"]
    first, *_, last = script.RATES
    calls = []

    class Pool:
        def map(self, _, *columns):
            return itertools.starmap(self.train, zip(*columns))

        def train(self, folder, recipe, *words):
            given = dict(zip(words[::2], words[1::2]))
            place, rate = given["--seed"], given["--learning_rate"]
            accuracy = {first: 0.5 if place else 0.0, last: 0.4 if place else 1.0}.get(rate, 0.0)
            write_run(folder, metrics={"test": {"accuracy": accuracy}})
            calls.append((recipe, given["--model_name_or_path"], given["--train_file"], given["--test_file"]))

    scores = script.FineTuning(labelled, tmp_path / "finetuned", Pool()).score(encoders)
    assert {labels: folds.tolist() for labels, folds in scores.items()} == {
        str(count): [0.0, 0.4, 0.4, 0.4, 0.4, 0.4] for count in script.FEW
    }
    for recipe, encoder, drawn, tested in calls:
        place = int(tested.stem.split("-")[1])
        drawn, tested = map(read_rows, (drawn, tested))
        assert recipe == script.FINETUNING and encoder == encoders[place % 2]
        assert not {row["group"] for row in drawn} & {row["group"] for row in tested}
        everything = read_rows(table)
        expected = [str(clips / everything[index]["file_name"]) for index in labelled.folds[place][1]]
        assert [row["file_name"] for row in tested] == expected


def test_a_missing_package_is_named(script, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        run(script, monkeypatch, "--packages", tmp_path, "--output", tmp_path / "out", "--sets", "mandarin-tones")
    assert str(stopped.value) == f"{tmp_path}: lacks gcin-voice; there, run: apt-get download gcin-voice"


def test_every_variant_fits_its_recipe(script):
    """Each configuration is one that the model accepts, for two seconds."""
    for name, variant in script.VARIANTS.items():
        recipe = script.read_recipe(variant.recipe)
        frames = (recipe | variant.settings)["max_length"]
        kind = ASiTConfig if recipe["task"] == "asit" else DualSSASTConfig
        config = kind(**variant.config_overrides, max_length=frames)
        patch_mels, patch_frames = variant.patch
        assert config.grid_shape == (128 // patch_mels, frames // patch_frames), name


@pytest.mark.parametrize(
    "words, message",
    [("dual:5", "dual: no variant"), ("joint", "joint: write VARIANT:STEPS"), ("joint:0", "joint:0: ")],
)
def test_a_run_that_cannot_be_is_refused(script, monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, "--packages", "here", "--runs", words)
    assert message in capsys.readouterr().err


def test_a_kit_lies_on_one_side_although_authors_have_several(script, tmp_path):
    folder = tmp_path / script.DRUMS
    folder.mkdir()
    for split in script.SPLITS:
        kits = "".join(f"{split}{place}.flac,tom,Ann,drumkits/Kit {place}/tom.wav\n" for place in range(2))
        (folder / f"{split}.csv").write_text("file_name,label,group,source\n" + kits)
    with open(script.join_splits(folder), encoding="utf-8", newline="") as file:
        assert [row["group"] for row in csv.DictReader(file)] == 3 * ["Kit 0", "Kit 1"]
