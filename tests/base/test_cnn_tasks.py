"""Tests VGGish and CNN14 in every task that takes a model: fine-tuning, prediction, sweep, probe."""

import json

import numpy as np
import pandas
import pytest
import torch
from audio_files import write_class_folders, write_tone
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_models import save_tiny_cnn
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

import predict_hf
import train_hf
from training import tasks
from training.data.audio import read_audio
from training.embeddings import sweep
from training.embeddings.representations import compose, load_for_recipe, representations
from training.errors import InputError

FAMILIES = {"vggish": [1, 4, 7, 9, 12, 14, 17, 19, 21], "panns_cnn14": [1, 2, 3, 4, 5, 6]}
FRACTIONS = {"validation_fraction": 0.2, "test_fraction": 0.2}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, family):
    # Like a converted CNN14: with the readout of the original.
    settings = {"readout": "panns"} if family == "panns_cnn14" else {}
    return save_tiny_cnn(tmp_path_factory.mktemp("checkpoint"), family, **settings)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 10, seconds=1.2)


def run(folder, task: str, **values):
    path, output = folder / f"{task}.json", folder / task
    path.write_text(json.dumps({"task": task, "output_dir": str(output), **values}))
    assert train_hf.main([str(path)]) == 0
    return output


@pytest.mark.slow
def test_fine_tuning_and_prediction(checkpoint, clips, family, tmp_path, capsys):
    layers = FAMILIES[family][2:4]
    output = run(
        tmp_path, "classification", model_name_or_path=str(checkpoint), dataset_name=str(clips), **FRACTIONS,
        fusion_layers=layers, pooling=["mean", "max"], num_train_epochs=3, learning_rate=1e-2, head_learning_rate=1e-2,
        per_device_train_batch_size=4, mixup_rate=0.5, time_mask_frames=10, disable_tqdm=True, dataloader_num_workers=1,
        max_length=110, **({"readout": "composed"} if family == "panns_cnn14" else {}),
    )  # fmt: skip
    model = AutoModelForAudioClassification.from_pretrained(output).eval()
    extractor = AutoFeatureExtractor.from_pretrained(output)
    assert model.config.fusion_layers == layers and model.config.temporal_pooling == ["mean", "max"]
    assert extractor.max_length == 110
    results = json.loads((output / "results.json").read_text())
    assert results["normalisation"] == {"mean": None, "std": None} and 0 <= results["metrics"]["test"]["accuracy"] <= 1
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (checkpoint, output))
    moved = [name for name in before if name in after and not torch.equal(before[name], after[name])]
    assert any(name.endswith("weight") for name in moved)
    card = (output / "README.md").read_text()
    assert f"layers {layers[0]} and {layers[1]}, mean + max over time" in card and "mel bins x frames" not in card
    write_tone(tmp_path / "long.wav", seconds=3.0, hz=400, seed=1)
    capsys.readouterr()
    assert predict_hf.main([str(output), str(tmp_path / "long.wav"), str(clips), "--top_k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 21


@pytest.mark.slow
@pytest.mark.figures
def test_the_sweep_composes_what_the_model_would(checkpoint, clips, family, tmp_path):
    """Features to 1e-6, predictions of scikit-learn on them, every layer pair and pooling; the best is a recipe."""
    output = run(
        tmp_path, "sweep", model_name_or_path=str(checkpoint), dataset_name=str(clips), num_folds=3, ridge=[0.1]
    )
    table = pandas.read_csv(output / "sweep.csv", dtype={"layers": str})
    layers = FAMILIES[family]
    assert len(table) == (len(layers) * (len(layers) + 1) // 2) * 7
    assert set(table["readout"]) == {"composed"} and set(table["combination"]) == {"sum"}
    assert {entry.name for entry in output.iterdir()} >= {"layers_composed.png", "layers.png", "comparison.csv"}

    parts = tasks.parse([str(tmp_path / "sweep.json")])[1:]
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    model = load_for_recipe(parts[0], extractor, fuse_all=True)
    torch.manual_seed(0)
    audio = [torch.randn(length) * 0.1 for length in (20000, 17000, 40000)]
    batch = extractor(audio, sampling_rate=16000, return_tensors="pt")
    arrays = {name: value.numpy() for name, value in representations(model, batch).items()}
    composed = {"readout": "composed"} if family == "panns_cnn14" else {}
    for chosen, pooling in (([layers[0]], ["max"]), ([layers[1], layers[-1]], ["mean", "max"]), (layers[2:4], ["min"])):
        same = AutoModel.from_pretrained(checkpoint, fusion_layers=chosen, temporal_pooling=pooling, **composed).eval()
        with torch.no_grad():
            expected = same(**batch).pooler_output
        found = compose(arrays, "composed", chosen, pooling, "sum")
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-6)

    best = json.loads((output / "best.json").read_text())["model"]
    assert best["fusion_layers"] == [int(layer) for layer in table["layers"][0].split("+")]
    tuned = run(
        tmp_path, "classification", dataset_name=str(clips), from_sweep=str(output), max_steps=2, disable_tqdm=True,
        **FRACTIONS,
    )  # fmt: skip
    config = AutoModelForAudioClassification.from_pretrained(tuned).config
    assert config.fusion_layers == best["fusion_layers"] and config.temporal_pooling == best["pooling"]


@pytest.mark.slow
def test_the_score_of_a_sweep_is_scikit_learns(checkpoint, clips, family, tmp_path):
    output = run(
        tmp_path, "sweep", model_name_or_path=str(checkpoint), dataset_name=str(clips), num_folds=3, ridge=[0.1]
    )
    table = pandas.read_csv(output / "sweep.csv", dtype={"layers": str})
    _, data_arguments, settings = tasks.parse([str(tmp_path / "sweep.json")])[1:]
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
    examples = sweep.load_clips(data_arguments, settings)
    labels = np.asarray(examples["label"])
    folds = sweep.make_folds(examples, 3, True, 0)
    composed = {"readout": "composed"} if family == "panns_cnn14" else {}
    for _, row in table.iloc[[0, len(table) // 2, -1]].iterrows():
        chosen = [int(layer) for layer in row["layers"].split("+")]
        model = AutoModel.from_pretrained(
            checkpoint, fusion_layers=chosen, temporal_pooling=row["pooling"].split("+"), **composed
        )
        features = model.embed([read_audio(path, 16000) for path in examples["audio"]], 16000, extractor)
        features = features.double().numpy()
        for number, (training, test) in enumerate(folds):
            ridge = make_pipeline(StandardScaler(), RidgeClassifier(alpha=row["alpha"]))
            score = ridge.fit(features[training], labels[training]).score(features[test], labels[test])
            assert score == pytest.approx(row[f"fold_{number}"])


def test_probe(checkpoint, clips, tmp_path):
    output = run(
        tmp_path, "probe", model_name_or_path=str(checkpoint), dataset_name=str(clips), **FRACTIONS, num_seeds=1,
        num_epochs=5, few_shot=[1], neighbours=[1],
    )  # fmt: skip
    model = AutoModel.from_pretrained(checkpoint)
    assert json.loads((output / "results.json").read_text())["embedding_size"] == model.config.fused_size


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"time_stride": 10}, "time_stride: a .* model has no such setting"),
        ({"mean": -4.0}, "mean: .* does not normalise; leave it out"),
        ({"compute_statistics": True}, "compute_statistics: .* does not normalise; leave it out"),
        ({"fusion_layers": [2, 99]}, "fusion_layers must be a list of one or more of"),
        ({"task": "mspm", "train_sources": ["clips"]}, "model, not one of dual_ssast, asit"),
        ({"task": "sweep", "readouts": ["patches"]}, "readouts: a .* model has no 'patches', only composed"),
    ],
)
def test_what_these_networks_have_not_is_told(checkpoint, clips, values, pattern, tmp_path, capsys):
    task = values.get("task", "classification")
    sources = {"train_sources": [str(clips)]} if task == "mspm" else {"dataset_name": str(clips)}
    recipe = {"task": task, "model_name_or_path": str(checkpoint), "output_dir": str(tmp_path / "out"), **values}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | sources))
    assert train_hf.main([str(tmp_path / "recipe.json")]) == 1
    with pytest.raises(InputError, match=pattern):
        raise InputError(capsys.readouterr().err)
