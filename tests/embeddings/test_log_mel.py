"""Tests log-mel statistics in place of a model: their numbers, padding, refusals, and the programs that read them."""

import json

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import write_class_folders, write_tones
from stopped_shards import stop_after

import embed_hf
from modeling_dual_ssast import DualSSASTFeatureExtractor
from training import nearest, suggest, suspects
from training.base.log_mel_statistics import log_mel_statistics, mean_and_deviation
from training.embeddings.log_mel import LOG_MEL
from training.embeddings.stored import read_embeddings

MEL = 128
SECONDS = (0.5, 0.1, 1.5, 0.3, 12.0)  # 12 s are beyond a window of 10.255 s


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("clips"), SECONDS)


def embed(*words) -> int:
    return embed_hf.main([str(word) for word in (LOG_MEL, *words)])


def embedded(folder, *words) -> np.ndarray:
    """Vectors (clips, size) of a folder, in the order of its files."""
    output = folder / "out.npz"
    assert embed(folder, "--output", output, "--overwrite", *words) == 0
    return np.load(output)["embedding"]


def by_hand(waveform) -> np.ndarray:
    """The statistics of a window in float64: (samples,) -> (3 mel,)"""
    features = DualSSASTFeatureExtractor()(waveform, 16000, return_tensors="np")["input_values"][0].astype(np.float64)
    changes = np.abs(features[1:] - features[:-1]).mean(axis=0) if len(features) > 1 else np.zeros(MEL)
    return np.concatenate([features.mean(axis=0), features.std(axis=0), changes])


def read(folder) -> list[np.ndarray]:
    return [soundfile.read(file, dtype="float32")[0] for file in sorted(folder.glob("*.wav"))]


def test_the_definition_on_numbers_that_are_computed_by_head():
    log_mel = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]])
    expected = [2, 2, (2 / 3) ** 0.5, 8**0.5, 1.5, 3]
    np.testing.assert_allclose(log_mel_statistics(log_mel), expected, rtol=1e-6)  # float32
    assert torch.equal(mean_and_deviation(log_mel), log_mel_statistics(log_mel)[:4])
    assert log_mel_statistics(log_mel[:1]).tolist() == [1, 0, 0, 0, 0, 0]  # a single frame does not change


def test_a_row_is_that_of_its_clip_alone(clips):
    """Sums of 1000 float32 features below 3: an error below 1e-5 in their mean, whatever the batch."""
    found, waveforms = embedded(clips), read(clips)
    assert found.shape == (len(SECONDS), 3 * MEL) and found.dtype == np.float32
    for row, waveform in zip(found[:4], waveforms):
        features = DualSSASTFeatureExtractor()(waveform, 16000, return_tensors="pt")["input_values"][0]
        np.testing.assert_allclose(row[:MEL], features.mean(dim=0), atol=1e-5)
        np.testing.assert_allclose(row, by_hand(waveform), atol=1e-5)
    # The long one: the mean over its windows, of which the last ends with it.
    window = DualSSASTFeatureExtractor().num_samples(1024)
    starts = [0, len(waveforms[4]) - window]
    assert 0 < starts[1] < window // 2
    expected = np.mean([by_hand(waveforms[4][start : start + window]) for start in starts], axis=0)
    np.testing.assert_allclose(found[4], expected, atol=1e-5)


@pytest.mark.parametrize("words", [["--batch_size", "1"], ["--batch_size", "3", "--shard_clips", "2"]])
def test_batches_and_padding_change_nothing(clips, words):
    np.testing.assert_allclose(embedded(clips, *words), embedded(clips, "--batch_size", "16"), atol=1e-5)


def test_silence_and_clips_of_a_few_samples(tmp_path):
    for name, samples in (("0", 16000), ("1", 1), ("2", 399), ("3", 401), ("4", 560)):
        scale = 0.0 if name == "0" else 0.1
        waveform = scale * np.random.default_rng(0).standard_normal(samples)
        soundfile.write(tmp_path / f"{name}.wav", waveform.astype(np.float32), 16000, subtype="FLOAT")
    found = embedded(tmp_path)
    assert np.isfinite(found).all() and found[:, :MEL].any(axis=1).all()  # each has a direction
    np.testing.assert_allclose(found[0, :MEL], (np.log(2.0**-23) + 4.2677393) / (2 * 4.5689974), atol=1e-5)
    np.testing.assert_allclose(found[0, MEL:], 0, atol=1e-5)
    assert not found[1:4, MEL:].any()  # one frame each
    # Two frames: half their distance is the deviation. Narrow filters that cover no FFT bin stay at the floor.
    np.testing.assert_allclose(found[4, 2 * MEL :], 2 * found[4, MEL : 2 * MEL], atol=1e-5)
    assert (found[4, MEL:] > 0).mean() > 0.9
    for row, waveform in zip(found, read(tmp_path)):
        np.testing.assert_allclose(row, by_hand(waveform), atol=1e-5)


