"""Tests the task detection: a tone detector is learnt, saved, resumed and applied."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from annotated_tones import write_annotated_tones
from audio_files import run_program
from safetensors.torch import load_file
from tiny_models import TINY, save_tiny_classifier, save_tiny_cnn
from tiny_runs import TINY_DETECTION
from transformers import AutoModelForAudioFrameClassification

import predict_hf
from modeling_dual_ssast import ASiTConfig, ASiTForPreTraining, DualSSASTConfig, DualSSASTFeatureExtractor
from training import tasks
from training.base.label_frames import frame_grid
from training.data.events import read_events
from training.data.feature_plans import PlannedBatch
from training.detection import train as detection
from training.detection.arguments import DetectionDataArguments
from training.detection.crops import UNKNOWN
from training.detection.trainer import FrameLoss, weak_loss
from training.errors import InputError

SETTINGS = TINY_DETECTION | {"html_report": False}  # tests/detection/test_event_page.py


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_annotated_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture
def train(tones, tmp_path):
    def run(name: str = "run", *words, **values):
        path, output = tmp_path / f"{name}.json", tmp_path / name
        standard = SETTINGS | {"train_annotations": str(tones), "output_dir": str(output)}
        path.write_text(json.dumps({key: value for key, value in (standard | values).items() if value != "unset"}))
        _, *parts = tasks.parse([str(path), *words])
        detection.run(*parts)
        return output

    return run


@pytest.mark.slow
def test_a_tone_detector_is_learnt_saved_and_applied(train, tones, tmp_path, capsys):
    output = train(num_train_epochs=12, crops_per_epoch=64)
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["test"]["frame_mean_average_precision"] > 0.95
    assert results["metrics"]["test"]["event_f1_macro"] > 0.8
    assert results["labels"] == ["high", "low"] and results["per_class"]["high"]["annotated_events"] > 0
    model = AutoModelForAudioFrameClassification.from_pretrained(output)
    assert model.config.event_detection == results["event_detection"]
    assert "sound-event-detection" in (output / "README.md").read_text()

    _, _, data, *_ = tasks.parse([str(output / "results.json"), "--output_dir", "other"])  # the results are a recipe
    assert data.train_annotations == str(tones) and data.event_share == 0.5

    # The program finds what the evaluation found: the same windows, filter and thresholds.
    wanted = read_events(output / "events.csv")
    place = tmp_path / "found.csv"
    assert predict_hf.main([str(output), *wanted, "--events", str(place)]) == 0
    found = read_events(place)
    assert found.keys() == wanted.keys() and any(wanted.values())
    for name, events in wanted.items():
        times = [[(event.label, event.onset_s, event.offset_s) for event in own] for own in (found[name], events)]
        assert times[0] == times[1]


@pytest.mark.slow
def test_features_made_on_the_device_give_the_same_training(train, tones, monkeypatch):
    made, make, together = [], PlannedBatch.make, DualSSASTFeatureExtractor.normalized_log_mel
    monkeypatch.setattr(PlannedBatch, "make", lambda self, *args: made.append(len(self.plans)) or make(self, *args))
    monkeypatch.setattr(  # products of other sizes may be rounded otherwise, and all else is the same arithmetic
        DualSSASTFeatureExtractor,
        "normalized_log_mel",
        lambda self, clips, most: [together(self, [clip], most)[0] for clip in clips],
    )
    weak = tones.with_name("weak.csv")
    weak.write_text("file,label\nr0.wav,high|low\nr1.wav,\n")
    settings = {
        "weak_annotations": str(weak), "label_separator": "|", "mixup_rate": 0.5, "mixup_domain": "spectrogram",
        "time_mask_frames": 30, "time_shift_frames": 9, "noise": True, "random_resized_crop": True, "gain_db": 3.0,
        "crops_per_epoch": 16,
    }  # fmt: skip
    outputs = []
    for value in (False, True):
        assert not made
        folder = train(str(value), features_on_device=value, **settings)
        names = ("model.safetensors", "events.csv")
        outputs.append([(folder / name).read_bytes() for name in names])
    assert sum(made) > 16 and outputs[0] == outputs[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"lora_rank": 2},
        {"freeze_layers": 1, "layer_decay": 0.5, "sampler": "balanced", "class_weights": "balanced"},
        {"loss": "focal", "average_from_epoch": 1, "event_share": None, "bf16": True},
        {"weak_annotations": "weak.csv", "label_separator": "|", "mixup_rate": 0.5},
        {"split_by": "time", "crop_s": 0.5, "window_s": 0.6, "hop_s": 0.2, "time_stride": 8},
        {"fusion": "weighted", "fusion_layers": [1, 2], "pooling": ["mean", "max"], "readout": "frames"},
        {"classifier": "prototypes", "fusion": "gated", "bf16": True},
        {"pooling": ["std", "attention"], "num_pooling_heads": 2, "head_learning_rate": 1e-2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_options_of_a_fine_tuning(train, tones, tmp_path, settings):
    checkpoint = save_tiny_classifier(tmp_path / "checkpoint", num_mel_bins=128)
    if "weak_annotations" in settings:
        settings = settings | {"weak_annotations": str(tones.with_name("weak.csv"))}
        tones.with_name("weak.csv").write_text("file,label\nr0.wav,high|low\nr1.wav,\n")
    without = dict.fromkeys(("config_overrides", "max_length", "frequency_stride"), "unset")
    output = train(**without, model_name_or_path=str(checkpoint), **{"time_stride": "unset"} | settings)
    results = json.loads((output / "results.json").read_text())
    assert np.isfinite(results["metrics"]["validation"]["loss"])
    model = AutoModelForAudioFrameClassification.from_pretrained(output)
    assert model.config.num_labels == 2 and model.config.frame_hop_s == results["frame_hop_s"]


def test_weak_loss_is_that_of_the_linear_softmax():
    logits = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    labels = torch.tensor([[1.0, 0.0], [UNKNOWN, 1.0], [UNKNOWN, UNKNOWN]])
    losses = []
    for clip, label, wanted in ((0, 0, 1), (0, 1, 0), (1, 1, 1)):
        scores = logits[clip, mask[clip], label].sigmoid()
        pooled = float((scores**2).sum() / scores.sum())
        losses.append(-np.log(pooled if wanted else 1 - pooled))
    assert float(weak_loss(logits, labels, mask)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(weak_loss(logits, torch.full((3, 2), float(UNKNOWN)), mask)) == 0


@pytest.mark.parametrize(("weights", "gamma"), [(None, 0.0), ([2.0, 1.0, 3.0], 0.0), (None, 2.0), ([2.0, 1, 3], 0.5)])
def test_frame_loss_equals_a_plain_sum(weights, gamma):
    """With neither weights nor focus it is the model's own."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(2, 5, 3, generator=generator), torch.rand(2, 5, 3, generator=generator)
    labels[0, 1, 2] = labels[1, 0] = UNKNOWN
    mask = torch.arange(5) < torch.tensor([5, 3])[:, None]
    losses = []
    for place in np.ndindex(2, 5, 3):
        target, score = float(labels[place]), float(logits[place].sigmoid())
        if mask[place[:2]] and target != UNKNOWN:
            weight = weights[place[2]] if weights else 1.0
            positive = weight * target * (1 - score) ** gamma * np.log(score)
            losses.append(-positive - (1 - target) * score**gamma * np.log(1 - score))
    loss = FrameLoss(torch.tensor(weights) if weights else None, gamma)(logits, labels, mask)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("given", [{}, {"window_s": 0.3}, {"hop_s": 0.1}, {"window_s": 0.3, "hop_s": 0.1}])
