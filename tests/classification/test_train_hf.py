"""Tests train_hf.py: outputs, bad input, resumption, several processes."""

import json
import os

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import ROOT, error_line, kill_after, launch, run_program, tone, write_class_folders, write_tone
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_runs import TINY, train, write_recipe
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

import predict_hf
import train_hf
from training.errors import InputError


@pytest.fixture
def recipe(tmp_path):
    """Writes a tiny recipe and returns its path and the output folder."""
    return lambda **values: write_recipe(tmp_path, TINY | values)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 10)


@pytest.mark.figures
def test_a_run_leaves_a_whole_folder(clips, recipe):
    path, output = recipe(dataset_name=clips, compute_statistics=True)
    train(path)
    names = {entry.name for entry in output.iterdir() if entry.is_file()}
    assert names == {
        "README.md",
        "attention_dual_ssast.py",
        "classifier_dual_ssast.py",
        "config.json",
        "config_sentence_transformers.json",
        "configuration_dual_ssast.py",
        "confusion_matrix.png",
        "embedding_dual_ssast.py",
        "feature_extraction_dual_ssast.py",
        "fusion_dual_ssast.py",
        "learning_curves.png",
        "masking_dual_ssast.py",
        "model.safetensors",
        "modeling_dual_ssast.py",
        "modules.json",
        "packing_dual_ssast.py",
        "predictions.csv",
        "preprocessor_config.json",
        "report.html",
        "results.json",
        "sentence_bert_config.json",
    }
    results = json.loads((output / "results.json").read_text())
    assert results["clips"] == {"train": 12, "validation": 4, "test": 4}
    assert set(results["metrics"]["test"]) == {"loss", "accuracy", "unweighted_average_recall", "macro_f1"}
    extractor = AutoFeatureExtractor.from_pretrained(output)
    model = AutoModelForAudioClassification.from_pretrained(output)
    assert extractor.mean == results["normalisation"]["mean"] != -6.0
    assert model.config.padding_value == extractor.padding_value
    predictions = pandas.read_csv(output / "predictions.csv")
    accuracy = (predictions["label"] == predictions["prediction"]).mean()
    assert accuracy == pytest.approx(results["metrics"]["test"]["accuracy"])
    np.testing.assert_allclose(predictions[["probability_high", "probability_low"]].sum(axis=1), 1, atol=1e-5)
    audio, rate = soundfile.read(predictions["file"][0], dtype="float32")
    with torch.no_grad():
        logits = model(**extractor(audio, sampling_rate=rate, return_tensors="pt")).logits
    assert float(model.probabilities(logits)[0, 0]) == pytest.approx(predictions["probability_high"][0], abs=1e-5)
    card = ModelCard.load(output / "README.md")
    assert card.data.pipeline_tag == "audio-classification" and str(ROOT) not in str(card)
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["accuracy"] == pytest.approx(results["metrics"]["test"]["accuracy"], abs=1e-4)
    checkpoints = sorted(entry.name for entry in output.iterdir() if entry.is_dir())
    assert checkpoints == ["checkpoint-3", "checkpoint-6"]
    assert "modeling_dual_ssast.py" in os.listdir(output / "checkpoint-6")
    state = json.loads((output / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"].startswith(str(output / "checkpoint-"))


def test_statistics_are_those_of_the_training_clips(clips, recipe):
    path, output = recipe(
        dataset_name=clips, compute_statistics=True, validation_fraction=0, test_fraction=0, max_steps=1
    )
    train(path)
    extractor = AutoFeatureExtractor.from_pretrained(output)
    waveforms = [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in sorted(clips.rglob("*.wav"))]
    log_mels = torch.cat(extractor.log_mel(waveforms)).double()
    assert extractor.mean == pytest.approx(float(log_mels.mean()), rel=1e-6)
    assert extractor.std == pytest.approx(float(log_mels.std(correction=0)), rel=1e-6)


def test_a_run_goes_on_from_a_checkpoint_and_keeps_its_classes(clips, recipe):
    """A fine-tuned folder is a checkpoint for the next fine-tuning, here at another length and stride."""
    path, output = recipe(dataset_name=clips)
    train(path)
    words = [
        "--model_name_or_path",
        str(output),
        "--output_dir",
        f"{output}2",
        "--max_length",
        "48",
        "--time_stride",
        "8",
    ]
    path, _ = recipe(dataset_name=clips, config_overrides=None, max_length=48, head_learning_rate=1e-2)
    train(path, *words)
    first, second = (AutoModelForAudioClassification.from_pretrained(folder) for folder in (output, f"{output}2"))
    assert second.config.max_length == 48 and second.config.time_stride == 8
    assert second.config.id2label == first.config.id2label
    assert AutoFeatureExtractor.from_pretrained(f"{output}2").max_length == 48


def test_several_labels_and_numbers(tmp_path, recipe):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(24):
        labels = [name for name in ("low", "mid", "high") if rng.random() < 0.5] or ["mid"]
        write_tone(tmp_path / f"{index}.wav", seconds=0.2, hz=200 + 30 * index)
        rows.append({"file_name": f"{index}.wav", "labels": ";".join(labels), "pitch": 0.1 * index})
    pandas.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)
    path, output = recipe(train_file=tmp_path / "clips.csv", label_column="labels", label_separator=";", mixup_rate=0.5)
    train(path)
    results = json.loads((output / "results.json").read_text())
    assert results["problem_type"] == "multi_label_classification"
    assert {"mean_average_precision", "mean_auc"} <= set(results["metrics"]["validation"])
    path, output = recipe(
        train_file=tmp_path / "clips.csv",
        label_column="pitch",
        problem_type="regression",
        output_dir=tmp_path / "numbers",
    )
    train(path)
    results = json.loads((tmp_path / "numbers" / "results.json").read_text())
    assert {"mean_squared_error", "mean_absolute_error", "r2"} <= set(results["metrics"]["test"])
    assert "value" in pandas.read_csv(tmp_path / "numbers" / "predictions.csv")


def test_long_clips_are_evaluated_in_windows_as_they_are_predicted(tmp_path, recipe):
    """Trains on random parts; validation and test use whole clips, with the scores of predict_hf.py, to the bit."""
    for index, name in enumerate(("high", "low")):
        for clip in range(8):
            seconds = 0.2 + 0.3 * (clip % 3)  # the model takes 0.335 s at once
            write_tone(tmp_path / "clips" / name / f"{clip}.wav", seconds=seconds, hz=300 * 3**index, seed=clip)
    path, output = recipe(dataset_name=tmp_path / "clips", hop_s=0.1, per_device_eval_batch_size=3, num_train_epochs=1)
    train(path, "--calibrate", "false")  # so that the loss follows from the probabilities
    table = pandas.read_csv(output / "predictions.csv").set_index("file")
    scores = tmp_path / "scores.csv"
    assert predict_hf.main([str(output), *table.index, "--output", str(scores), "--hop_s", "0.1"]) == 0
    predicted = pandas.read_csv(scores).set_index("file")
    columns = ["probability_high", "probability_low"]
    np.testing.assert_allclose(table[columns], predicted.loc[table.index, columns], atol=1e-6)
    model = AutoModelForAudioClassification.from_pretrained(output)
    targets = torch.tensor([model.config.label2id[name] for name in table["label"]])
    loss = torch.nn.functional.nll_loss(torch.tensor(table[columns].to_numpy()).log(), targets)
    stored = json.loads((output / "results.json").read_text())["metrics"]["test"]["loss"]
    assert stored == pytest.approx(float(loss), abs=1e-5)
    with pytest.raises(InputError, match="window_s must be positive and at most max_length's"):
        train(path, "--overwrite", "true", "--window_s", "20")


def test_parts_of_recordings_train(tmp_path, recipe):
    for name, hz in (("high", 900), ("low", 300)):
        write_tone(tmp_path / f"{name}.wav", seconds=4.0, hz=hz)
    rows = [(f"{name}.wav", name, 0.2 * part, 0.2 * part + 0.3) for name in ("high", "low") for part in range(12)]
    pandas.DataFrame(rows, columns=["file_name", "label", "start", "end"]).to_csv(tmp_path / "a.csv", index=False)
    path, output = recipe(train_file=tmp_path / "a.csv", start_column="start", end_column="end")
    train(path)
    files = pandas.read_csv(output / "predictions.csv")["file"]
    assert all("#t=" in name for name in files) and files.is_unique


def test_early_stopping_stops_early(clips, recipe):
    path, output = recipe(dataset_name=clips, early_stopping_patience=1, num_train_epochs=50, learning_rate=0.0)
    train(path)
    assert json.loads((output / "results.json").read_text())["training"]["epochs"] == 2


def test_a_run_that_was_stopped_early_stays_stopped(clips, recipe):
    path, output = recipe(dataset_name=clips, num_train_epochs=8, early_stopping_patience=1, learning_rate=1e-9)
    train(path)
    steps = json.loads((output / "results.json").read_text())["training"]["steps"]
    weights = load_file(output / "model.safetensors")
    train(path, "--resume_from_checkpoint", "true")
    assert json.loads((output / "results.json").read_text())["training"]["steps"] == steps < 8 * 4
    assert all(torch.equal(value, weights[name]) for name, value in load_file(output / "model.safetensors").items())


def test_an_existing_run_is_not_overwritten_unasked(clips, recipe):
    path, output = recipe(dataset_name=clips, max_steps=1, save_strategy="no", load_best_model_at_end=False)
    train(path)
    before = (output / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        train(path)
    assert (output / "model.safetensors").read_bytes() == before
    train(path, "--overwrite", "true", "--seed", "2")
    assert (output / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--fusion_layers", "99"], "fusion_layers must be integers from -3 to 2, got 99"),
        (["--readout", "sideways"], "readout must be one of patches, prefix, frames, tokens, got 'sideways'"),
        (["--model_name_or_path", "nobody/nothing"], "nobody/nothing cannot be loaded"),
    ],
)
def test_impossible_models_are_told_before_training(clips, recipe, words, pattern):
    path, output = recipe(dataset_name=clips)
    with pytest.raises(InputError, match=pattern):
        train(path, *words)
    assert not output.exists()


def test_another_model_type_is_refused(clips, recipe, tmp_path):
    from transformers import ASTConfig

    ASTConfig(hidden_size=16).save_pretrained(tmp_path / "ast")
    path, _ = recipe(dataset_name=clips)
    with pytest.raises(InputError, match="audio-spectrogram-transformer model, not one of dual_ssast"):
        train(path, "--model_name_or_path", str(tmp_path / "ast"))


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--metric_for_best_model", "f1"], "metric_for_best_model: 'f1' is unknown; known are accuracy"),
        (["--early_stopping_patience", "1", "--eval_strategy", "no"], "early_stopping_patience: needs"),
        (["--label_smoothing_factor", "0.1"], "set label_smoothing instead"),
        (["--push_to_hub", "true"], "hub_model_id: must be user/name, the repository to push to, got None"),
        (["--eval_strategy", "steps", "--save_strategy", "epoch"], "run.json: "),
    ],
)
def test_impossible_runs_are_told_before_training(clips, recipe, words, pattern):
    path, output = recipe(dataset_name=clips)
    with pytest.raises(InputError, match=pattern) as caught:
        train(path, *words)
    assert not output.exists() and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "is_better"),
    [(None, max), ("loss", min), ("eval_loss", min), ("macro_f1", max)],
)
def test_the_best_checkpoint_is_the_best(clips, recipe, metric, is_better):
    path, output = recipe(dataset_name=clips, metric_for_best_model=metric, num_train_epochs=4, learning_rate=0.05)
    train(path)
    state = json.loads((sorted(output.glob("checkpoint-*"))[-1] / "trainer_state.json").read_text())
    key = f"eval_{(metric or 'accuracy').removeprefix('eval_')}"
    values = [entry[key] for entry in state["log_history"] if key in entry]
    assert state["best_metric"] == is_better(values)


