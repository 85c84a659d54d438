"""Tests the tables of predict_hf.py and embed_hf.py, what they keep of manifests, and the choice of the hardware."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from audio_files import write_tone
from tiny_models import save_tiny_classifier

import embed_hf
import predict_hf
from training.errors import InputError
from training.inference import precision
from training.inference.inputs import ClipSequence, Examples, Files, open_inputs
from training.inference.precision import HardwareArguments, choose_hardware, place
from training.inference.tables import open_table

SECONDS = (0.5, 1.5, 0.1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), problem_type="multi_label_classification")


@pytest.fixture
def clips(tmp_path):
    for index, seconds in enumerate(SECONDS):
        write_tone(tmp_path / "clips" / f"{index}.wav", seconds=seconds, seed=index)
    return tmp_path / "clips"


def predict(model_folder, *words) -> int:
    return predict_hf.main(list(map(str, (model_folder, *words))))


def read(path) -> pandas.DataFrame:
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    if path.suffix == ".jsonl":
        return pandas.read_json(path, lines=True, dtype=False, precise_float=True)
    return pandas.read_csv(path, keep_default_na=False)


def test_every_ending_holds_the_same_table(model_folder, clips, tmp_path):
    tables = {}
    for ending in ("csv", "parquet", "jsonl"):
        paths = [tmp_path / f"{name}.{ending}" for name in ("scores", "windows")]
        words = ["--output", paths[0], "--windows", paths[1]]
        assert predict(model_folder, clips, *words, "--shard_clips", "2") == 0
        tables[ending] = list(map(read, paths))
        assert not paths[0].with_name(f"{paths[0].name}.shards").exists()
    for ending in ("parquet", "jsonl"):
        for one, other in zip(tables["csv"], tables[ending]):
            assert list(one) == list(other) and len(one) == len(other)
            for name in one:
                if one[name].dtype.kind == "f":
                    np.testing.assert_allclose(one[name], other[name].astype(float), rtol=1e-6)
                else:
                    assert one[name].tolist() == other[name].tolist()
    about = json.loads(pyarrow.parquet.read_schema(tmp_path / "scores.parquet").metadata[b"dual_ssast"])
    for ending in ("csv", "jsonl"):
        stored = json.loads((tmp_path / f"scores.{ending}.about.json").read_text())
        assert stored == about
    assert about["settings"]["dtype"] == "float32" and about["hardware"] == "float32 on cpu"


def test_files_without_windows_have_the_mean_alone(model_folder, clips, tmp_path):
    assert predict(model_folder, clips / "0.wav", clips / "2.wav", "--output", tmp_path / "a.csv") == 0
    assert list(read(tmp_path / "a.csv")) == [
        "file",
        "prediction",
        *(f"probability_{n}" for n in ("high", "low", "mid")),
    ]


def test_the_fingerprint_of_clips_changes_with_their_files_and_times(clips):
    """What a stopped run has stored must not be mixed with other clips of the same names."""

    def fingerprint(**columns) -> str:
        data = datasets.Dataset.from_dict(columns)
        return ClipSequence([Examples(SimpleNamespace(examples=data, names=lambda: ["x"] * len(data)))]).fingerprint()

    def of_files() -> list[str]:
        paths = list(map(str, sorted(clips.iterdir())))
        (clips.parent / "list.csv").write_text("\n".join(["file", *paths]))
        inputs = [paths, [str(clips)], [str(clips.parent / "list.csv")]]
        return [*(ClipSequence(open_inputs(own)).fingerprint() for own in inputs), fingerprint(audio=paths)]

    before, path = of_files(), clips / "1.wav"
    facts, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    os.utime(path, ns=(0, facts.st_mtime_ns + 1000))
    assert not {*before} & {*of_files()}
    path.write_bytes(content)
    os.utime(path, ns=(0, facts.st_mtime_ns))  # as cp -a and rsync -a leave a copy
    assert before == of_files()
    path.unlink()
    assert ClipSequence([Files([str(path)])]).fingerprint()  # a missing file is reported later

    parts = [fingerprint(audio=[str(path)], start=[start], end=[10802.0]) for start in (10800.1, 10800.1, 10800.14)]
    assert parts[0] == parts[1] != parts[2]
    stored = [fingerprint(audio=[{"path": "x.wav", "bytes": audio}]) for audio in (b"1", b"1", b"12")]
    assert stored[0] == stored[1] != stored[2]


MANIFEST = {
    "file_name": ["0.wav", "1.wav", "gone.wav", "2.wav"],
    "prediction": ["by hand", "", "x", "y"],
    "site": ["007", "north, 2", 'a "b"', ""],
    "year": [2021, 2022, 2023, 2024],
    "tags": [["a", "b"], [], ["c"], None],
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_columns_of_a_manifest_are_kept(model_folder, clips, tmp_path, kind, ending):
    manifest = pandas.DataFrame(MANIFEST)
    path, output, windows = clips / f"list.{kind}", tmp_path / f"o.{ending}", tmp_path / f"w.{ending}"
    if kind == "csv":
        manifest = manifest.drop(columns="tags")
        manifest.to_csv(path, index=False)
    else:
        manifest.to_parquet(path) if kind == "parquet" else manifest.to_json(path, orient="records", lines=True)
    write_tone(clips / "more" / "3.wav", seconds=0.2)
    words = ["--output", output, "--windows", windows, "--shard_clips", "3"]
    assert predict(model_folder, path, clips / "more" / "3.wav", *words) == 1
    table, by_window = read(output), read(windows)
    assert list(table)[:3] == ["file", "file_name", "given_prediction"]
    assert table["file"].tolist() == [
        *(str(clips / f"{index}.wav") for index in range(3)),
        str(clips / "more" / "3.wav"),
    ]
    joined = manifest.merge(table.iloc[:3], on="file_name")
    assert joined["site_x"].tolist() == joined["site_y"].tolist() == ["007", "north, 2", ""]
    assert joined["year_x"].tolist() == [int(year) for year in joined["year_y"]] == [2021, 2022, 2024]
    assert by_window["file_name"].tolist() == [
        "0.wav",
        *["1.wav"] * (len(by_window) - 3),
        "2.wav",
        by_window["file_name"].iloc[-1],
    ]
    assert by_window["file_name"].iloc[-1] in ("", None) or pandas.isna(by_window["file_name"].iloc[-1])
    if kind != "csv":
        tags = table["tags"].tolist()
        assert list(json.loads(tags[0]) if ending == "csv" else tags[0]) == ["a", "b"]


def test_embeddings_keep_the_columns_too(model_folder, clips, tmp_path):
    pandas.DataFrame({"file_name": ["2.wav", "0.wav"], "site": ["s", "t"]}).to_csv(clips / "list.csv", index=False)
    outputs = [tmp_path / "a.parquet", tmp_path / "a.npz"]
    for output in outputs:
        assert embed_hf.main([str(word) for word in (model_folder, clips / "list.csv", "--output", output)]) == 0
    table, arrays = pandas.read_parquet(outputs[0]), np.load(outputs[1])
    for found in (table, arrays):
        assert list(found["file_name"]) == ["2.wav", "0.wav"] and list(found["site"]) == ["s", "t"]
    np.testing.assert_array_equal(np.stack(list(table["embedding"])), arrays["embedding"])
    assert json.loads(str(arrays["about"]))["level"] == "clip"
    assert b"dual_ssast" in pyarrow.parquet.read_schema(outputs[0]).metadata


def test_columns_of_several_manifests_join(clips):
    pandas.DataFrame({"file_name": ["0.wav"], "x": [1], "y": ["a"]}).to_json(clips / "a.json", orient="records")
    pandas.DataFrame({"file_name": ["1.wav"], "x": ["b"], "z": [0.5]}).to_json(clips / "b.json", orient="records")
    sequence = ClipSequence(open_inputs([str(clips / "a.json"), str(clips / "2.wav"), str(clips / "b.json")]))
    assert sequence.own().to_pydict() == {
        "file_name": ["0.wav", None, "1.wav"], "x": ["1", None, "b"], "y": ["a", None, None], "z": [None, None, 0.5],
    }  # fmt: skip
    numbers = [number for _, group in sequence.groups(2, lambda shard: True) for number, *_ in group]
    names = [name for _, group in sequence.groups(2, lambda shard: True) for _, name, _ in group]
    assert numbers == [0, 1, 2] and [name[-5:] for name in names] == ["0.wav", "2.wav", "1.wav"]
    # Arrow looks at all chunks to take a few rows: a million rows would be read for every 128.
    assert all(column.num_chunks == 1 for column in sequence.own().columns)
    assert ClipSequence(open_inputs([str(clips)])).own() is None


def test_a_finished_table_is_not_lost(model_folder, clips, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    output.write_text("by hand")
    for _ in range(2):
        assert predict(model_folder, clips, "--output", output) == 0
    first = tmp_path / "scores.previous.csv"
    assert f"the earlier {output} is kept as {first}" in capsys.readouterr().err
    assert first.read_bytes() == output.read_bytes()
    output.write_text("by hand")
    assert predict(model_folder, clips, "--output", output, "--overwrite") == 0
    assert first.read_bytes() == output.read_bytes() != b"by hand"


def test_a_table_that_a_link_leads_to_is_not_lost(model_folder, clips, tmp_path):
    """A second name of the link would lead to the new table, too."""
    real, output = tmp_path / "elsewhere" / "real.csv", tmp_path / "scores.csv"
    real.parent.mkdir()
    real.write_text("by hand")
    output.symlink_to(real)
    assert predict(model_folder, clips, "--output", output) == 0
    kept = tmp_path / "scores.previous.csv"
    assert kept.read_text() == "by hand" and output.is_symlink() and real.read_text() != "by hand"


def test_nothing_readable_writes_nothing_and_is_tried_again(model_folder, tmp_path, capsys):
    clip, output = tmp_path / "a.wav", tmp_path / "scores.csv"
    clip.write_bytes(b"RIFFrubbish")
    assert predict(model_folder, clip, "--output", output) == 1
    assert "1 of 1 files could not be classified" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    write_tone(clip)
    assert predict(model_folder, clip, "--output", output) == 0 and output.exists()


def test_a_list_of_an_earlier_run_is_not_named(model_folder, tmp_path, capsys):
    """It belongs to the table that is still there."""
    clips, output = [tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "scores.csv"
    write_tone(clips[0])
    clips[1].write_bytes(b"RIFFrubbish")
    assert predict(model_folder, *clips, "--output", output) == 1
    listed = f"1 of 2 files could not be classified; {output}.unreadable.csv lists them"
    assert listed in capsys.readouterr().err
    clips[0].write_bytes(b"RIFFrubbish")
    assert predict(model_folder, *clips, "--output", output) == 1
    assert "2 of 2 files could not be classified\n" in capsys.readouterr().err
    assert len(pandas.read_csv(f"{output}.unreadable.csv")) == 1


def test_what_a_run_replaces_is_not_read(model_folder, clips, tmp_path, capsys):
    """The list of unreadable files is a manifest, which is read again when they are repaired."""
    (clips / "3.wav").write_bytes(b"RIFFrubbish")
    output, vectors = tmp_path / "scores.csv", tmp_path / "out.npz"
    assert predict(model_folder, clips, "--output", output) == 1
    assert embed_hf.main([str(model_folder), str(clips), "--output", str(vectors)]) == 0
    capsys.readouterr()
    listed = f"{output}.unreadable.csv"
    assert predict(model_folder, listed, "--output", output) == 1
    assert f"{listed} is read here, and would be replaced; name another file" in capsys.readouterr().err
    listed = f"{vectors}.unreadable.csv"
    assert embed_hf.main([str(model_folder), listed, "--output", str(vectors), "--overwrite"]) == 1
    assert f"{listed} is read here, and would be replaced; name another file" in capsys.readouterr().err
    events = f"{output}.about.json"
    assert predict(model_folder, clips, "--output", output, "--events", events) == 1
    assert f"{events} is events, too; name another file" in capsys.readouterr().err


def test_every_failure_is_printed_where_no_list_has_it(model_folder, tmp_path, capsys):
    for index in range(22):
        (tmp_path / f"{index:02}.wav").write_bytes(b"RIFFrubbish")
    for words in ([], ["--output", tmp_path / "scores.csv"]):
        assert predict(model_folder, tmp_path, *words) == 1
        told = capsys.readouterr().err
        assert all(f"{index:02}.wav: " in told for index in range(22)) and "22 of 22 files could not be" in told
    write_tone(tmp_path / "good.wav")
    assert predict(model_folder, tmp_path, "--output", tmp_path / "scores.csv") == 1
    assert capsys.readouterr().err.count("error: ") == predict_hf.PRINTED_FAILURES


def test_a_stream_without_clips_is_refused(model_folder, tmp_path, capsys):
    folder = tmp_path / "stored"
    folder.mkdir()
    audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    pyarrow.parquet.ParquetWriter(folder / "train.parquet", pyarrow.schema([("audio", audio)])).close()
    message = f"error: {folder}: the stream holds no clips; name another split"
    for words in ([], ["--output", tmp_path / "scores.csv"]):
        assert predict(model_folder, folder, "--streaming", *words) == 1
        assert message in capsys.readouterr().err
    words = ["--streaming", "--output", str(tmp_path / "out.npz")]
    assert embed_hf.main([str(model_folder), str(folder), *words]) == 1
    assert message in capsys.readouterr().err


def test_json_inputs_name_recordings_and_have_no_weight(clips):
    (source,) = open_inputs([json.dumps({"path": str(clips / "0.wav")})])
    assert source.names() == [str(clips / "0.wav")]
    for given, message in (
        ({"path": str(clips), "weight": 3}, "weight = 3 has no effect on what is read once; remove it"),
        ({"path": str(clips / "0.wav"), "split": "test"}, "split = 'test' has no effect on a recording; remove it"),
    ):
        with pytest.raises(InputError, match=message):
            open_inputs([json.dumps(given)])


def test_a_table_is_read_again_with_the_same_recordings(model_folder, tmp_path, monkeypatch):
    """Other recordings have the same names in the folder of the table, and the first one's scores differ."""
    for folder, hz in (("a", 440), ("b", 1500)):
        write_tone(tmp_path / folder / "audio" / "x.wav", hz=hz)
    monkeypatch.chdir(tmp_path)
    Path("a/t.csv").write_text("file_name,file\naudio/x.wav,17\n")
    assert predict(model_folder, "a/t.csv", "--output", "b/o.csv") == 0
    assert predict(model_folder, "b/o.csv", "--output", "b/o2.csv") == 0
    first, second = read(Path("b/o.csv")), read(Path("b/o2.csv"))
    assert list(first)[:3] == ["file", "file_name", "given_file"] and first["file"].tolist() == ["a/audio/x.wav"]
    for name in first.columns[:1].append(first.columns[4:]):
        assert first[name].tolist() == second[name].tolist()
    for column in ("audio", "file"):
        Path("a/t.csv").write_text(f"{column}\naudio/x.wav\n")
        assert embed_hf.main(["log-mel", "a/t.csv", "--output", f"b/{column}.parquet"]) == 0
        assert embed_hf.main(["log-mel", f"b/{column}.parquet", "--output", f"a/{column}.parquet"]) == 0
        first, second = (pandas.read_parquet(f"{folder}/{column}.parquet")["embedding"][0] for folder in "ba")
        assert first.tolist() == second.tolist()


