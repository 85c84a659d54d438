"""Tests decoded_cache in train_hf.py: the run of decoding anew, and folds that share the stored clips."""

import json
import re

import pytest
from audio_files import write_class_folders
from tiny_runs import TINY, train, write_recipe

import train_hf
from training.data import decoded_cache


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 0.2 to 0.35 s: the longest are cropped at random to the 0.33 s of the tiny model."""
    return write_class_folders(tmp_path_factory.mktemp("clips"), 9)


@pytest.fixture
def recipe(tmp_path, clips):
    settings = TINY | {"dataset_name": clips, "html_report": False, "mixup_rate": 0.5, "gain_db": 6.0}
    return lambda **values: write_recipe(tmp_path, settings | values)[0]


def test_a_training_with_stored_clips_is_that_of_decoding_anew(recipe, tmp_path, capsys, monkeypatch):
    runs = [tmp_path / name for name in ("plain", "first", "second")]
    cache = ["--decoded_cache", str(tmp_path / "cache")]
    path = recipe(compute_statistics=True)
    train(path, "--output_dir", str(runs[0]))
    train(path, "--output_dir", str(runs[1]), *cache)
    counts = dict(re.findall(r"decoded (\w+) clips: .* (\d+) new", capsys.readouterr().out))
    assert counts.keys() == {"train", "validation", "test"} and sum(map(int, counts.values())) == 18
    monkeypatch.setattr(decoded_cache, "read_audio", lambda *args: pytest.fail("a stored clip was decoded"))
    monkeypatch.setattr("training.data.dataset.read_audio", decoded_cache.read_audio)
    train(path, "--output_dir", str(runs[2]), *cache)
    logs, weights, tables = [], [], []
    for run in runs:
        results = json.loads((run / "results.json").read_text())
        logs.append([[entry.get(name) for name in ("loss", "grad_norm", "eval_loss")] for entry in results["log"]])
        weights.append((run / "model.safetensors").read_bytes())
        tables.append((run / "predictions.csv").read_bytes())
    assert logs[0] == logs[1] == logs[2] and any(entry[0] for entry in logs[0])
    assert weights[0] == weights[1] == weights[2] and tables[0] == tables[1] == tables[2]
    assert results["recipe"]["DataArguments"]["decoded_cache"] == cache[1]


@pytest.mark.slow
def test_folds_share_the_stored_clips(recipe, tmp_path, capsys):
    path = recipe(task="cross_validation", num_folds=3, num_train_epochs=1, output_dir=str(tmp_path / "run"))
    assert train_hf.main([path, "--decoded_cache", str(tmp_path / "cache")]) == 0
    new = [int(count) for count in re.findall(r"(\d+) new", capsys.readouterr().out)]
    assert len(new) == 9 and sum(new[:3]) == 18 and not any(new[3:])
    # Where the clips are stored does not affect the metrics: another place goes on.
    assert train_hf.main([path, "--resume_from_checkpoint", "true"]) == 0


def test_a_clip_that_cannot_be_decoded_is_one_line(recipe, tmp_path, capsys):
    broken = write_class_folders(tmp_path / "broken", 9)
    file = broken / "high" / "high_3.wav"
    file.write_bytes(file.read_bytes()[:44])  # the header alone
    words = ["--dataset_name", str(broken), "--check_files", "false", "--output_dir", str(tmp_path / "run")]
    assert train_hf.main([recipe(), *words, "--decoded_cache", str(tmp_path / "cache")]) == 1
    errors = capsys.readouterr().err
    assert "error: " in errors and str(file) in errors.splitlines()[-1]