@pytest.mark.parametrize("own", [None, {"window_s": 0.4, "hop_s": 0.2}, {"hop_s": 0.2, "median_steps": 3}])
@pytest.mark.parametrize("is_chosen", [True, False])
def test_the_windows_of_the_evaluations_are_stored(monkeypatch, given, own, is_chosen):
    """As the model itself reads them, whether or not settings are chosen."""
    model = AutoModelForAudioFrameClassification.from_config(DualSSASTConfig(**TINY | {"event_detection": own}))
    extractor = DualSSASTFeatureExtractor(max_length=TINY["max_length"])
    data = DetectionDataArguments(train_annotations="x.csv", **given)
    grid = frame_grid(model, extractor, data.window_s, data.hop_s)
    detection.keep_windows(model.config, data)
    if is_chosen:
        monkeypatch.setattr(detection, "choose_settings", lambda *parts: {"high": 0.3, "metric": "event_f1"})
        labels, args = SimpleNamespace(names=("a",)), SimpleNamespace(postprocessing_metric="event_f1")
        dataset = SimpleNamespace(labels=labels, stretches=[])
        trainer = SimpleNamespace(scores_of=lambda *parts: [], args=args, model=model, collar_s=0.2)
        outcomes = {"validation": SimpleNamespace(predictions=None, metrics={})}
        trainer.metrics_of = lambda outcome: {}
        detection.choose_postprocessing(trainer, {"validation": dataset}, outcomes)
    assert frame_grid(model, extractor) == grid
    found = model.config.event_detection or {}
    assert found.get("high") == (0.3 if is_chosen else None)
    assert found.get("median_steps") == (None if is_chosen else (own or {}).get("median_steps"))