def test_columns_stay_apart_when_an_output_is_classified_again(model_folder, clips, tmp_path):
    (tmp_path / "0.csv").write_text(f"file,prediction\n{clips / '0.wav'},mine\n")
    for number in (1, 2, 3):
        given, output = tmp_path / f"{number - 1}.csv", tmp_path / f"{number}.csv"
        assert predict(model_folder, given, "--output", output) == 0
        names = output.read_text().splitlines()[0].split(",")
        assert len(set(names)) == len(names)
    assert pandas.read_csv(output)["given_prediction"].tolist() == ["mine"]


def test_a_table_that_fails_leaves_the_earlier_one(tmp_path):
    (tmp_path / "a.csv").write_text("old")
    with pytest.raises(ZeroDivisionError), open_table(tmp_path / "a.csv", {}) as write:
        write([("x", np.ones(3)), ("y", ["a", None, "c"])])
        _ = 1 / 0
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.csv", "old")]


# ---- hardware ----


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_what_is_fast(monkeypatch, fast, dtype):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: fast)
    assert str(choose_hardware(HardwareArguments(device="cpu"))) == f"{dtype} on cpu"
    assert choose_hardware(HardwareArguments(dtype="float16", device="cpu")).dtype == torch.float16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["clip", "frames", "layers"])
