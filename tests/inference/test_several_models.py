"""Tests predict_hf.py with several models: tables like those of single runs, and one pass for equal encoders."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from audio_files import write_tone
from tiny_models import save_tiny_classifier, save_tiny_cnn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

import predict_hf
from modeling_dual_ssast import DualSSASTFeatureExtractor, DualSSASTModel
from training.errors import InputError
from training.inference.shared import names_of_models

HEADS = {
    "linear": {},
    "prototypes": {"classifier": "prototypes", "fusion_layers": [0, 1]},
    "gated": {"fusion": "gated", "fusion_layers": [0, 1, 2], "pooling": ["attention"], "num_pooling_heads": 2},
    "several": {"problem_type": "multi_label_classification", "readout": "frames", "fusion_norm": "separate"},
    "prefix": {"readout": "prefix", "classifier_hidden_sizes": [5], "fusion_layers": [1]},
}


def save_on(folder, lead, **settings):
    """Saves a classifier with other settings and the encoder of `lead`."""
    save_tiny_classifier(folder, **settings)
    model = AutoModelForAudioClassification.from_pretrained(folder)
    weights = AutoModelForAudioClassification.from_pretrained(lead).base_model.state_dict()
    model.base_model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fusion.")}, strict=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of classifiers on one encoder, by name."""
    folder = tmp_path_factory.mktemp("models")
    lead = save_tiny_classifier(folder / "linear", initializer_range=0.3)
    others = {name: save_on(folder / name, lead, **settings) for name, settings in HEADS.items() if settings}
    return {"linear": lead, **others}


@pytest.fixture
def clips(tmp_path):
    for index, seconds in enumerate((0.5, 0.1, 3.0, 0.3, 0.65)):  # 3 s are beyond the models' 0.655 s
        write_tone(tmp_path / "clips" / f"{index}.wav", seconds=seconds, hz=150 * 3**index, seed=index)
    for name in ("single", "together"):
        (tmp_path / name).mkdir()
    (tmp_path / "clips" / "broken.wav").write_bytes(b"RIFFrubbish")
    return tmp_path / "clips"


@pytest.fixture
def passes(monkeypatch):
    """Counts the clips and windows that the encoders' blocks read."""
    found = Counter()
    original = DualSSASTModel.encode

    def encode(self, state, *args, **kwargs):
        found["windows"] += len(state)
        return original(self, state, *args, **kwargs)

    monkeypatch.setattr(DualSSASTModel, "encode", encode)
    return found


def predict(*words) -> int:
    return predict_hf.main(list(map(str, words)))


def same_files(folder, other, names):
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_are_those_of_single_runs_byte_for_byte(models, clips, tmp_path, passes, ending, monkeypatch):
    options = ["--batch_size", 3, "--shard_clips", 4]
    names = []
    for name, model in models.items():
        tables = [tmp_path / "single" / f"{table}.{name}.{ending}" for table in ("scores", "windows")]
        events = tmp_path / "single" / f"events.{name}.csv"
        words = ["--output", tables[0], "--windows", tables[1], "--events", events]
        assert predict(model, clips, *words, *options) == 1
        about = [f"{table.name}.about.json" for table in tables if ending == "csv"]
        names += [*(table.name for table in tables), events.name, *about, f"{tables[0].name}.unreadable.csv"]
    alone, together = passes.pop("windows"), tmp_path / "together"
    tables = [together / f"{table}.{ending}" for table in ("scores", "windows")]
    words = ["--output", tables[0], "--windows", tables[1], "--events", together / "events.csv"]
    assert predict(clips, "--models", *models.values(), *words, *options) == 1
    assert passes["windows"] * len(models) == alone
    same_files(tmp_path / "single", together, names)
    assert sorted(path.name for path in together.iterdir()) == sorted(names)


def test_other_encoders_and_other_windows_run_by_themselves(models, clips, tmp_path, passes, capsys):
    other = save_tiny_classifier(tmp_path / "other", fusion_layers=[1])  # the same configuration, other weights
    shorter = save_on(tmp_path / "shorter", models["linear"])
    extractor = DualSSASTFeatureExtractor.from_pretrained(shorter)
    extractor.max_length = 32
    extractor.save_pretrained(shorter)
    cnn = save_tiny_cnn(tmp_path / "cnn", "vggish")
    chosen = [models["linear"], other, models["gated"], shorter, cnn]
    for model in chosen:
        predict(model, clips, "--output", tmp_path / "single" / f"scores.{model.name}.csv")
    passes.clear()
    predict(clips, "--models", *chosen, "--output", tmp_path / "scores.csv")
    same_files(tmp_path / "single", tmp_path, [f"scores.{model.name}.csv" for model in chosen])
    told = capsys.readouterr().err
    assert "linear and gated: one pass of the encoder" in told
    assert all(f"{name}: by itself" in told for name in ("other", "shorter", "cnn"))