def save_asit(folder) -> Path:
    ASiTForPreTraining(ASiTConfig(**TINY)).save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=TINY["max_length"]).save_pretrained(folder)
    return folder


FAMILIES = {
    "vggish": lambda folder: save_tiny_cnn(folder, "vggish"),
    "panns_cnn14": lambda folder: save_tiny_cnn(folder, "panns_cnn14"),
    "asit": save_asit,
    "frames": lambda folder: save_tiny_classifier(
        folder, num_mel_bins=128, patch_size=(128, 2), frequency_stride=128, time_stride=2
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_trained_and_finds_events(train, tones, tmp_path, family):
    checkpoint = FAMILIES[family](tmp_path / family)
    without = dict.fromkeys(("config_overrides", "max_length", "frequency_stride", "time_stride"), "unset")
    if "cnn" in family or family == "vggish":
        without |= {"compute_statistics": False, "crop_s": 2.0, "window_s": 2.0}
    output = train(**without, model_name_or_path=str(checkpoint))
    assert np.isfinite(json.loads((output / "results.json").read_text())["metrics"]["test"]["loss"])
    wanted = read_events(output / "events.csv")
    assert predict_hf.main([str(output), *wanted, "--events", str(tmp_path / "found.csv")]) == 0
    found = read_events(tmp_path / "found.csv")
    assert {name: [event[:3] for event in own] for name, own in found.items()} == {
        name: [event[:3] for event in own] for name, own in wanted.items()
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_s": 2.0}, "crop_s must be positive and at most"),
        ({"split_by": "site"}, "split_by: site needs the key site"),
        ({"metric_for_best_model": "accuracy"}, "metric_for_best_model: 'accuracy' is unknown"),
        ({"readout": "prefix"}, "readout='prefix' has no time frames"),
        ({"exclude_labels": ["high", "low"]}, "holds no events"),
    ],
)
def test_impossible_recipes_are_one_line(train, settings, message):
    with pytest.raises(InputError, match=message):
        train(**settings)


@pytest.mark.slow
def test_two_processes_train_like_one(tones, tmp_path):
    values = SETTINGS | {"train_annotations": str(tones), "num_train_epochs": 2}
    found = []
    for count in (1, 2):
        output = tmp_path / str(count)
        recipe = tmp_path / f"{count}.json"
        size = {"per_device_train_batch_size": 8 // count, "output_dir": str(output)}
        recipe.write_text(json.dumps(values | size))
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
        process = run_program(*words, "train_hf.py", recipe, timeout=600)
        assert process.returncode == 0, process.stderr[-2000:]
        found.append((load_file(output / "model.safetensors"), json.loads((output / "results.json").read_text())))
    (one, first), (two, second) = found
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-3)
    for split, metrics in first["metrics"].items():
        assert second["metrics"][split] == pytest.approx(metrics, abs=0.05)


@pytest.mark.slow
def test_memory_does_not_depend_on_the_length_of_the_recordings(tmp_path):
    """Crops decode their own samples, and evaluations their windows."""
    script = """
import resource, sys
from train_hf import main
assert main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks, noise = [], np.random.default_rng(0).standard_normal(60 * 16000).astype(np.float32) * 0.1
    for hours in (0.25, 10):
        folder = tmp_path / str(hours)
        folder.mkdir()
        with soundfile.SoundFile(folder / "x.wav", "w", 16000, 1, "PCM_16") as file:
            for _ in range(round(hours * 60)):
                file.write(noise)
        ends = [3600 * hours * place / 100 for place in range(1, 100)]
        rows = [f"x.wav,{end - 1},{end},{label}" for end in ends for label in ("high", "low")]
        (folder / "events.csv").write_text("\n".join(["file,onset_s,offset_s,label", *rows]) + "\n")
        values = {
            "split_by": "time",
            "validation_fraction": 0.02,
            "test_fraction": 0,
            "output_dir": str(folder / "run"),
        }
        recipe = folder / "recipe.json"
        recipe.write_text(json.dumps(SETTINGS | values | {"train_annotations": str(folder / "events.csv")}))
        process = run_program("-c", script, recipe, timeout=1500)
        assert process.returncode == 0, process.stderr[-2000:]
        peaks.append(int(process.stdout.split()[-1]) / 1024)  # MiB
        (folder / "x.wav").unlink()
    assert peaks[1] - peaks[0] < 150, peaks
