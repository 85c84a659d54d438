"""Tests the search for nearest clips: exact search, the index against it, new recordings, and refusals."""

import json
import shutil
import sys

import numpy as np
import pandas
import pytest
from audio_files import write_tone
from tiny_models import save_tiny_classifier

import embed_hf
from training import nearest
from training.embeddings.neighbours import (
    build_index,
    describe,
    exact_neighbours,
    neighbours_of_each,
    open_index,
    unit,
)
from training.embeddings.stored import Embeddings, read_embeddings
from training.errors import InputError


def separated(groups: int = 40, each: int = 8, size: int = 24, seed: int = 0) -> Embeddings:
    """Groups of clips about directions of their own."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(groups, size)), each, axis=0)
    vectors = (centres + 0.3 * rng.normal(size=centres.shape)) * rng.uniform(0.1, 9, (len(centres), 1))
    names = [f"{index // each}/{index}.wav" for index in range(len(centres))]
    return Embeddings(names, vectors.astype(np.float32), pandas.DataFrame(index=range(len(names))), {})


def write(path, found: Embeddings, **columns):
    np.savez(path, file_name=np.array(found.names), embedding=found.vectors, **columns)
    return path


def run(*words) -> int:
    return nearest.main([str(word) for word in words])


def test_exact_search_is_that_of_a_loop_and_does_not_depend_on_blocks(monkeypatch):
    found = separated(20)
    expected = unit(found.vectors) @ unit(found.vectors[:30]).T
    for block, queries in ((10_000, 10_000), (7, 4)):
        monkeypatch.setattr("training.embeddings.neighbours.BLOCK", block)
        monkeypatch.setattr("training.embeddings.neighbours.QUERIES", queries)
        rows, cosines = exact_neighbours(found.vectors, found.vectors[:30], 9)
        for query in range(30):
            order = sorted(range(len(expected)), key=lambda row: -expected[row, query])[:9]
            # Products of unit vectors of 24 numbers, in another order of the sum.
            np.testing.assert_allclose(cosines[query], expected[order, query], atol=24 * 2**-23)
            assert set(rows[query]) == set(order) and rows[query, 0] == query
    rows, cosines = neighbours_of_each(found.vectors, 7)
    assert rows.shape == cosines.shape == (160, 7)
    assert (rows // 8 == np.arange(160)[:, None] // 8).all() and (rows != np.arange(160)[:, None]).all()
    rows, _ = neighbours_of_each(found.vectors[:4], 10)
    assert rows.shape == (4, 3) and all(sorted({*row, own}) == [0, 1, 2, 3] for own, row in enumerate(rows.tolist()))


def test_equal_vectors_stand_in_the_order_of_their_rows():
    vectors = np.tile(np.float32([[1, 2], [2, 1]]), (3, 1))
    rows, cosines = exact_neighbours(vectors, vectors[:1], 4)
    assert rows.tolist() == [[0, 2, 4, 1]] and cosines[0, 0] == pytest.approx(1)
    rows, _ = neighbours_of_each(vectors, 2)
    assert rows.tolist() == [[2, 4], [3, 5], [0, 4], [1, 5], [0, 2], [1, 3]]


def test_lengths_do_not_matter_and_zeros_stay():
    found = unit(np.float32([[3e30, 4e30], [3e-30, 4e-30], [0, 0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.6, 0.8], [0, 0]], atol=2**-22)


def test_an_index_finds_what_exact_search_finds_and_is_kept(tmp_path):
    found = separated()
    built = build_index(tmp_path / "some.index", found, describe(found))
    opened = open_index(tmp_path / "some.index", found, describe(found))
    exact = exact_neighbours(found.vectors, found.vectors, 8)
    for index in (built, opened):
        rows, cosines = index.neighbours(found.vectors, 8)
        np.testing.assert_array_equal(rows, exact[0])
        np.testing.assert_allclose(cosines, exact[1], atol=24 * 2**-23)
        assert index.recall(7).share == 1 and index.recall(7).k == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.index"]


def test_recall_is_the_share_that_an_index_finds(tmp_path):
    found = separated(10)
    index = build_index(tmp_path / "some.index", found, describe(found))
    right = index.neighbours

    def wrong(queries, k):
        rows, cosines = right(queries, k)
        rows[:, -1] = (rows[:, 0] + 40) % 80  # the last of seven is another group's
        return rows, cosines

    index.neighbours = wrong
    assert index.recall(7).share == pytest.approx(6 / 7)
    assert str(index.recall(7)) == "it finds 85.7% of the 7 nearest clips that exact search does, for 80 clips"


@pytest.mark.parametrize("change", ["names", "vectors", "rows"])
def test_a_changed_table_has_another_index(tmp_path, change):
    found = separated(4)
    build_index(tmp_path / "some.index", found, describe(found))
    vectors, names = found.vectors.copy(), list(found.names)
    if change == "names":
        names[3] = "other.wav"
    elif change == "vectors":
        vectors[3, 3] += 1e-3
    else:
        vectors, names = vectors[:-1], names[:-1]
    other = Embeddings(names, vectors, found.columns, {})
    assert open_index(tmp_path / "some.index", other, describe(other)) is None
    assert open_index(tmp_path / "some.index", found, describe(found)) is not None


def test_the_program_lists_the_same_with_and_without_an_index(tmp_path, capsys):
    found = separated(6)
    label = np.array([name.split("/")[0] for name in found.names])
    table = write(tmp_path / "some.npz", found, label=label)
    clips = found.names[9], found.names[20]
    outputs = [tmp_path / "exact.csv", tmp_path / "index.csv", tmp_path / "again.csv"]
    assert run(table, *clips, "--k", 3, "--output", outputs[0]) == 0
    printed = capsys.readouterr()
    assert "48 clips; exact search" in printed.err and f"nearest to {clips[0]}:" in printed.out
    for output in outputs[1:]:
        assert run(table, *clips, "--k", 3, "--output", output, "--index", tmp_path / "i.usearch") == 0
    said = capsys.readouterr().err
    assert said.count("built; it finds 100.0% of the 3 nearest clips") == 1
    assert said.count(f"search with {tmp_path / 'i.usearch'}") == 2
    tables = [pandas.read_csv(output) for output in outputs]
    assert list(tables[0]) == ["file_name", "label", "nearest_to", "rank", "cosine"]
    assert tables[0]["nearest_to"].tolist() == [clips[0]] * 3 + [clips[1]] * 3
    assert tables[0]["rank"].tolist() == [1, 2, 3] * 2 and tables[0]["label"].tolist() == [1] * 3 + [2] * 3
    assert not {*clips} & {*tables[0]["file_name"]}
    for other in tables[1:]:
        pandas.testing.assert_frame_equal(other, tables[0], atol=1e-6)
    assert json.loads((tmp_path / "exact.csv.about.json").read_text())["search"] == "exact search"
    # A table of other vectors: the index is not used, and not lost either.
    before = (tmp_path / "i.usearch").read_bytes()
    table = write(tmp_path / "some.npz", separated(6, seed=1))
    assert run(table, clips[0], "--index", tmp_path / "i.usearch") == 1
    assert "was built from other vectors than those of" in capsys.readouterr().err
    assert (tmp_path / "i.usearch").read_bytes() == before
    assert run(table, clips[0], "--index", tmp_path / "i.usearch", "--overwrite", "true") == 0
    assert (tmp_path / "i.usearch").read_bytes() != before


def test_more_neighbours_are_asked_for_than_there_are(tmp_path, capsys):
    found = separated(1, each=3)
    table = write(tmp_path / "some.npz", found)
    assert run(table, found.names[0], "--k", 10) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2
    write(tmp_path / "one.npz", separated(1, each=1))
    assert run(tmp_path / "one.npz", "0/0.wav") == 1
    assert "has one clip and no others to find" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_tiny_classifier(folder / "model", initializer_range=0.3)
    for index in range(6):
        write_tone(folder / "clips" / f"{index}.wav", seconds=0.2 + 0.1 * index, hz=300 * (index + 1), seed=index)
    words = [
        folder / "model",
        folder / "clips",
        "--output",
        folder / "all.npz",
        "--pooling",
        "max",
        "--window_s",
        "0.3",
    ]
    assert embed_hf.main(list(map(str, words))) == 0
    return folder


def test_a_new_recording_is_encoded_as_those_of_the_table(made, capsys, tmp_path, monkeypatch):
    shutil.copy(made / "clips" / "5.wav", tmp_path / "new.wav")
    monkeypatch.chdir(tmp_path)
    assert run(made / "all.npz", "new.wav", "--output", tmp_path / "near.csv") == 0
    assert "1 new: encoded with" in capsys.readouterr().err
    found = pandas.read_csv(tmp_path / "near.csv")
    assert len(found) == 6 and found["file_name"][0] == str(made / "clips" / "5.wav")
    assert found["cosine"][0] == pytest.approx(1, abs=1e-5) and found["cosine"][1] < 1 - 1e-4


def test_a_clip_by_another_form_of_its_path_is_not_its_own_neighbour(made, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(made / "clips")
    for number, name in enumerate(("5.wav", "./5.wav", made / "clips" / "5.wav")):  # the table has its whole path
        assert run("../all.npz", name, "--output", tmp_path / f"{number}.csv") == 0
        assert "new: encoded with" not in capsys.readouterr().err
        found = pandas.read_csv(tmp_path / f"{number}.csv")["file_name"]
        assert len(found) and str(made / "clips" / "5.wav") not in set(found)


def test_a_clip_through_a_link_is_not_its_own_neighbour(made, capsys, tmp_path):
    (tmp_path / "link").symlink_to(made / "clips")
    assert run(made / "all.npz", tmp_path / "link" / "5.wav", "--output", tmp_path / "near.csv") == 0
    assert "new: encoded with" not in capsys.readouterr().err
    assert str(made / "clips" / "5.wav") not in set(pandas.read_csv(tmp_path / "near.csv")["file_name"])


def test_a_model_that_is_not_here_is_named_with_its_table(tmp_path, capsys):
    """Its path is relative to where embed_hf.py ran, and the user did not name it."""
    about = json.dumps({"model": "../gone", "level": "clip", "settings": {}, "weights": "x"})
    table = write(tmp_path / "some.npz", separated(2), about=np.array(about))
    write_tone(tmp_path / "new.wav")
    assert run(table, tmp_path / "new.wav") == 1
    reason = "the model that made it cannot be loaded here (../gone does not exist); name it with --model"
    assert f"error: {table}: {reason}\n" in capsys.readouterr().err
    assert run(table, tmp_path / "new.wav", "--model", "../gone") == 1
    assert "error: ../gone does not exist; python -m conversion" in capsys.readouterr().err


def test_another_model_is_refused(made, tmp_path, capsys):
    save_tiny_classifier(tmp_path / "other", initializer_range=0.2)
    write_tone(tmp_path / "new.wav")
    assert run(made / "all.npz", tmp_path / "new.wav", "--model", tmp_path / "other") == 1
    assert "its weights are not those that" in capsys.readouterr().err
    stored = read_embeddings(made / "all.npz")
    np.savez(tmp_path / "bare.npz", file_name=np.array(stored.names), embedding=stored.vectors)
    assert run(tmp_path / "bare.npz", tmp_path / "new.wav") == 1
    assert "does not say which model made it" in capsys.readouterr().err


def test_bad_calls_are_one_line(tmp_path, capsys):
    found = separated(2)
    table = write(tmp_path / "some.npz", found)
    found.vectors[3] = 0
    zero = write(tmp_path / "zero.npz", found)
    (tmp_path / "text.index").write_text("an index?")
    for words, message in (
        ([table], "usage: python -m training.nearest"),
        ([table, "9.wav"], "9.wav: neither a file nor a file_name of"),
        ([table, "9.wav"], "did you mean 1/9.wav?"),
        ([zero, "1/9.wav"], "the vector of 0/3.wav is zero, which has no direction"),
        ([table, "1/9.wav", "--k", "0"], "k: must be from 1 to 1000, got 0"),
        ([table, "1/9.wav", "--index", tmp_path / "text.index"], "is not an index of training.nearest"),
        ([table, "1/9.wav", "--index", tmp_path / "no" / "a.index"], "does not exist; make it"),
        ([table, "1/9.wav", "--output", tmp_path / "a.txt"], "unknown kind of table"),
        ([table, "1/9.wav", "--output", table], "some.npz is read here, and would be replaced; name another file"),
        ([table, "1/9.wav", "--index", table], "index: "),
        ([table, "1/9.wav", "--column", "embeding"], "has no column embeding; did you mean embedding?"),
    ):
        assert run(*words) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert (tmp_path / "text.index").read_text() == "an index?"


def test_a_damaged_index_is_refused(tmp_path, capsys):
    found = separated(4)
    path = tmp_path / "some.index"
    build_index(path, found, describe(found))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not an index of training.nearest"):
        open_index(path, found, describe(found))
    end = whole[-200:]
    path.write_bytes(whole[:100] + end[end.index(b"{") :])
    with pytest.raises(InputError, match="not readable"):
        open_index(path, found, describe(found))


def test_without_usearch_the_search_is_exact(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    table = write(tmp_path / "some.npz", separated(2))
    assert run(table, "1/9.wav", "--k", "2") == 0
    assert "exact search" in capsys.readouterr().err
    assert run(table, "1/9.wav", "--index", tmp_path / "some.index") == 1
    assert "pip install usearch, or leave out --index: the search is exact" in capsys.readouterr().err
