"""Tests training.suggest: what it chooses and never chooses, the loop of suggesting and labelling, refusals."""

import json

import numpy as np
import pandas
import pytest

from training import suggest as program
from training.data.labels import LabelSet
from training.embeddings.known_labels import KnownLabels
from training.embeddings.linear import scaled
from training.embeddings.suggesting import STRATEGIES, distances, doubt_of, farthest, herd, suggest
from training.errors import InputError

CENTRES = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
SIZE = 15  # clips around each centre


def clusters(seed=0):
    """Four separable classes: vectors (60, 2), classes (60,)."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(4), SIZE)
    return (CENTRES[classes] + rng.normal(size=(len(classes), 2))).astype(np.float32), classes


def known(clips, classes):
    clips = np.sort(np.array(clips, dtype=np.int64))
    numbers, targets = np.unique(classes[clips], return_inverse=True)
    return KnownLabels(clips, targets, LabelSet(tuple(map(str, numbers)), "single_label_classification"))


def write(folder, vectors, classes, labelled=()):
    names = [f"{place:02d}.wav" for place in range(len(vectors))]
    pandas.DataFrame({"file_name": names, "embedding": list(vectors)}).to_parquet(folder / "clips.parquet")
    rows = {"file_name": [names[i] for i in labelled], "label": [f"class {classes[i]}" for i in labelled]}
    pandas.DataFrame(rows).to_csv(folder / "known.csv", index=False)
    return names


def run(folder, *words):
    words = [folder / "clips.parquet", "--output", folder / "next.csv", *words]
    status = program.main(list(map(str, words)))
    assert status == 0
    return pandas.read_csv(folder / "next.csv")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_labelled_clip_is_suggested_and_none_twice(strategy):
    vectors, classes = clusters()
    for labelled in ([], [3], [0, 1, 2], [0, 20, 40], list(range(50))):
        found = suggest(scaled(vectors), known(labelled, classes), 10, strategy)
        assert len(set(found.clips)) == len(found.clips) == 10
        assert not set(found.clips) & set(labelled)
    found = suggest(scaled(vectors), known(range(55), classes), 10, strategy)
    assert sorted(found.clips) == [55, 56, 57, 58, 59]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_call_suggests_the_same(strategy, monkeypatch):
    monkeypatch.setattr("training.embeddings.suggesting.MOST_CLIPS", 30)  # a sample takes part
    vectors, classes = clusters()
    labels = known([0, 20, 40], classes)
    first, again, other = (suggest(scaled(vectors), labels, 6, strategy, seed).clips.tolist() for seed in (0, 0, 1))
    assert first == again and first != other


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_labels_every_cluster_gets_a_suggestion(strategy):
    for seed in range(5):
        vectors, classes = clusters(seed)
        found = suggest(scaled(vectors), known([], classes), 4, strategy)
        assert sorted(classes[found.clips]) == [0, 1, 2, 3]
        assert found.reason == "coverage" and np.isnan(found.doubt).all()


@pytest.mark.parametrize("strategy", ["herding", "coreset"])
def test_with_a_single_class_the_others_are_covered(strategy):
    vectors, classes = clusters()
    found = suggest(scaled(vectors), known([0, 1], classes), 3, strategy)
    assert sorted(classes[found.clips]) == [1, 2, 3]
    assert np.isnan(found.doubt).all()


@pytest.mark.parametrize("strategy", ["herding", "margin"])
def test_clips_between_the_classes_come_first(strategy):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-10, 1, 30), rng.normal(10, 1, 30), [0.1]])
    vectors = np.stack([x, rng.normal(size=61)], axis=1).astype(np.float32)
    found = suggest(scaled(vectors), known([*range(10), *range(30, 40)], np.array([0] * 30 + [1] * 31)), 1, strategy)
    assert found.clips[0] == 60 and found.doubt[0] > 0.5
    assert "doubt" in found.reason


def test_clips_that_repeat_are_not_all_suggested():
    """Twenty copies of the most doubtful clip: margin takes them all, herding takes one."""
    vectors = np.concatenate([np.full((5, 2), -5.0), np.full((5, 2), 5.0), np.zeros((20, 2)), [[1.0, -1.0]]])
    vectors = (vectors + np.arange(31)[:, None] * [0.0, 1e-4]).astype(np.float32)
    classes = np.array([0] * 5 + [1] * 26)
    by_margin, by_herding = (
        suggest(scaled(vectors), known([0, 5], classes), 2, each).clips for each in ("margin", "herding")
    )
    assert set(by_margin) <= set(range(10, 30)) and 30 in by_herding


def test_gains_of_herding_are_those_of_the_formula():
    """Each choice maximises the sum over clips of weight times the nearness to the nearest chosen clip."""
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(12, 3)), rng.uniform(size=12)
    between, nearest = distances(points, points), np.full(12, np.inf)

    def coverage(chosen):
        return (weights * np.exp(-((between[chosen].min(axis=0) / 0.7) ** 2))).sum()

    chosen = herd(between, nearest, weights, 0.7, 5).tolist()
    for place in range(1, 6):
        before = chosen[: place - 1]
        best = max(coverage([*before, other]) for other in range(12) if other not in before)
        np.testing.assert_allclose(coverage(chosen[:place]), best, rtol=1e-12)


def test_coreset_takes_the_farthest():
    line = np.array([[0.0], [1.0], [5.0], [9.0], [10.0]])
    between = distances(line, line)
    assert farthest(between, np.full(5, np.inf), 3).tolist() == [2, 0, 4]
    assert farthest(between, np.array([0.0, 1, 5, 9, 10]), 2).tolist() == [4, 2]


def test_doubt_is_one_minus_the_margin():
    single = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(doubt_of(single, False), [0.8, 0.0])
    np.testing.assert_allclose(doubt_of(np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.0]]), True), [1.0, 0.0, 0.5])


def test_a_loop_of_suggesting_and_labelling(tmp_path, capsys):
    vectors, classes = clusters()
    names = write(tmp_path, vectors, classes)
    tables = []
    for number in range(3):
        found = run(tmp_path, *(["--labels", *tables] if tables else []), "--count", 4, "--overwrite", "true")
        assert list(found.columns) == ["file_name", "label", "rank", "reason", "doubt", "predicted"]
        assert found["label"].isna().all() and found["rank"].tolist() == [1, 2, 3, 4]
        assert found["predicted"].isna().all() == (number == 0)
        found["label"] = [f"class {classes[names.index(name)]}" for name in found["file_name"]]
        tables.append(tmp_path / f"labelled_{number}.csv")
        found.to_csv(tables[-1], index=False)
    about = json.loads((tmp_path / "next.csv.about.json").read_text())
    assert about["labels"] == list(map(str, tables[:2])) and (about["strategy"], about["count"]) == ("margin", 4)
    labelled = pandas.concat(map(pandas.read_csv, tables))
    assert labelled["file_name"].is_unique and len(labelled) == 12 and labelled["label"].nunique() == 4
    rest = run(tmp_path, "--labels", *tables, "--count", 100, "--overwrite", "true")
    assert len(rest) == 48 and set(rest["file_name"]) | set(labelled["file_name"]) == set(names)
    assert "no more than these are left, of 100" in capsys.readouterr().out
    assert (rest["predicted"] == [f"class {classes[names.index(name)]}" for name in rest["file_name"]]).mean() > 0.95


def test_a_sample_is_mentioned(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.embeddings.suggesting.MOST_CLIPS", 30)
    write(tmp_path, *clusters())
    assert len(run(tmp_path, "--count", 40)) == 30
    said = capsys.readouterr().out
    assert "chosen from 30 clips, a random sample" in said and "no more than these are in it, of 40 that" in said


def test_rows_without_a_label_are_not_labelled(tmp_path):
    write(tmp_path, *clusters())
    (tmp_path / "known.csv").write_text("file_name,label\n00.wav,\n01.wav,a\n20.wav,b\n")
    found = run(tmp_path, "--labels", tmp_path / "known.csv", "--count", 58)
    assert "00.wav" in set(found["file_name"]) and not {"01.wav", "20.wav"} & set(found["file_name"])
    (tmp_path / "known.csv").write_text("file_name,label\n")  # nothing is labelled yet
    assert len(run(tmp_path, "--labels", tmp_path / "known.csv", "--count", 60, "--overwrite", "true")) == 60


def test_several_labels_per_clip(tmp_path):
    write(tmp_path, *clusters())
    (tmp_path / "known.csv").write_text("file_name,label\n00.wav,a\n15.wav,a;b\n30.wav,none\n45.wav,b\n")
    words = ["--labels", tmp_path / "known.csv", "--label_separator", ";", "--none_label", "none", "--count", 56]
    found = run(tmp_path, *words).fillna("")
    own = dict(zip(found["file_name"], found["predicted"]))
    assert [own[f"{name}.wav"] for name in ("05", "20", "35", "50")] == ["a", "a;b", "", "b"]
    # Another separator: what is written can be read again.
    (tmp_path / "known.csv").write_text((tmp_path / "known.csv").read_text().replace(";", "|"))
    words = ["--overwrite", "true", *("|" if word == ";" else word for word in words)]
    again = run(tmp_path, *words).fillna("")
    assert again["predicted"].tolist() == [text.replace(";", "|") for text in found["predicted"]]


def test_names_may_be_paths_from_the_table(tmp_path, monkeypatch):
    vectors, _ = clusters()
    (tmp_path / "audio").mkdir()
    names = [f"audio/{place}.wav" for place in range(len(vectors))]
    pandas.DataFrame({"file_name": names, "embedding": list(vectors)}).to_parquet(tmp_path / "clips.parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio" / "known.csv").write_text("file_name,label\n0.wav,a\n20.wav,b\n")
    found = run(tmp_path, "--labels", "audio/known.csv", "--count", 60)
    assert len(found) == 58 and not {"audio/0.wav", "audio/20.wav"} & set(found["file_name"])


def test_labels_of_other_clips_are_mentioned(tmp_path, caplog):
    write(tmp_path, *clusters())
    (tmp_path / "known.csv").write_text("file_name,label\n00.wav,a\nother.wav,b\n")
    run(tmp_path, "--labels", tmp_path / "known.csv")
    assert "1 labelled clips are not in" in caplog.text and "other.wav" in caplog.text


@pytest.mark.parametrize(
    ("table", "words", "message"),
    [
        ("file_name,label\nother.wav,a\n", [], "known.csv: other.wav is no clip of"),
        ("file_name,label\n00.wav,a\n00.wav,b\n", [], "labels 00.wav a second time"),
        ("file_name,label\n,a\n", [], "has no name in file_name"),
        ("clip,label\n00.wav,a\n", [], "which column is the audio?"),
        ("file_name,kind\n00.wav,a\n", [], "which column is the label?"),
        ("file_name,label\n00.wav,a\n", ["--strategy", "best"], "strategy: must be margin, herding or coreset"),
        ("file_name,label\n00.wav,a\n", ["--count", "0"], "count: must be 1 or more"),
        ("file_name,label\n00.wav,a\n", ["--output", "next.txt"], "next.txt: unknown kind of table"),
        ("file_name,label\n00.wav,a\n", ["--column", "layer_3"], "has no column layer_3"),
    ],
)
def test_refusals(tmp_path, capsys, table, words, message):
    write(tmp_path, *clusters())
    (tmp_path / "known.csv").write_text(table)
    words = [tmp_path / "clips.parquet", "--labels", tmp_path / "known.csv", "--output", tmp_path / "next.csv", *words]
    assert program.main(list(map(str, words))) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "next.csv").exists()


def test_tables_with_work_in_them_are_kept(tmp_path, capsys):
    vectors, classes = clusters()
    write(tmp_path, vectors, classes, labelled=range(60))
    words = [str(tmp_path / "clips.parquet"), "--labels", str(tmp_path / "known.csv"), "--output"]
    assert program.main([*words, str(tmp_path / "next.csv")]) == 1
    assert "all 60 clips are labelled" in capsys.readouterr().err
    assert program.main([*words, str(tmp_path / "known.csv")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert program.main([*words, str(tmp_path / "known.csv"), "--overwrite", "true"]) == 1
    assert "holds the labels" in capsys.readouterr().err


def test_usage():
    with pytest.raises(InputError, match="usage: python -m training.suggest"):
        program.SuggestArguments()
