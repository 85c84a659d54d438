"""Tests learned fusion: it finds the informative layer, is trained with the rest, and is reported as applied."""

import json

import pytest
import torch
from audio_files import write_class_folders
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForAudioClassification

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification
from training import tasks
from training.classification import plots, report
from training.classification import train as classification

SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
LAYERS = [4, 0, 1, 2, 3]  # not in order: a mix-up of place and layer would show


def synthetic_states(informed: list[int], targets: torch.Tensor, generator: torch.Generator) -> dict:
    """Layer -> states (clips, 2 + 3 tokens, 16): of the layers in `informed` the class shifts the noise."""
    directions = torch.eye(SIZES["hidden_size"])[:3] * 3
    states = {}
    for layer in LAYERS:
        # One draw per clip for all its tokens: noise that pooling would average away were no test.
        state = torch.randn(len(targets), 1, SIZES["hidden_size"], generator=generator).repeat(1, 5, 1)
        states[layer] = state + directions[targets].unsqueeze(1) if layer in informed else state
    return states


def train_on_states(informed: list[int], fusion: str = "weighted", steps: int = 150):
    """A classifier whose fusion and head alone are trained, on fresh clips at every step; and its held-out accuracy."""
    torch.manual_seed(0)
    config = DualSSASTConfig(**SIZES, fusion_layers=LAYERS, fusion=fusion, num_labels=3, max_length=32)
    model = DualSSASTForAudioClassification(config)
    generator = torch.Generator().manual_seed(1)
    trained = [*model.dual_ssast.fusion.parameters(), *model.classifier.parameters()]
    optimizer = torch.optim.Adam(trained, lr=0.03)

    def logits_and_targets(clips: int):
        targets = torch.randint(3, (clips,), generator=generator)
        states = synthetic_states(informed, targets, generator)
        return model.classifier(model.dual_ssast.fusion(model.dual_ssast.fused_states(states), None)), targets

    for _ in range(steps):
        loss = nn.functional.cross_entropy(*logits_and_targets(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits, targets = logits_and_targets(1000)
    return model, float((logits.argmax(dim=1) == targets).float().mean())


@pytest.mark.parametrize(
    ("informed", "fusion"), [*((layer, "weighted") for layer in LAYERS), (0, "gated"), (2, "gated")]
)
def test_the_layer_that_carries_the_label_gets_the_weight(informed, fusion):
    model, accuracy = train_on_states([informed], fusion)
    weights = report.layer_weights(model)
    assert list(weights) == LAYERS and sum(weights.values()) == pytest.approx(1)
    assert weights[informed] > 0.7 and accuracy > 0.8


def test_layers_that_know_as_much_share_the_weight():
    """The control: no layer is preferred for its place."""
    weights = report.layer_weights(train_on_states(LAYERS)[0])
    assert max(weights.values()) < 2 * min(weights.values())
    weights = report.layer_weights(train_on_states([1, 3])[0])
    assert weights[1] + weights[3] > 0.7 and 0.5 < weights[1] / weights[3] < 2


@pytest.mark.parametrize("mode", ["weighted", "gated"])
def test_reported_weights_are_those_that_the_model_applies(mode):
    config = DualSSASTConfig(**SIZES, fusion_layers=LAYERS, fusion=mode, fusion_norm="none", max_length=32)
    model = DualSSASTForAudioClassification(config).eval()
    fusion = model.dual_ssast.fusion
    nn.init.normal_(fusion.fusion.layer_weights)
    weights = report.layer_weights(model)
    assert weights == model.dual_ssast.layer_weights
    for layer in LAYERS:  # ones in one layer, zeros in the others; mean + max of them is 2
        states = [torch.full((1, 5, 16), float(other == layer)) for other in LAYERS]
        torch.testing.assert_close(fusion(states, None), torch.full((1, 16), 2 * weights[layer]))
    for fusion in ("concat", "sum"):
        config = DualSSASTConfig(**SIZES, fusion_layers=LAYERS, fusion=fusion, max_length=32)
        assert report.layer_weights(DualSSASTForAudioClassification(config)) is None


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 10)


@pytest.fixture
def train(clips, tmp_path):
    """Trains a tiny model on the clips and returns the output folder."""

    def run(name: str = "run", **values):
        recipe = {
            "dataset_name": str(clips),
            "config_overrides": SIZES,
            "max_length": 32,
            "fusion_layers": LAYERS,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "weight_decay": 0.0,  # so that what has moved has had a gradient
            "load_best_model_at_end": False,  # it might be after the first steps
            "disable_tqdm": True,
            "validation_fraction": 0.2,
            "test_fraction": 0.2,
            "output_dir": str(tmp_path / name),
        }
        recipe = {key: value for key, value in (recipe | values).items() if value is not None}
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(recipe))
        classification.run(*tasks.parse([str(path)])[1:])
        return tmp_path / name

    return run


