"""Tests the reader of stored embeddings: what embed_hf.py writes comes back, and what is no such file is refused."""

import json

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from audio_files import write_tone
from tiny_models import save_tiny_classifier

import embed_hf
from training.data.tables import NamedClip
from training.embeddings.stored import ClipPlaces, clip_file, read_embeddings, suggestion
from training.errors import InputError

NAMES = ["a.wav", "ü.wav", "c.wav"]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(path, names=NAMES, vectors=VECTORS, **columns):
    """Writes a table as embed_hf.py does; vectors may also be lists."""
    if path.suffix == ".npz":
        np.savez(path, file_name=np.array(names), embedding=vectors, **{k: np.array(v) for k, v in columns.items()})
    else:
        pandas.DataFrame({"file_name": names, "embedding": list(vectors), **columns}).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Embeddings of a manifest with columns of its own, in both formats and at each level."""
    folder = tmp_path_factory.mktemp("made")
    model = save_tiny_classifier(folder / "model", initializer_range=0.3)
    names = [f"{index}.wav" for index in range(5)]
    for index, name in enumerate(names):
        write_tone(folder / name, seconds=0.2, hz=300 * (index + 1))
    rows = {"file_name": names, "label": ["a", None, "b", "b", "a"], "embedding": range(5), "box": [[1.0, 2.0]] * 5}
    pandas.DataFrame(rows).to_json(folder / "clips.json", orient="records")
    for name in ("clip.parquet", "clip.npz", "layers.npz", "frames.npz"):
        level = "clip" if name.startswith("clip") else name.split(".")[0]
        words = [model, folder / "clips.json", "--output", folder / name, "--level", level]
        assert embed_hf.main(list(map(str, words))) == 0
    return folder


def test_both_formats_come_back(made):
    table = pandas.read_parquet(made / "clip.parquet")
    for name in ("clip.parquet", "clip.npz"):
        found = read_embeddings(made / name)
        assert found.names == [f"{index}.wav" for index in range(5)]
        assert found.vectors.dtype == np.float32
        np.testing.assert_array_equal(found.vectors, np.stack(list(table["embedding"])))
        assert list(found.columns) == ["label", "given_embedding", "box"] and len(found.columns) == 5
        assert list(found.columns["given_embedding"]) == list(range(5))
        assert [list(box) for box in found.columns["box"]] == [[1.0, 2.0]] * 5
        assert list(found.columns["label"].fillna("")) == ["a", "", "b", "b", "a"]
        assert found.about["level"] == "clip" and found.about["model"] == str(made / "model")


def test_vectors_of_npz_stay_on_the_disk(made, tmp_path):
    found = read_embeddings(made / "clip.npz").vectors
    assert isinstance(found, np.memmap) and not found.flags.writeable
    np.savez_compressed(tmp_path / "small.npz", file_name=NAMES, embedding=VECTORS)
    np.savez(tmp_path / "turned.npz", file_name=NAMES, embedding=np.asfortranarray(VECTORS))
    np.savez(tmp_path / "wide.npz", file_name=NAMES, embedding=VECTORS.astype(np.float64))
    for path in tmp_path.glob("*.npz"):
        found = read_embeddings(path).vectors
        assert not isinstance(found, np.memmap) and found.dtype == np.float32
        np.testing.assert_array_equal(found, VECTORS)


def test_a_layer_is_named(made):
    with np.load(made / "layers.npz") as stored:
        np.testing.assert_array_equal(read_embeddings(made / "layers.npz", "layer_1").vectors, stored["layer_1"])
    with pytest.raises(InputError, match="has 3 columns of vectors; name one of layer_0, layer_1, layer_2"):
        read_embeddings(made / "layers.npz")
    with pytest.raises(InputError, match="has no column layer_7; did you mean layer_"):
        read_embeddings(made / "layers.npz", "layer_7")
    with pytest.raises(InputError, match="has a row per time frame; name an output of embed_hf.py --level clip"):
        read_embeddings(made / "frames.npz")


def test_whole_numbers_stay_whole_beside_missing_ones(tmp_path):
    table = pyarrow.table({"file_name": NAMES, "embedding": list(VECTORS), "label": [1, None, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "some.parquet")
    assert list(map(str, read_embeddings(tmp_path / "some.parquet").columns["label"])) == ["1", "None", "0"]


def test_parquet_of_others_in_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("training.embeddings.stored.BLOCK", 2)
    names = [f"{index}.wav" for index in range(7)]
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    table = pyarrow.table({"embedding": list(vectors), "file_name": names, "embeddings": range(7)})
    pyarrow.parquet.write_table(table, tmp_path / "some.parquet", row_group_size=3)
    found = read_embeddings(tmp_path / "some.parquet")
    np.testing.assert_array_equal(found.vectors, vectors.astype(np.float32))
    assert found.names == names and list(found.columns) == ["embeddings"] and found.about == {}


def with_nan(kind):
    return np.where(np.arange(12).reshape(3, 4) == 7, kind, VECTORS)


@pytest.mark.parametrize(
    ("ending", "changes", "message"),
    [
        ("parquet", {"vectors": with_nan(np.nan)}, "the vector of ü.wav is not finite; remove that clip"),
        ("npz", {"vectors": with_nan(np.float32(np.inf))}, "the vector of ü.wav is not finite"),
        ("npz", {"vectors": VECTORS.astype(np.float64) * 1e39}, "the vector of a.wav is not finite"),
        ("parquet", {"vectors": [[1.0, 2.0], [1.0, 2.0], [1.0]]}, "the vector in row 3 has 1 numbers, others have 2"),
        ("parquet", {"vectors": [[1.0], None, [2.0]]}, "the vector in row 2 has no numbers"),
        ("parquet", {"vectors": [[1.0], [None], [2.0]]}, "the vector of ü.wav is not finite"),
        ("parquet", {"vectors": ["x", "y", "z"]}, "the column embedding holds no vectors but"),
        ("npz", {"vectors": VECTORS[0, :3]}, "the array embedding holds no vectors but float32 (3,)"),
        ("npz", {"vectors": VECTORS[:2]}, "file_name has 3 rows, embedding has 2"),
        ("parquet", {"names": [], "vectors": []}, "has no rows; embed some clips"),
        ("npz", {"names": [], "vectors": VECTORS[:0]}, "has no rows; embed some clips"),
        ("parquet", {"names": ["a.wav", "b\n.wav", "b\n.wav"]}, r"lists b\n.wav 2 times; leave one row of each clip"),
        ("parquet", {"names": ["a.wav", None, "b.wav"]}, "row 2 has no file_name; fill it in"),
    ],
)  # fmt: skip
def test_what_has_no_result_is_refused_in_one_line(tmp_path, ending, changes, message):
    path = write(tmp_path / f"some.{ending}", **changes)
    with np.errstate(over="ignore"), pytest.raises(InputError) as refused:
        read_embeddings(path)
    assert str(refused.value).startswith(f"{path}: ") and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_clips_may_repeat_where_that_is_no_matter(tmp_path):
    path = write(tmp_path / "some.npz", names=["a.wav"] * 3)
    assert read_embeddings(path, may_repeat=True).names == ["a.wav"] * 3


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file; name an output of embed_hf.py"):
        read_embeddings(tmp_path / "no.npz")
    (tmp_path / "some.csv").write_text("file_name,embedding\n")
    with pytest.raises(InputError, match="must end in .parquet or .npz"):
        read_embeddings(tmp_path / "some.csv")
    pandas.DataFrame({"file_name": NAMES, "label": NAMES}).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(InputError, match=r"has no column of vectors \(embedding\)"):
        read_embeddings(tmp_path / "some.parquet")
    pandas.DataFrame({"file": NAMES, "embedding": list(VECTORS)}).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(InputError, match="has no column file_name"):
        read_embeddings(tmp_path / "some.parquet")
    np.savez(tmp_path / "objects.npz", file_name=np.array([None]), embedding=VECTORS[:1])
    with pytest.raises(InputError, match="not readable"):
        read_embeddings(tmp_path / "objects.npz")


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_damaged_files_are_refused(tmp_path, ending):
    path = write(tmp_path / f"some.{ending}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not readable"):
        read_embeddings(path)
    place = whole.index(VECTORS[1].tobytes()) if ending == "npz" else len(whole) - 6
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    with pytest.raises(InputError, match="not readable"):
        read_embeddings(path)


def test_recordings_are_found_where_the_table_says(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.wav").touch()
    monkeypatch.chdir(tmp_path / "here")
    folders = (tmp_path / "there",)
    assert clip_file("here.wav", folders) == "here.wav"
    assert clip_file("there.wav", folders) == str(tmp_path / "there" / "there.wav")
    assert clip_file(str(tmp_path / "here" / "here.wav"), folders) == str(tmp_path / "here" / "here.wav")
    assert clip_file("nowhere.wav", folders) is None


def test_clips_are_found_by_name_and_else_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a.wav", "sub/b.wav", "a.wav", "c.wav"]
    places, whole = ClipPlaces(names), str(tmp_path / "sub" / "b.wav")
    assert places.find(NamedClip("a.wav", "elsewhere/a.wav")) == [0, 2]
    assert places.find(NamedClip("b.wav", "sub/b.wav")) == places.find(NamedClip(whole, whole)) == [1]
    assert places.find(NamedClip("b.wav", "elsewhere/b.wav")) == []
    # Known files take the place of the names as paths.
    places = ClipPlaces(names, [None, None, None, "elsewhere/c.wav"])
    assert places.find(NamedClip("./c.wav", "elsewhere/c.wav")) == [3]
    assert places.find(NamedClip("./c.wav", "c.wav")) == [] and places.find(NamedClip("./a.wav", "a.wav")) == [0, 2]


def test_clips_are_found_through_links(tmp_path, monkeypatch):
    """A collection that was embedded through a link was a stranger to tables with the paths themselves."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in "ab":
        (tmp_path / "real" / f"{name}.wav").touch()
    monkeypatch.chdir(tmp_path)
    names = ["link/a.wav", "link/gone.wav", "link/b.wav"]
    places, whole = ClipPlaces(names), str(tmp_path / "real" / "b.wav")
    assert places.find(NamedClip("b.wav", whole)) == places.find(NamedClip(whole, "real/b.wav")) == [2]
    assert places.find(NamedClip("gone.wav", "real/gone.wav")) == []
    assert ClipPlaces(names, [None, None, "real/a.wav"]).find(NamedClip("a.wav", "real/a.wav")) == [2]


def test_a_name_from_another_folder_is_explained(tmp_path, monkeypatch):
    """Relative names begin where embed_hf.py ran; from elsewhere the same clips were strangers without a reason."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.wav").touch()
    remedy = "Relative names begin in the folder where embed_hf.py ran: run the command there"
    assert suggestion("/x/a.wav", ["sub/a.wav"]) == f"did you mean sub/a.wav? {remedy}"
    assert suggestion("/x/b.wav", ["b.wav"]) == "did you mean b.wav?"


def test_what_made_the_vectors_is_known(made):
    about = read_embeddings(made / "clip.parquet").about
    assert about == json.loads(str(np.load(made / "clip.npz")["about"]))
