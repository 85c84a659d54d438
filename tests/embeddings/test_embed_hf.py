"""Tests embed_hf.py: its output, resumed and shared runs, and unreadable clips."""

import json

import numpy as np
import pandas
import pytest
import soundfile
from audio_files import launch, new_imports, write_tone, write_tones
from stopped_shards import stop_after
from tiny_models import TINY, save_tiny_classifier
from transformers import ASTConfig, AutoModel, ViTConfig

import embed_hf
from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel
from training.embeddings import embed as embedding
from training.embeddings.representations import compose, representations
from training.embeddings.stored import read_embeddings
from training.inference import inputs
from training.inference.shards import Shards
from training.inference.tables import unreadable_path

SECONDS = (0.5, 0.1, 1.5, 0.3, 0.4, 0.25, 0.2)  # 1.5 s are beyond the model's 0.655 s


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("clips"), SECONDS)


def embed(model_folder, inputs, output, *words) -> int:
    inputs = inputs if isinstance(inputs, list) else [inputs]
    words = [model_folder, *inputs, "--output", output, "--shard_clips", "2", *words]
    return embed_hf.main([str(word) for word in words])


def waveforms(clips):
    return [soundfile.read(file, dtype="float32")[0] for file in sorted(clips.glob("*.wav"))]


def vectors(table, column="embedding") -> np.ndarray:
    return np.stack(list(table[column]))


@pytest.mark.parametrize("extension", ["parquet", "npz"])
def test_a_row_per_clip(model_folder, clips, tmp_path, capsys, extension):
    output = tmp_path / f"out.{extension}"
    assert embed(model_folder, clips, output) == 0
    assert "7 clips: embedding (32)" in capsys.readouterr().out
    table = pandas.read_parquet(output) if extension == "parquet" else np.load(output)
    assert list(table["file_name"]) == [str(file) for file in sorted(clips.glob("*.wav"))]
    expected = AutoModel.from_pretrained(model_folder).embed(waveforms(clips), 16000)
    found = vectors(table)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name]


@pytest.mark.parametrize("extension", ["parquet", "npz"])
def test_a_row_per_time_frame(model_folder, clips, tmp_path, extension):
    output = tmp_path / f"out.{extension}"
    assert embed(model_folder, clips, output, "--level", "frames", "--readout", "frames") == 0
    table = pandas.read_parquet(output) if extension == "parquet" else np.load(output)
    model = AutoModel.from_pretrained(model_folder, readout="frames")
    for file, one in zip(sorted(clips.glob("*.wav")), model.embed_frames(waveforms(clips), 16000)):
        rows = np.flatnonzero(np.asarray(table["file_name"]) == str(file))
        np.testing.assert_allclose(np.asarray(table["time_ms"])[rows], one.time_ms)
        np.testing.assert_allclose(vectors(table)[rows], one.values.numpy(), atol=1e-5)


@pytest.mark.parametrize("words", [[], ["--pooling", "mean", "max", "--pooling_combination", "concat"]])
def test_a_column_per_layer_is_what_a_sweep_composes(model_folder, clips, tmp_path, words):
    output = tmp_path / "out.parquet"
    files = [clips / f"{index}.wav" for index in (0, 1, 3)]  # which fit into one window
    words = [*words, "--readout", "frames", "--level", "layers"]
    assert embed(model_folder, files, output, *words) == 0
    table = pandas.read_parquet(output)
    assert list(table) == ["file_name", "layer_0", "layer_1", "layer_2"]
    model = AutoModel.from_pretrained(model_folder)
    pooling, combination = (["mean", "max"], "concat") if len(words) > 4 else (model.config.pooling, "sum")
    audio = [soundfile.read(file, dtype="float32")[0] for file in files]
    features = DualSSASTFeatureExtractor(max_length=64)(audio, 16000, return_tensors="pt")
    arrays = {name: value.numpy() for name, value in representations(model, features).items()}
    for layer in range(3):
        expected = compose(arrays, "frames", (layer,), pooling, combination)
        np.testing.assert_allclose(vectors(table, f"layer_{layer}"), expected, atol=1e-5)