def test_every_clip_is_tested_without_incomplete_training_batches(clips, recipe):
    """Three of four clips would be tested, in batches of three."""
    path, output = recipe(dataset_name=clips, dataloader_drop_last=True, per_device_eval_batch_size=3)
    train(path)
    assert len(pandas.read_csv(output / "predictions.csv")) == 4


def test_a_checkpoint_of_another_run_is_not_resumed(clips, recipe):
    path, output = recipe(dataset_name=clips)
    train(path)
    with pytest.raises(InputError, match="was made with max_length 32, now 48; resume with the same"):
        train(path, "--resume_from_checkpoint", "true", "--max_length", "48")
    path, _ = recipe(dataset_name=clips, save_strategy="no", output_dir=f"{output}2")
    train(path)
    with pytest.raises(InputError, match="holds a finished run without checkpoints"):
        train(path, "--resume_from_checkpoint", "true")


def test_other_classes_of_the_same_number_get_a_new_classifier(clips, recipe, tmp_path):
    path, output = recipe(dataset_name=clips)
    train(path)
    others = write_class_folders(tmp_path / "others", 8, classes=("cat", "dog"))
    settings = {"learning_rate": 0.0, "max_steps": 1, "save_strategy": "no", "output_dir": f"{output}2"}
    path, _ = recipe(dataset_name=others, config_overrides=None, model_name_or_path=output, **settings)
    train(path)
    first, second = (load_file(f"{folder}/model.safetensors") for folder in (output, f"{output}2"))
    kept = {name for name, value in first.items() if torch.equal(value, second[name])}
    assert {name for name in first if not name.startswith("classifier.")} <= kept
    assert "classifier.dense.weight" not in kept


