"""predict_hf.py: any rate and length, batches that change nothing, damaged files that stop nothing."""

import numpy as np
import pandas
import pytest
import soundfile
import soxr
import torch
from audio_files import run_program, tone, write_tone
from tiny_models import save_tiny_classifier

import predict_hf
from modeling_dual_ssast import DualSSASTFeatureExtractor, DualSSASTForAudioClassification


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    for index, seconds in enumerate((0.5, 0.1, 3.0, 0.3)):  # 3 s are beyond the model's 0.655 s
        write_tone(folder / f"{index}.wav", seconds=seconds, hz=150 * 3**index, seed=index)
    return folder


def test_scores_are_those_of_each_clip_alone(model_folder, clips, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    assert predict_hf.main([str(model_folder), str(clips), "--output", str(output), "--batch_size", "3"]) == 0
    table = pandas.read_csv(output)
    assert [name.rsplit("/", 1)[1] for name in table["file"]] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    model = DualSSASTForAudioClassification.from_pretrained(model_folder).eval()
    extractor = DualSSASTFeatureExtractor.from_pretrained(model_folder)
    for file, row in zip(table["file"], table[["high", "low", "mid"]].to_numpy()):
        audio = soundfile.read(file, dtype="float32")[0]
        expected = model.classify_windows(audio, extractor, sampling_rate=16000).logits.softmax(0)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in printed] == table["file"].tolist()
    assert [line.split("\t")[1].split()[0] for line in printed] == table["prediction"].tolist()


def test_rates_and_channels_do_not_matter(model_folder, tmp_path):
    audio = tone(0.4, 48000, channels=2)
    soundfile.write(tmp_path / "a.flac", audio, 48000)
    soundfile.write(tmp_path / "b.wav", soxr.resample(audio.mean(axis=1), 48000, 16000), 16000, subtype="FLOAT")
    output = tmp_path / "scores.csv"
    predict_hf.main([str(model_folder), str(tmp_path), "--output", str(output)])
    scores = pandas.read_csv(output)[["high", "low", "mid"]].to_numpy()
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)  # flac stores 16 bits


def test_unreadable_files_are_listed_and_stop_nothing(model_folder, clips, tmp_path):
    (clips / "broken.wav").write_bytes(b"RIFFrubbish")
    (clips / "empty.wav").touch()
    output = tmp_path / "scores.csv"
    process = run_program(
        "predict_hf.py", model_folder, clips, clips / "nowhere.wav", "--output", output, "--top_k", "2"
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(any(name in line for line in errors) for name in ("broken", "empty", "nowhere"))
    assert "3 of 7 files could not be classified" in process.stderr
    assert len(pandas.read_csv(output)) == len(process.stdout.splitlines()) == 4
    assert process.stdout.splitlines()[0].count(",") == 1


def test_given_windows_are_used(model_folder, clips, tmp_path):
    output = tmp_path / "scores.csv"
    words = [str(model_folder), str(clips / "2.wav"), "--output", str(output), "--window_s", "0.3", "--hop_s", "0.1"]
    predict_hf.main(words)
    model = DualSSASTForAudioClassification.from_pretrained(model_folder).eval()
    extractor = DualSSASTFeatureExtractor.from_pretrained(model_folder)
    audio = soundfile.read(clips / "2.wav", dtype="float32")[0]
    windows = model.classify_windows(audio, extractor, window_s=0.3, hop_s=0.1, average=False)
    assert len(windows.logits) == 28
    expected = windows.logits.mean(0).softmax(0)
    np.testing.assert_allclose(pandas.read_csv(output)[["high", "low", "mid"]].to_numpy()[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody/nothing", "a.wav"], "nobody/nothing: not a classifier that can be loaded"),
        (["MODEL", "EMPTY"], "holds no audio files"),
        (["MODEL", "CLIPS", "--window_s", "9"], "window_s must be positive and at most"),
    ],
)
def test_bad_calls_are_one_line(model_folder, clips, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    places = {"MODEL": str(model_folder), "EMPTY": str(tmp_path / "empty"), "CLIPS": str(clips)}
    assert predict_hf.main([places.get(word, word) for word in words]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_failed_run_keeps_the_old_scores(model_folder, clips, tmp_path, monkeypatch):
    output = tmp_path / "scores.csv"
    output.write_text("the old scores")
    monkeypatch.setattr(predict_hf.os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_hf.main([str(model_folder), str(clips), "--output", str(output)])
    assert output.read_text() == "the old scores"


def test_several_labels_are_scored_with_a_sigmoid(clips, tmp_path):
    folder = save_tiny_classifier(tmp_path / "multi", problem_type="multi_label_classification")
    output = tmp_path / "scores.csv"
    predict_hf.main([str(folder), str(clips), "--output", str(output)])
    assert not np.allclose(pandas.read_csv(output)[["high", "low", "mid"]].sum(axis=1), 1, atol=1e-3)
    assert torch.tensor(pandas.read_csv(output)["high"]).max() < 1