def test_columns_may_have_any_name_in_an_npz_file(clips, tmp_path):
    """Names of the parameters of `np.savez`, and that of the member that says what made the vectors."""
    own = {"file": "x", "about": "y", "allow_pickle": "z", "kwds": "k"}
    files = [str(clips / f"{index}.wav") for index in range(2)]
    pandas.DataFrame({"file_name": files, **own}).to_csv(tmp_path / "clips.csv", index=False)
    assert embed("log-mel", tmp_path / "clips.csv", tmp_path / "out.npz") == 0
    found = read_embeddings(tmp_path / "out.npz")
    assert found.names == files and found.about["model"] == "log-mel"
    expected = {f"given_{name}" if name == "about" else name: value for name, value in own.items()}
    assert found.columns.to_dict("records") == [expected] * 2
    # Otherwise the file is that of `np.savez`.
    arrays = dict(np.load(tmp_path / "out.npz"))
    arrays.pop("file")
    with open(tmp_path / "own.npz", "wb") as file:
        embedding.write_npz(file, arrays)
    np.savez(tmp_path / "numpy.npz", **{name: values for name, values in arrays.items() if name != "allow_pickle"})
    own, numpys = np.load(tmp_path / "own.npz"), np.load(tmp_path / "numpy.npz")
    assert set(own.files) == {*numpys.files, "allow_pickle"}
    assert all(own[name].tobytes() == numpys[name].tobytes() for name in numpys.files)


