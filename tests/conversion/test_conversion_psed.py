"""Tests `python -m conversion asit` on PretrainedSED's files: what it recognises, names and refuses."""

from pathlib import Path

import pytest
import torch
from conversions import assert_refused, run_conversion
from golden import checkpoint, settings
from transformers import AutoModelForAudioFrameClassification

from conversion import pretrained_sed
from conversion.options import Options
from modeling_dual_ssast import DualSSASTForAudioClassification, DualSSASTModel


@pytest.fixture
def convert(tmp_path, capsys):
    def run(content, *options):
        content = f"asit_psed_{content}.json" if isinstance(content, str) else content
        return run_conversion("asit", content, tmp_path, capsys, "--overwrite", *options)

    return run


@pytest.mark.parametrize(
    ("kind", "model_class", "words"),
    [
        ("ssl", DualSSASTModel, ["encoder alone", "stretched to 62 x 8"]),
        ("weak", DualSSASTForAudioClassification, ["weak head", "class_labels_indices.csv is likely"]),
        ("strong", AutoModelForAudioFrameClassification, ["strong head", "weak_head.weight", "does not use"]),
    ],
)
def test_each_file_gives_its_own_model(convert, kind, model_class, words):
    status, out, _, folder = convert(kind, "--verify")
    assert status == 0 and "largest difference 0" in out and "16000 Hz" in out
    for place in (out, (folder / "README.md").read_text()):
        assert [word for word in words if word not in place] == []
    model_class.from_pretrained(folder)


def test_the_cards_say_what_the_heads_do(convert):
    """A head of frames and one of clips are trained, and neither pools like a new model."""
    for kind, auto_class, tag in (
        ("strong", "AutoModelForAudioFrameClassification", "- sound-event-detection"),
        ("weak", "AutoModelForAudioClassification", "pipeline_tag: audio-classification"),
    ):
        card = (convert(kind)[3] / "README.md").read_text()
        assert f"{auto_class}.from_pretrained(repository" in card and tag in card
        assert "pipeline_tag: audio-classification" in card and "feature-extraction" not in card
        assert "mean of all tokens in each of 250 time frames" in card
        assert not any(words in card for words in ("not trained for any task", "defaults of a new model", "mean, max"))
    card = (convert("ssl")[3] / "README.md").read_text()
    assert "It is not trained for any task" in card and "pipeline_tag: feature-extraction" in card


@pytest.mark.parametrize("kind", ["ssl", "weak", "strong"])
def test_names_and_shapes_at_full_size(monkeypatch, kind):
    """The published files, without their memory: one stored zero per tensor, and a model without storage."""
    shapes = settings("asit_psed_vit_base_shapes")
    state = {name: torch.zeros(1).expand(shape) for name, shape in (shapes["encoder"] | shapes.get(kind, {})).items()}
    monkeypatch.setattr(pretrained_sed, "build_model", lambda *made: made)
    model_class, config, weights = pretrained_sed.convert(Path("ASIT.pt"), state, Options()).model
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}
    missing = {name: expected[name] for name in expected.keys() - weights.keys()}
    assert {name: tensor.shape for name, tensor in weights.items()} | missing == expected
    assert all(name.startswith("fusion.") for name in missing) and config.num_attention_heads == 12


def test_the_task_chooses_where_the_heads_do_not(convert):
    state = checkpoint("asit_psed_strong.json")
    heads = {
        name: torch.zeros(527, *tensor.shape[1:]) for name, tensor in state.items() if name.startswith("weak_head")
    }
    assert_refused(convert(state | heads), "leaves open which one was trained", "--task frame-classification")
    status, out, _, folder = convert(state | heads, "--task", "frame-classification")
    assert status == 0 and "weak_head.bias, weak_head.weight: a head that the task does not use" in out
    assert AutoModelForAudioFrameClassification.from_pretrained(folder).config.num_labels == 447
    assert convert("strong", "--task", "encoder")[0] == 0


def test_what_is_refused(convert):
    state = checkpoint("asit_psed_strong.json")
    assert_refused(convert("ssl", "--task", "pretraining"), "without pretext heads")
    assert_refused(convert("ssl", "--task", "classification"), "missing weak_head.weight")
    assert_refused(convert("ssl", "--weights", "student"), "one network")
    assert_refused(convert("ssl", "--time-stride", "8"), "--time-stride 8 is not 16")
    assert_refused(convert(state | {"seq_model.rnn.weight_ih_l0": torch.zeros(1)}), "recurrent head")
    lightning = {f"model.model.asit.{n.removeprefix('model.')}": t for n, t in state.items() if n.startswith("model.")}
    assert_refused(convert({"state_dict": lightning, "epoch": 3}), "Lightning file")
    assert_refused(convert(state | {"model.pos_embed": torch.zeros(1, 300, 128)}), "holds 299 patches, expected 296")
    assert_refused(
        convert({n: t for n, t in state.items() if "blocks.2.mlp.fc1.bias" not in n}), "missing blocks.2.mlp"
    )
    assert_refused(convert(state | {"model.more": torch.zeros(1)}), "unknown more")
    assert_refused(convert("strong", "--max-length", "15"), "--max-length 15 is shorter than a patch; give 16 or more")
    weight = next(name for name in state if name.endswith("strong_head.weight"))
    assert_refused(convert({n: t for n, t in state.items() if n != weight}), "missing strong_head.weight")
    assert_refused(convert(state | {weight: torch.tensor(1.0)}), "strong_head.weight has shape (), expected 2 axes")
    kernels = next(name for name in state if name.endswith("patch_embed.proj.weight"))
    assert_refused(convert(state | {kernels: state[kernels][:, :, :0]}), "patch_embed.proj.weight has shape")