@pytest.mark.parametrize("family", ["vggish", "panns"])
def test_convolutional_networks_share_what_they_compose(clips, tmp_path, family, capsys):
    lead = save_tiny_cnn(tmp_path / "lead", family)
    model = AutoModelForAudioClassification.from_pretrained(lead)
    model.reset_classifier()
    model.save_pretrained(tmp_path / "second")
    AutoFeatureExtractor.from_pretrained(lead).save_pretrained(tmp_path / "second")
    for name in ("lead", "second"):
        predict(tmp_path / name, clips, "--output", tmp_path / "single" / f"scores.{name}.csv")
    predict(clips, "--models", lead, tmp_path / "second", "--output", tmp_path / "scores.csv")
    same_files(tmp_path / "single", tmp_path, ["scores.lead.csv", "scores.second.csv"])
    assert "lead and second: one pass" in capsys.readouterr().err


def test_without_tables_every_line_names_the_model(models, clips, capsys):
    assert predict(clips, "--models", models["linear"], models["prefix"], "--top_k", 2) == 1
    captured = capsys.readouterr()
    lines = [line.split("\t") for line in captured.out.splitlines()]
    assert Counter(line[1] for line in lines) == {"linear": 5, "prefix": 5}
    assert captured.err.count("broken.wav") == 1 and "1 of 6 files could not be classified" in captured.err


def test_machines_share_the_work(models, clips, tmp_path):
    chosen = [models["linear"], models["prefix"]]
    words = ["--models", *chosen, "--output", tmp_path / "scores.csv", "--shard_clips", 2]
    for share in ("1/2", "2/2"):
        assert predict(clips, *words, "--share", share) == 0
    assert predict(clips, *words) == 1
    for model in chosen:
        predict(model, clips, "--output", tmp_path / "single" / f"scores.{model.name}.csv", "--shard_clips", 2)
    same_files(tmp_path / "single", tmp_path, [f"scores.{model.name}.csv" for model in chosen])


def test_a_stopped_run_goes_on(models, clips, tmp_path, passes, monkeypatch):
    chosen = [models["linear"], models["gated"]]
    words = ["--models", *chosen, "--output", tmp_path / "scores.csv", "--shard_clips", 2, "--batch_size", 1]
    original = DualSSASTModel.encode

    def stopping(self, state, *args, **kwargs):
        if passes["windows"] == 6:
            raise KeyboardInterrupt
        return original(self, state, *args, **kwargs)

    monkeypatch.setattr(DualSSASTModel, "encode", stopping)
    assert predict(clips, *words) == 130
    monkeypatch.setattr(DualSSASTModel, "encode", original)
    assert (tmp_path / "scores.linear.csv.shards").exists() and not (tmp_path / "scores.linear.csv").exists()
    assert predict(clips, *words) == 1
    for model in chosen:
        predict(model, clips, "--output", tmp_path / "single" / f"scores.{model.name}.csv", *words[-4:])
    same_files(tmp_path / "single", tmp_path, [f"scores.{model.name}.csv" for model in chosen])
    assert not (tmp_path / "scores.linear.csv.shards").exists()


def test_a_run_that_is_stopped_between_encoders_keeps_the_earlier_tables(models, clips, tmp_path, monkeypatch):
    other = save_tiny_classifier(tmp_path / "other", fusion_layers=[1])
    output, first = tmp_path / "scores.csv", tmp_path / "scores.linear.csv"
    words, original = ["--models", models["linear"], other, "--output", output], predict_hf.run_jobs
    first.write_text("by hand")

    def stopping(jobs, *others):
        if jobs[0].name == "other":
            raise KeyboardInterrupt
        return original(jobs, *others)

    monkeypatch.setattr(predict_hf, "run_jobs", stopping)
    assert predict(clips, *words) == 130
    monkeypatch.setattr(predict_hf, "run_jobs", original)
    original_tables = predict_hf.write_tables

    def stopping_later(network, *others):  # with the tables of the first model in place
        if network.model.config.fused_layers == [1]:
            raise KeyboardInterrupt
        return original_tables(network, *others)

    monkeypatch.setattr(predict_hf, "write_tables", stopping_later)
    assert predict(clips, *words) == 130
    assert first.read_text() != "by hand"
    monkeypatch.setattr(predict_hf, "write_tables", original_tables)
    assert predict(clips, *words) == 1
    assert (tmp_path / "scores.linear.previous.csv").read_text() == "by hand"
    assert (tmp_path / "scores.other.csv").exists() and not list(tmp_path.glob("*.shards"))


