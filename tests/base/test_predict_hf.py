"""Tests predict_hf.py: any rate and length, scores independent of batches, and damaged files."""

import runpy
import subprocess
import sys

import numpy as np
import pandas
import pytest
import soundfile
import soxr
import torch
from audio_files import ROOT, new_imports, tone, write_tone
from tiny_models import TINY, save_tiny_classifier
from transformers import ASTConfig, ViTConfig

import predict_hf
from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForAudioClassification,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
)
from training.inference import scores as scoring

CLASSES = ("high", "low", "mid")
SCORES = [f"probability_{name}" for name in CLASSES]


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
    for file, row in zip(table["file"], table[SCORES].to_numpy()):
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
    scores = pandas.read_csv(output)[SCORES].to_numpy()
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)  # flac stores 16 bits


def test_unreadable_files_are_listed_and_stop_nothing(model_folder, clips, tmp_path, capfd, monkeypatch):
    (clips / "broken.wav").write_bytes(b"RIFFrubbish")
    (clips / "empty.wav").touch()
    output = tmp_path / "scores.csv"
    words = ["predict_hf.py", model_folder, clips, clips / "nowhere.wav", "--output", output, "--top_k", 2]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit, match="^1$"):
        runpy.run_path(str(ROOT / "predict_hf.py"), run_name="__main__")
    printed, messages = capfd.readouterr()
    errors = [line for line in messages.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(any(name in line for line in errors) for name in ("broken", "empty", "nowhere"))
    assert "3 of 7 files could not be classified" in messages and "Traceback" not in messages
    assert len(pandas.read_csv(output)) == len(printed.splitlines()) == 4
    assert printed.splitlines()[0].count(",") == 1


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
    np.testing.assert_allclose(pandas.read_csv(output)[SCORES].to_numpy()[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody/nothing", "a.wav"], "nobody/nothing: not a classifier that can be loaded"),
        (["MODEL", "EMPTY"], "holds no audio"),
        (["MODEL", "EMPTY", "EMPTY"], "holds no audio"),
        (["MODEL", "CLIPS", "--output", "EMPTY/a/b.csv"], "empty/a does not exist; make it or name another file"),
        (["MODEL", "CLIPS", "--output", "EMPTY"], "empty: is a folder"),
        (["MODEL", "CLIPS", "--output", "CLIPS/x.xls"], "name a file that ends in .csv, .parquet or .jsonl"),
        (["MODEL", "CLIPS", "--device", "nowhere"], "device nowhere: cannot be used here"),
        (["MODEL", "CLIPS", "--share", "1/2"], "share: needs --output"),
        (["MODEL", "CLIPS", "--output", "EMPTY/x.csv", "--share", "3/2"], "share: must be I/N with I from 1 to N"),
        (
            ["MODEL", "CLIPS", "--output", "EMPTY/x.csv", "--share", "1/2", "--overwrite"],
            "share: with overwrite it would",
        ),
        (
            ["MODEL", "CLIPS", "--output", "EMPTY/x.csv", "--windows", "EMPTY/../empty/x.csv"],
            "x.csv is output, too; name",
        ),
        (
            ["MODEL", "CLIPS", "--windows", "EMPTY/x.csv", "--events", "EMPTY/x.csv"],
            "x.csv is windows, too; name another",
        ),
        (["MODEL", "--listen", "-", "--windows", "EMPTY/x.csv", "--events", "EMPTY/x.csv"], "x.csv is windows, too"),
        (
            ["MODEL", "CLIPS/0.wav", "--output", "CLIPS/0.wav"],
            "0.wav is read here, and would be replaced; name another",
        ),
        (["MODEL", "--listen", "-", "--event_format", "csv"], "event_format: needs --events, the table of the events"),
        (
            ["MODEL", "CLIPS", "--reject_by", "energy"],
            "reject_by: has no effect without --reject; add it, or leave this",
        ),
        (["MODEL", "CLIPS", "--window_s", "9"], "window_s must be positive and at most"),
        (["MODEL", "CLIPS", "--top_k", "0"], "top_k: must be 1 or more, got 0"),
        (["MODEL", "CLIPS", "--topk", "2"], "unknown key topk; did you mean top_k?"),
        (["MODEL"], "usage: predict_hf.py MODEL INPUT ..."),
    ],
)
def test_bad_calls_are_one_line(model_folder, clips, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    places = {"MODEL": str(model_folder), "EMPTY": str(tmp_path / "empty"), "CLIPS": str(clips)}
    words = [word.replace("EMPTY", places["EMPTY"]).replace("CLIPS/", f"{clips}/") for word in words]
    assert_refused([places.get(word, word) for word in words], message, capsys)


def assert_refused(words: list[str], message: str, capsys):
    """Exit status 1, one line of error that holds `message`, and no scores."""
    assert predict_hf.main(words) == 1
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in error and out == ""


def pretrained(folder):
    DualSSASTForPreTraining(DualSSASTConfig(**TINY)).save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=64).save_pretrained(folder)


def of_other_classes(folder):
    save_tiny_classifier(folder)
    DualSSASTConfig.from_pretrained(folder, num_labels=5).save_pretrained(folder)


def without_extractor(folder):
    save_tiny_classifier(folder)
    (folder / "preprocessor_config.json").unlink()


def truncated(folder):
    save_tiny_classifier(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def two_numbers(folder):
    save_tiny_classifier(folder, labels=("x", "y"), problem_type="regression")


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (pretrained, "has no trained classifier (4 weights are missing"),
        (of_other_classes, "has no trained classifier (2 weights are missing or of another size"),
        (lambda folder: ASTConfig().save_pretrained(folder), "conversion hf-ast FOLDER OUT"),
        (lambda folder: ViTConfig().save_pretrained(folder), "model_type is 'vit', expected one of dual_ssast"),
        (lambda folder: folder.mkdir(), "has no config.json, so it is no model"),
        (without_extractor, "has no preprocessor_config.json"),
        (truncated, "not a classifier that can be loaded"),
        (two_numbers, "gives 2 numbers per clip"),
    ],
)
def test_models_that_cannot_classify_are_one_line(clips, tmp_path, capsys, save, message):
    folder = tmp_path / "model"
    save(folder)
    capsys.readouterr()
    assert_refused([str(folder), str(clips)], message, capsys)