def test_a_stopped_run_goes_on_and_unreadable_clips_are_listed(clips, tmp_path, monkeypatch, capsys):
    for file in sorted(clips.glob("*.wav"))[:4]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "2.wav").write_bytes(b"no audio")
    words = [tmp_path, "--output", tmp_path / "out.parquet", "--shard_clips", "1"]
    stop_after(monkeypatch, 2)
    assert embed(*words) == 130
    monkeypatch.undo()
    assert embed(*words) == 0
    printed = capsys.readouterr()
    assert "goes on: 2 of 4 shards are done" in printed.err and f"{LOG_MEL}: float32 on" in printed.err
    assert "1 of 4 clips are unreadable" in printed.err and "3 clips: embedding (384)" in printed.out
    names = pandas.read_parquet(tmp_path / "out.parquet")["file_name"]
    assert [name[-5:] for name in names] == ["0.wav", "1.wav", "3.wav"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--level", "frames"], "level frames: log-mel has one vector per clip; take --level clip"),
        (["--level", "layers"], "level layers: log-mel has one vector per clip; take --level clip"),
        (["--readout", "frames"], "readout: log-mel has no readout; leave it out"),
        (["--fusion_layers", "0"], "fusion_layers: log-mel has no fusion_layers; leave it out"),
        (["--pooling", "mean"], "pooling: log-mel has no pooling; leave it out"),
        (["--pooling_combination", "sum"], "pooling_combination: log-mel has no pooling_combination; leave it out"),
        (["--dtype", "bfloat16"], "dtype bfloat16: log-mel is computed in float32; leave it out"),
        (["--compile"], "compile: log-mel has no network to compile; leave it out"),
        (["--window_s", "20"], "log-mel: cannot embed (window_s must be positive and at most"),
    ],
)
def test_what_statistics_do_not_have_is_refused_in_one_line(clips, tmp_path, capsys, words, message):
    assert embed(clips, "--output", tmp_path / "out.npz", *words) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}") and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_programs_for_collections_take_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "clips", 12)
    assert embed("clips", "--output", "clips.parquet") == 0
    found = read_embeddings(tmp_path / "clips.parquet")
    settings = {"window_s": None, "dtype": "float32"}
    assert {name: found.about[name] for name in ("model", "level", "settings")} == {
        "model": LOG_MEL, "level": "clip", "settings": settings,
    }  # fmt: skip
    labels = [name.split("/")[-2] for name in found.names]
    classes = sorted(set(labels))
    assert len(classes) == 2

    # A new recording with the samples of a clip of the table is nearest to that clip.
    (tmp_path / "new.wav").write_bytes((tmp_path / found.names[3]).read_bytes())
    assert nearest.main(["clips.parquet", "new.wav", found.names[3], "--k", "3", "--output", "near.jsonl"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "near.jsonl").read_text().splitlines()]
    assert rows[0]["file_name"] == found.names[3] and rows[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows[1]["file_name"] == rows[3]["file_name"]  # the nearest other clip, both times
    assert f"1 new: encoded with {LOG_MEL}, float32" in capsys.readouterr().err
    assert nearest.main(["clips.parquet", "new.wav", "--dtype", "bfloat16"]) == 1
    assert "log-mel is computed in float32" in capsys.readouterr().err

    known = pandas.DataFrame({"file_name": found.names, "label": labels})
    known.iloc[::2].to_csv("known.csv", index=False)
    assert suggest.main(["clips.parquet", "--labels", "known.csv", "--count", "3", "--output", "next.csv"]) == 0
    suggested = pandas.read_csv("next.csv")
    assert len(suggested) == 3 and not set(suggested["file_name"]) & set(known["file_name"][::2])

    known.loc[4, "label"] = next(name for name in classes if name != labels[4])
    known.to_csv("wrong.csv", index=False)
    assert suspects.main(["clips.parquet", "--labels", "wrong.csv", "--output", "suspects.csv"]) == 0
    first = pandas.read_csv("suspects.csv").iloc[0]
    assert first["file_name"] == found.names[4] and first["proposed"] == labels[4]