def test_models_whose_folders_of_events_would_be_one_are_refused(models, clips, tmp_path, capsys):
    one, two = (shutil.copytree(models["linear"], tmp_path / name) for name in ("v1.0", "V1_0"))
    assert predict(clips, "--models", one, two, "--events", tmp_path / "tables") == 1
    assert "would give tables of the same name; name other folders" in capsys.readouterr().err
    assert predict(clips, "--models", one, two, "--events", tmp_path / "events.csv") == 1  # a file could not be read
    assert (tmp_path / "events.v1.0.csv").exists() and (tmp_path / "events.V1_0.csv").exists()


def test_a_clip_that_overflows_in_one_model_has_scores_of_the_other(models, clips, tmp_path):
    broken = tmp_path / "overflows"
    model = AutoModelForAudioClassification.from_pretrained(models["linear"])
    with torch.no_grad():
        model.classifier.dense.weight.fill_(3e38)  # products overflow, the weights do not
    model.save_pretrained(broken)
    AutoFeatureExtractor.from_pretrained(models["linear"]).save_pretrained(broken)
    for folder in (models["linear"], broken):
        predict(folder, clips, "--output", tmp_path / "single" / f"scores.{folder.name}.csv")
    predict(clips, "--models", models["linear"], broken, "--output", tmp_path / "scores.csv")
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    same_files(tmp_path / "single", tmp_path, names)
    assert "scores.linear.csv" in names and "scores.overflows.csv" not in names


@pytest.mark.parametrize("event_format", [None, "audacity"])
def test_each_model_has_a_folder_of_event_tables(models, clips, tmp_path, event_format):
    own = shutil.copytree(models["linear"], tmp_path / "v1.5")  # what is after a point is no format
    words = [] if event_format is None else ["--event_format", event_format]
    predict(clips, "--models", own, models["gated"], "--events", tmp_path / "tables", *words)
    made = ["gated", "gated.unreadable.csv", "v1_5", "v1_5.unreadable.csv"]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == made
    for model, name in ((own, "v1_5"), (models["gated"], "gated")):
        predict(model, clips, "--events", tmp_path / "single" / name, *words)
        files = sorted(path.name for path in (tmp_path / "single" / name).iterdir())
        assert len(files) == 5
        same_files(tmp_path / "single" / name, tmp_path / "tables" / name, files)


def test_names_tell_models_apart(tmp_path):
    assert names_of_models(["runs/a", "b/"]) == ["a", "b"]
    assert names_of_models(["runs/a/model", "runs/b/model"]) == ["a-model", "b-model"]
    assert names_of_models(["user/Model", "other/model"]) == ["user-Model", "other-model"]  # one file on some systems
    for models in (["a", "b", "a"], [str(tmp_path), f"{tmp_path}/."]):
        with pytest.raises(InputError, match="models: .* is named twice"):
            names_of_models(models)
    with pytest.raises(InputError, match="would give tables of the same name"):
        names_of_models(["A", "a"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clips", "--model", "A", "--models", "B"], "models: stands in place of the one model"),
        (["--models", "A", "B"], "usage: predict_hf.py MODEL INPUT"),
        (["--models", "A", "B", "--listen", "-"], "models: has no effect with --listen; leave it out"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_line(words, message, capsys):
    assert predict(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_rejection_is_that_of_each_model(models, clips, tmp_path):
    from training.base.open_set import NUM_QUANTILES, OpenSet, normalise

    for name in ("linear", "gated"):
        model = AutoModelForAudioClassification.from_pretrained(models[name])
        size = model.config.fused_size
        means = normalise(torch.from_numpy(np.random.default_rng(0).normal(size=(3, size))))
        quantiles = {score: torch.linspace(0, 5, NUM_QUANTILES) for score in ("distance", "energy")}
        OpenSet(means, torch.eye(size)[:2], torch.ones(3), quantiles).save(model, models[name])
    chosen = [models["linear"], models["gated"]]
    words = ["--reject", 0.9]
    for model in chosen:
        predict(model, clips, "--output", tmp_path / "single" / f"scores.{model.name}.jsonl", *words)
    predict(clips, "--models", *chosen, "--output", tmp_path / "scores.jsonl", *words)
    same_files(tmp_path / "single", tmp_path, [f"scores.{model.name}.jsonl" for model in chosen])
    assert "distance" in json.loads((tmp_path / "scores.gated.jsonl").read_text().splitlines()[0])