def test_layers_and_poolings_can_be_chosen(model_folder, clips, tmp_path):
    output = tmp_path / "out.npz"
    assert embed(model_folder, clips, output, "--fusion-layers", "0", "2", "--pooling", "max", "--window-s", "0.2") == 0
    model = AutoModel.from_pretrained(model_folder, fusion_layers=[0, 2], pooling=["max"])
    expected = model.embed(waveforms(clips), 16000, window_s=0.2).numpy()
    np.testing.assert_allclose(np.load(output)["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize("level", embedding.LEVELS)
def test_a_stopped_run_goes_on_to_the_same_file(model_folder, clips, tmp_path, monkeypatch, capsys, level):
    whole, stopped = tmp_path / "whole.parquet", tmp_path / "stopped.parquet"
    embed(model_folder, clips, whole, "--level", level)
    original, saved = Shards.save, stop_after(monkeypatch, 2)
    capsys.readouterr()
    assert embed(model_folder, clips, stopped, "--level", level) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted; {embed_hf.KEPT}"
    assert not stopped.exists() and saved == [0, 1]
    monkeypatch.setattr(Shards, "save", lambda self, *a: (saved.append(a[0]), original(self, *a)))
    capsys.readouterr()
    assert embed(model_folder, clips, stopped, "--level", level, "--window_s", "0.3") == 1
    assert "was made with settings.window_s None, now 0.3" in capsys.readouterr().err
    assert embed(model_folder, clips, stopped, "--level", level, "--num_workers", "0") == 0
    assert "goes on: 2 of 4 shards are done" in capsys.readouterr().err
    assert saved == [0, 1, 2, 3] and stopped.read_bytes() == whole.read_bytes()
    assert embed(model_folder, clips, stopped, "--level", level, "--window_s", "0.3", "--overwrite") == 0


def test_other_weights_do_not_go_on(model_folder, clips, tmp_path, monkeypatch, capsys):
    original = Shards.save
    monkeypatch.setattr(Shards, "save", lambda self, *a: (original(self, *a), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        embed(model_folder, clips, tmp_path / "out.npz")
    monkeypatch.undo()
    other = save_tiny_classifier(tmp_path / "other", initializer_range=0.1)
    monkeypatch.setattr("training.base.inference.AutoModel", _Redirected(other))
    assert embed(model_folder, clips, tmp_path / "out.npz") == 1
    assert "was made with weights" in capsys.readouterr().err


class _Redirected:
    def __init__(self, folder):
        self.folder = folder

    def from_pretrained(self, name, **options):
        return AutoModel.from_pretrained(self.folder, **options)


def test_unreadable_clips_are_listed_and_stop_nothing(model_folder, clips, tmp_path, capsys):
    rows = [str(file) for file in sorted(clips.glob("*.wav"))]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFFrubbish")
    rows[2:2] = [str(broken), str(tmp_path / "nowhere.wav")]  # a shard without a readable clip
    pandas.DataFrame({"file_name": rows}).to_csv(tmp_path / "clips.csv", index=False)
    output = tmp_path / "out.parquet"
    assert embed(model_folder, tmp_path / "clips.csv", output) == 0
    error = capsys.readouterr().err
    assert f"unreadable: {broken}: " in error and "2 of 9 clips are unreadable" in error
    table = pandas.read_parquet(output)
    assert table["file_name"].tolist() == rows[:2] + rows[4:]
    listed = pandas.read_csv(tmp_path / "out.parquet.unreadable.csv")
    assert listed["file_name"].tolist() == rows[2:4] and "no such file" in listed["reason"][1]
    assert embed(model_folder, clips, output, "--overwrite") == 0
    assert not (tmp_path / "out.parquet.unreadable.csv").exists()
    np.testing.assert_allclose(vectors(pandas.read_parquet(output)), vectors(table), atol=1e-5)


def test_sources_stand_one_after_the_other_and_streams_give_the_same(model_folder, clips, tmp_path):
    rows = [{"bytes": (clips / f"{index}.wav").read_bytes(), "path": f"{index}.wav"} for index in (4, 1, 2, 0, 3)]
    stored = tmp_path / "stored"
    stored.mkdir()
    pandas.DataFrame({"audio": rows}).to_parquet(stored / "train.parquet")
    inputs = [clips / "6.wav", clips / "5.wav", json.dumps({"path": str(stored), "split": "train"})]
    local, streamed = tmp_path / "local.npz", tmp_path / "streamed.npz"
    assert embed(model_folder, inputs, local) == 0
    inputs[2] = json.dumps({"path": str(stored), "streaming": True})
    assert embed(model_folder, inputs, streamed) == 0
    one, two = np.load(local), np.load(streamed)
    assert [name.rsplit("/")[-1] for name in one["file_name"]] == [f"{index}.wav" for index in (6, 5, 4, 1, 2, 0, 3)]
    for name in ("file_name", "embedding"):
        np.testing.assert_array_equal(one[name], two[name])
    assert embed(model_folder, stored, tmp_path / "alone.npz", "--streaming") == 0
    np.testing.assert_allclose(np.load(tmp_path / "alone.npz")["embedding"], one["embedding"][2:], atol=1e-5)


def test_a_folder_may_be_called_like_a_recording(tmp_path):
    write_tone(tmp_path / "a.wav" / "b.wav")
    (source,) = inputs.open_inputs([str(tmp_path / "a.wav")], streaming=False)
    assert source.names() == [str(tmp_path / "a.wav" / "b.wav")]


def old_output(folder):
    (folder / "out.npz").write_text("an old one")


def without_extractor(folder):
    save_tiny_classifier(folder / "model")
    (folder / "model" / "preprocessor_config.json").unlink()


def with_attention(folder):
    save_tiny_classifier(folder / "model", pooling=["attention"])


def with_separate_norms(folder):
    DualSSASTModel(DualSSASTConfig(**TINY, fusion_norm="separate")).save_pretrained(folder / "model")
    DualSSASTFeatureExtractor(max_length=64).save_pretrained(folder / "model")


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (None, ["--output", "DIR/out.csv"], "unknown kind of output; name a file that ends in .parquet or .npz"),
        (None, ["--output", "DIR/a/out.npz"], "a does not exist; make it or name another file"),
        (old_output, ["--output", "DIR/out.npz"], "exists already; add --overwrite or name another --output"),
        (old_output, ["--output", "DIR/out.npz", "--share", "1/2"], "exists already; move it away or name another"),
        (old_output, ["--output", "DIR/out.npz", "--share", "1/2", "--overwrite"], "share: with overwrite it would"),
        (None, ["--window_s", "9"], "window_s must be positive and at most max_length's 0.655 s"),
        (None, ["--fusion_layers", "7"], "fusion_layers must be integers from -3 to 2, got 7"),
        (None, ["--readout", "patchs"], "cannot embed (readout must be"),
        (without_extractor, ["MODEL"], "has no preprocessor_config.json"),
        (with_separate_norms, ["MODEL", "--level", "layers"], "has a norm for each fused layer"),
        (with_attention, ["MODEL", "--level", "layers"], "has attention for each fused layer"),
        (with_attention, ["MODEL", "--readout", "prefix"], "readout='prefix' does not pool, so pooling 'attention'"),
        (lambda folder: ASTConfig().save_pretrained(folder / "model"), ["MODEL"], "conversion hf-ast FOLDER OUT"),
        (
            lambda folder: ViTConfig().save_pretrained(folder / "model"),
            ["MODEL"],
            "model_type is 'vit', expected one of dual_ssast",
        ),
        (
            None,
            ["--level", "frames", "--pooling", "max"],
            "pooling: --level frames has a vector per time frame",
        ),
        (None, ["--level", "frames", "--pooling_combination", "sum"], "pooling_combination: --level frames has a"),
        (None, ["--level", "frames", "--readout", "prefix"], "readout prefix: has no time frames; take patches or"),
        (None, ["--level", "clips"], "level: must be clip, frames or layers, got 'clips'"),
        (None, ["--batch-size", "0"], "batch_size: must be 1 or more, got 0"),
        (None, ["--poolings", "max"], "unknown key poolings; did you mean pooling"),
    ],
)
def test_bad_calls_are_one_line(model_folder, tmp_path, capsys, prepare, words, message):
    folder = tmp_path / "clips"
    write_tone(folder / "a.wav", seconds=0.1)
    if prepare is not None:
        prepare(tmp_path)
    model = tmp_path / "model" if "MODEL" in words else model_folder
    words = [word.replace("DIR", str(tmp_path)) for word in words if word != "MODEL"]
    words = words if "--output" in words else [*words, "--output", str(tmp_path / "new.npz")]
    capsys.readouterr()
    assert embed_hf.main([str(model), str(folder), *words]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.glob("new.npz*"))


@pytest.mark.parametrize(
    ("inputs", "words", "message"),
    [
        (["empty.wav"], [], "error: none of 1 clips is readable; DIR/empty.wav: the file is empty"),
        (["nowhere.csv"], [], "error: DIR/nowhere.csv: no such file"),
        (["clips.csv"], ["--streaming"], "error: DIR/clips.csv: streaming = True has no effect on a manifest"),
    ],
)
def test_bad_inputs_are_one_line(model_folder, tmp_path, capsys, inputs, words, message):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "clips.csv").write_text("file_name\nempty.wav\n")
    assert embed(model_folder, [tmp_path / name for name in inputs], tmp_path / "out.npz", *words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(message.replace("DIR", str(tmp_path)))
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.slow
def test_two_processes_write_what_one_does(model_folder, clips, tmp_path):
    (clips / "7.wav").write_bytes(b"RIFFrubbish")
    outputs = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for count, output in enumerate(outputs, start=1):
        words = ["embed_hf.py", model_folder, clips, "--output", output, "--level", "frames", "--shard_clips", "2"]
        process = launch(count, *words)
        assert process.returncode == 0, process.stderr[-3000:]
    (clips / "7.wav").unlink()
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    listings = [unreadable_path(output).read_bytes() for output in outputs]
    assert listings[0] == listings[1] and b"7.wav" in listings[0]
    refused = launch(2, *words)
    assert "exists already" in refused.stderr and refused.stderr.count("error: ") == 1
    assert refused.returncode != 0


@pytest.mark.slow
def test_embedding_imports_nothing_heavy_that_it_does_not_need(model_folder, clips, tmp_path):
    output = tmp_path / "out.parquet"
    imported = new_imports("embed_hf", model_folder, clips, "--output", output)
    assert output.exists() and "training" in imported
    assert not imported & {"sklearn", "matplotlib", "evaluate", "jinja2", "scipy", "peft"}