def test_half_precision_gives_the_same_in_float32(model_folder, clips, tmp_path, capsys, dtype, level):
    outputs = {}
    for name in (dtype, "float32"):
        outputs[name] = tmp_path / f"{name}.parquet"
        words = [model_folder, clips, "--output", outputs[name], "--dtype", name, "--device", "cpu", "--level", level]
        assert embed_hf.main(list(map(str, words))) == 0
        assert f"weights: {name} on cpu" in capsys.readouterr().err
    half, full = map(pandas.read_parquet, outputs.values())
    for name in (name for name in full if name.startswith(("embedding", "layer"))):
        one, other = np.stack(list(half[name])), np.stack(list(full[name]))
        assert one.dtype == np.float32 and not np.array_equal(one, other)
        # bfloat16 has 8 bits: two blocks of rounded sums of values around 1.
        np.testing.assert_allclose(one, other, atol=16 * 2.0**-8)


def test_a_stopped_run_does_not_go_on_in_another_format(model_folder, clips, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("training.inference.scores.Classifier.run", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(model_folder, clips, "--output", tmp_path / "a.csv")
    assert predict(model_folder, clips, "--output", tmp_path / "a.csv", "--dtype", "bfloat16") == 1
    assert "was made with settings.dtype 'float32', now 'bfloat16'" in capsys.readouterr().err
    assert predict(model_folder, clips, "--output", tmp_path / "a.csv", "--threads", "1") == 0
    assert torch.get_num_threads() == 1


def test_weights_beyond_float16_are_refused():
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, 1e5)
    with pytest.raises(InputError, match="dtype float16: cannot hold the weights"):
        place(model, choose_hardware(HardwareArguments(dtype="float16", device="cpu")))


def test_a_device_that_is_not_there_is_one_line():
    for device in ("meta", "nowhere", "cuda:7"):
        with pytest.raises(InputError, match=f"device {device}: cannot be used here"):
            choose_hardware(HardwareArguments(device=device))