def test_outputs_that_a_new_run_does_not_have_do_not_stay(clips, recipe):
    path, output = recipe(dataset_name=clips, max_steps=1, save_strategy="no")
    train(path)
    assert (output / "predictions.csv").exists()
    train(path, "--overwrite", "true", "--validation_fraction", "0", "--test_fraction", "0")
    assert not (output / "predictions.csv").exists() and not (output / "confusion_matrix.png").exists()
    assert "NaN" not in (output / "results.json").read_text()


def _bad_data(folder, kind: str):
    """A data set with one thing wrong, and what the one line must say."""
    write_class_folders(folder, 8)
    victim = folder / "low" / "low_3.wav"
    if kind == "corrupt":
        victim.write_bytes(b"RIFFrubbish")
    elif kind == "empty":
        victim.write_bytes(b"")
    elif kind == "nan":
        samples = tone()
        samples[7] = np.nan
        soundfile.write(victim, samples, 16000, subtype="FLOAT")
    return str(victim)


# All clips train, so that the damaged one is met whichever way the splits would fall.
ALL_TRAIN = {"validation_fraction": 0, "test_fraction": 0, "dataloader_num_workers": 1}


@pytest.mark.parametrize(("kind", "pattern"), [("corrupt", "not readable as audio"), ("empty", "the file is empty")])
def test_a_bad_file_stops_the_program_with_one_line(tmp_path, recipe, kind, pattern, capsys):
    victim = _bad_data(tmp_path / "clips", kind)
    path, output = recipe(dataset_name=tmp_path / "clips", **ALL_TRAIN)
    assert train_hf.main([path]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {victim}: {pattern}")
    assert not (output / "results.json").exists()


@pytest.mark.slow
def test_a_bad_clip_in_a_worker_stops_a_fresh_process_with_one_line(tmp_path, recipe):
    victim = _bad_data(tmp_path / "clips", "nan")  # its header is in order
    path, output = recipe(dataset_name=tmp_path / "clips", **ALL_TRAIN)
    line = error_line(run_program("train_hf.py", path))
    assert line.startswith(f"error: {victim}: holds 1 NaN or infinite samples")
    assert not (output / "results.json").exists()


def test_samples_are_checked_before_training_on_request(tmp_path, recipe):
    victim = _bad_data(tmp_path / "clips", "nan")
    path, output = recipe(dataset_name=tmp_path / "clips", check_samples=True)
    with pytest.raises(InputError, match=f"{victim}: holds 1 NaN"):
        train(path)
    assert not output.exists()


ODD_CLIPS = {
    "one_sample.wav": {"seconds": 0.0},
    "eight_channels.wav": {"channels": 8},
    "telephone.wav": {"rate": 8000},
    "ultrasound.wav": {"rate": 192000, "seconds": 0.1},
    "bytes.wav": {"subtype": "PCM_U8"},
    "floats.wav": {"subtype": "FLOAT"},
    "long.flac": {"seconds": 3.0},
}


def test_odd_but_whole_clips_train(tmp_path, recipe):
    folder = write_class_folders(tmp_path / "clips", 4)
    for name, settings in ODD_CLIPS.items():
        write_tone(folder / "low" / name, **settings)
    path, output = recipe(dataset_name=folder, validation_fraction=0, test_fraction=0, num_train_epochs=1)
    train(path)
    assert json.loads((output / "results.json").read_text())["clips"] == {"train": 15}


def test_bad_labels_and_tables_stop_with_one_line(tmp_path, recipe):
    for name in ("a", "b", "c", "d"):
        write_tone(tmp_path / f"{name}.wav", seconds=0.1)
    good = "file_name,label\na.wav,dog\nb.wav,cat\nc.wav,dog\nd.wav,cat\n"
    (tmp_path / "good.csv").write_text(good)
    (tmp_path / "typo.csv").write_text(good.replace("d.wav,cat", "d.wav,cta"))
    (tmp_path / "missing.csv").write_text(good.replace("d.wav", "nowhere.wav"))
    (tmp_path / "one_class.csv").write_text(good.replace("cat", "dog"))
    (tmp_path / "one_clip.csv").write_text("file_name,label\na.wav,dog\n")
    cases = {
        "typo.csv": "d.wav: label 'cta' is not in the label set of the training data; did you mean cat",
        "missing.csv": "nowhere.wav: no such file",
    }
    for name, message in cases.items():
        path, _ = recipe(train_file=tmp_path / "good.csv", test_file=tmp_path / name, validation_fraction=0)
        with pytest.raises(InputError, match=message):
            train(path)
    for name, message in {"one_class.csv": "at least two classes", "one_clip.csv": "at least two classes"}.items():
        path, _ = recipe(train_file=tmp_path / name)
        with pytest.raises(InputError, match=message):
            train(path)


RESUMABLE = {
    "mixup_rate": 0.3,
    "time_shift_frames": 3,
    "frequency_mask_bins": 16,
    "num_train_epochs": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": False,
}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(clips, recipe, tmp_path):
    """SIGKILL in the middle of an epoch; dropout, augmentation and shuffling included; other worker counts too."""
    values = {**RESUMABLE, "dataset_name": clips, "dataloader_num_workers": 1}
    values["config_overrides"] = {**TINY["config_overrides"], "hidden_dropout_prob": 0.1}
    path, whole = recipe(**values)
    train(path)
    killed = tmp_path / "killed"
    kill_after(killed / "checkpoint-4", path, "--dataloader_num_workers", 0)
    resumed = run_program("train_hf.py", path, "--output_dir", killed, "--resume_from_checkpoint", "true")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    expected, weights = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)