@pytest.mark.figures
def test_weights_of_layers_train_and_are_saved_and_reported(train, monkeypatch):
    drawn = []
    plot = plots.plot_layer_weights
    monkeypatch.setattr(
        report, "plot_layer_weights", lambda *arguments: (drawn.append(arguments[:2]), plot(*arguments))
    )
    # Other poolings per layer: of one size, so that their vectors can be weighed.
    output = train(fusion="weighted", pooling=[["mean"], ["max"], ["min"], ["mean"], ["max"]])
    scalars = load_file(output / "model.safetensors")["dual_ssast.fusion.fusion.layer_weights"]
    assert (scalars != 0).all()  # where they start from, and would stay without gradients
    results = json.loads((output / "results.json").read_text())
    reported = {int(layer): weight for layer, weight in results["layer_weights"].items()}
    assert list(reported) == LAYERS
    assert list(reported.values()) == pytest.approx(scalars.softmax(dim=0).tolist())
    assert report.layer_weights(AutoModelForAudioClassification.from_pretrained(output)) == pytest.approx(reported)
    assert (output / "layer_weights.png").stat().st_size > 1000
    card = str(ModelCard.load(output / "README.md"))
    assert "![weights of the layers](layer_weights.png)" in card and f"4: {reported[4]:.3f}, 0: " in card
    # A run that goes on from these weights starts with them.
    train("next", fusion="weighted", model_name_or_path=str(output), config_overrides=None, max_steps=1)
    (first, start), (_, second_start) = drawn
    assert start == pytest.approx(dict.fromkeys(LAYERS, 0.2))
    assert first == pytest.approx(reported) and second_start == pytest.approx(reported)
    # Another fusion leaves neither the picture nor its mention.
    train(fusion="concat", overwrite=True, max_steps=1, save_strategy="no")
    assert not (output / "layer_weights.png").exists() and "layer_weights" not in (output / "README.md").read_text()
    assert "layer_weights" not in json.loads((output / "results.json").read_text())


@pytest.mark.parametrize("fusion", ["concat", "weighted"])
def test_separate_norms_train_and_are_saved(train, fusion):
    output = train(fusion=fusion, fusion_norm="separate")
    stored = load_file(output / "model.safetensors")
    model = AutoModelForAudioClassification.from_pretrained(output)
    norms = model.dual_ssast.fusion.layernorms
    assert len(norms) == len(LAYERS)
    for index, norm in enumerate(norms):
        for name, start in (("weight", 1.0), ("bias", 0.0)):
            saved = stored[f"dual_ssast.fusion.layernorms.{index}.{name}"]
            assert (saved - start).abs().max() > 1e-3, (LAYERS[index], name)
            assert torch.equal(getattr(norm, name), saved)
    # The unused shared norm has not changed.
    assert torch.equal(stored["dual_ssast.layernorm.weight"], torch.ones(16))