def test_an_empty_folder_is_listed_and_stops_nothing(model_folder, clips, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert predict_hf.main([str(model_folder), str(tmp_path / "empty"), str(clips)]) == 1
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert f"error: {tmp_path / 'empty'}: holds no audio" in error


def test_options_may_be_spelt_with_hyphens(model_folder, clips, capsys):
    words = [str(model_folder), str(clips), "--batch{0}size", "2", "--top{0}k", "2", "--window{0}s", "0.3"]
    outputs = []
    for sign in "_-":
        assert predict_hf.main([word.format(sign) for word in [*words, "--hop{0}s", "0.2"]]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].splitlines()[0].count(",") == 1


def test_clips_are_as_long_as_the_shorter_of_model_and_extractor(clips, tmp_path, capsys):
    folder = save_tiny_classifier(tmp_path / "model")
    DualSSASTFeatureExtractor(max_length=1024).save_pretrained(folder)
    assert predict_hf.main([str(folder), str(clips)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_failed_run_keeps_the_old_scores(model_folder, clips, tmp_path, monkeypatch):
    output = tmp_path / "scores.csv"
    output.write_text("the old scores")
    monkeypatch.setattr("training.files.os.replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_hf.main([str(model_folder), str(clips), "--output", str(output)])
    assert output.read_text() == "the old scores"


def test_several_labels_are_scored_with_a_sigmoid(clips, tmp_path):
    folder = save_tiny_classifier(tmp_path / "multi", problem_type="multi_label_classification")
    output = tmp_path / "scores.csv"
    predict_hf.main([str(folder), str(clips), "--output", str(output)])
    table = pandas.read_csv(output, keep_default_na=False)
    assert not np.allclose(table[SCORES].sum(axis=1), 1, atol=1e-3)
    assert torch.tensor(table["probability_high"]).max() < 1
    expected = [",".join(np.array(["high", "low", "mid"])[row > 0.5]) for row in table[SCORES].to_numpy()]
    assert table["prediction"].tolist() == expected
    assert any("," in names for names in expected)


def test_a_regression_gives_its_number(clips, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    for problem_type in ("regression", None):  # None: Transformers takes one output for a regression
        folder = save_tiny_classifier(tmp_path / f"{problem_type}", labels=("LABEL_0",), problem_type=problem_type)
        predict_hf.main([str(folder), str(clips), "--output", str(output)])
        table = pandas.read_csv(output)
        assert list(table) == ["file", "prediction", "value"]
        assert table["prediction"].tolist() == pytest.approx(table["value"].tolist())
        assert table["value"].nunique() == 4
        assert f"value {table['value'][0]:.3f}" in capsys.readouterr().out


def test_a_class_may_be_called_file(clips, tmp_path):
    folder = save_tiny_classifier(tmp_path / "model", labels=("file", "prediction", "mid"))
    output = tmp_path / "scores.csv"
    assert predict_hf.main([str(folder), str(clips), "--output", str(output)]) == 0
    scores = [f"{kind}_{name}" for kind in ("probability", "max", "share") for name in ("file", "prediction", "mid")]
    assert list(pandas.read_csv(output)) == ["file", "prediction", *scores]


def test_a_classifier_on_asits_encoder(clips, tmp_path, capsys):
    model = ASiTForAudioClassification(ASiTConfig(**TINY, id2label={0: "high", 1: "low"}))
    model.save_pretrained(tmp_path / "asit")
    DualSSASTFeatureExtractor(max_length=64).save_pretrained(tmp_path / "asit")
    assert predict_hf.main([str(tmp_path / "asit"), str(clips)]) == 0
    assert {"high", "low"} & set(capsys.readouterr().out.split())


def test_windows_are_told_with_their_times(model_folder, clips, tmp_path):
    """A row per window of every file, short ones too; their mean logits are what the file's scores are made of."""
    output, windows = tmp_path / "scores.csv", tmp_path / "windows.csv"
    words = ["--output", str(output), "--windows", str(windows), "--window_s", "0.4", "--hop_s", "0.3"]
    assert predict_hf.main([str(model_folder), str(clips), *words]) == 0
    table, scores = pandas.read_csv(windows), pandas.read_csv(output).set_index("file")
    rows = {file.rsplit("/", 1)[1]: own for file, own in table.groupby("file")}
    assert rows["1.wav"][["start_s", "end_s"]].values.tolist() == [[0.0, 0.1]]
    assert rows["2.wav"]["start_s"].tolist() == pytest.approx([0.3 * index for index in range(9)] + [2.6])
    assert rows["2.wav"]["end_s"].iloc[-1] == 3.0 and set(table.columns) == {
        "file",
        "start_s",
        "end_s",
        "prediction",
        *SCORES,
    }
    assert set(scores.reset_index()) - set(table.columns) == {f"{k}_{n}" for k in ("max", "share") for n in CLASSES}
    for file, own in table.groupby("file"):
        mean = np.log(own[SCORES].to_numpy()).mean(axis=0)  # of log-softmax: the logits but for a constant
        np.testing.assert_allclose(np.exp(mean) / np.exp(mean).sum(), scores.loc[file, SCORES].tolist(), atol=1e-5)
        for name in CLASSES:
            assert scores.loc[file, f"max_{name}"] == own[f"probability_{name}"].max()
            share = (own[f"probability_{name}"] > 0.5).mean()
            assert scores.loc[file, f"share_{name}"] == pytest.approx(share, abs=1e-6)


@pytest.mark.slow
def test_a_prediction_imports_nothing_heavy(model_folder, clips, tmp_path):
    heavy = {"sklearn", "matplotlib", "evaluate", "jinja2", "scipy", "datasets", "pyarrow", "peft"}
    imported = new_imports("predict_hf", model_folder, clips)
    assert "training" in imported and not imported & {*heavy, "pandas"}
    output = tmp_path / "scores.csv"
    imported = new_imports("predict_hf", model_folder, clips, "--output", output)
    assert output.exists() and "pyarrow" in imported and not imported & heavy - {"pyarrow"}


@pytest.mark.slow
def test_a_closed_pipe_costs_no_scores(model_folder, clips, tmp_path):
    output = tmp_path / "scores.csv"
    script = "import sys, predict_hf; sys.stdin.read(); sys.exit(predict_hf.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(model_folder), str(clips), "--output", str(output)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()  # the reader ends before anything is printed
    process.stdin.close()
    error = process.stderr.read()
    assert process.wait() == 141 and "Traceback" not in error and "BrokenPipe" not in error
    assert len(pandas.read_csv(output)) == 4


def test_ctrl_c_says_in_one_line_what_is_kept(model_folder, clips, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring.Classifier, "run", interrupt)
    assert predict_hf.main([str(model_folder), str(clips), "--output", str(tmp_path / "scores.csv")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted; {predict_hf.KEPT}"
    assert not (tmp_path / "scores.csv").exists()


def test_the_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        predict_hf.main(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and predict_hf.USAGE in printed
    assert all(f"--{name}" in printed for name in ("top_k", "output", "windows", "batch_size", "window_s", "hop_s"))