def test_a_save_that_dies_leaves_no_checkpoint(clips, recipe, monkeypatch):
    from training.base.trainer import AudioTrainer

    path, output = recipe(dataset_name=clips)
    monkeypatch.setattr(AudioTrainer, "_save_rng_state", lambda self, folder: 1 / 0)  # after the weights were written
    with pytest.raises(ZeroDivisionError):
        train(path)
    assert not list(output.glob("checkpoint-*"))
    monkeypatch.undo()
    train(path, "--resume_from_checkpoint", "true")
    assert sorted(entry.name for entry in output.glob("*checkpoint*")) == ["checkpoint-3", "checkpoint-6"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_equal_one_with_the_larger_batch(clips, recipe, tmp_path, processes):
    path, _ = recipe(
        dataset_name=clips,
        max_steps=6,
        validation_fraction=0,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        frequency_mask_bins=16,
    )
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["train_hf.py", path, "--output_dir"]
    first = launch(1, *words, one)
    words = [*words, two, "--use_cpu", "true", "--per_device_train_batch_size", 4 // processes]
    words += ["--decoded_cache", tmp_path / "cache"]  # one process decodes, the others wait
    second = launch(processes, *words)
    assert first.returncode == second.returncode == 0, second.stderr[-3000:]
    losses = [
        [entry["loss"] for entry in json.loads((folder / "results.json").read_text())["log"] if "loss" in entry]
        for folder in (one, two)
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, atol=1e-4)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert len(pandas.read_csv(two / "predictions.csv")) == 4


@pytest.mark.slow
def test_the_quickstart_learns(tmp_path):
    output = tmp_path / "run"
    process = run_program("train_hf.py", "recipes/quickstart.yaml", "--output_dir", output, timeout=1500, threads=2)
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["test"]["accuracy"] >= 0.9
    answer = run_program("examples/classify_file.py", output, "data/voice_prompts/audio/fr_agent-pass.flac")
    assert answer.stdout.split()[1] == "fr", answer.stderr[-2000:]
