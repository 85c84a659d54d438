"""Tests `python -m conversion export-ssast`: it restores the original's file, and refuses what that cannot hold."""

import pytest
import torch
from conversions import assert_refused
from golden import checkpoint, convert, grid_options, settings
from safetensors.torch import load_file

from conversion import export_ssast
from conversion.__main__ import main
from conversion.checkpoint import ConversionError
from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
    DualSSASTModel,
)

KINDS = ("ssast_patch", "ssast_frame")
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256, "max_length": 32}
# SSAST's own readout.
SIMPLE = {"fusion_layers": [-1], "pooling": ["mean"], "num_labels": 3}


@pytest.fixture
def export(tmp_path, capsys):
    """Exports a folder; returns (exit status, stdout, stderr, file)."""

    def run(source, *options):
        capsys.readouterr()  # progress of the test's own save, if no program has turned it off yet
        status = main(["export-ssast", str(source), str(tmp_path / "out.pth"), *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err, tmp_path / "out.pth"

    return run


@pytest.fixture
def save(tmp_path):
    """Saves a small model; returns its folder."""

    def run(model_class=DualSSASTForPreTraining, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class(DualSSASTConfig(**TINY | options))
        model.save_pretrained(tmp_path / "folder")
        return tmp_path / "folder"

    return run


def recipes() -> list[str]:
    fine_tuned = [settings(kind)[f"ft{index}"]["recipe"] for kind in KINDS for index in range(3)]
    return [f"{kind}_pretrained.json" for kind in KINDS] + fine_tuned


def options_of(recipe: str) -> list[str]:
    """Returns the options of a fine-tuned recipe's grid, because the file does not contain it."""
    kind, _, index = recipe.removesuffix(".json").rpartition("_finetuned_")
    if not kind:
        return []
    described = settings(kind)[f"ft{index}"]
    return grid_options(described["input_tdim"], described["fstride"], described["tstride"])


# ---- there and back ----


@pytest.mark.parametrize("recipe", recipes())
def test_the_original_file_comes_back(recipe, export, tmp_path):
    """All but timm's heads, bit for bit; and the exported file converts into the same folder again."""
    folder = convert("ssast", recipe, tmp_path, *options_of(recipe))
    status, out, _, path = export(folder, "--verify")
    assert status == 0
    original, exported = checkpoint(recipe), torch.load(path, weights_only=True)
    assert set(exported) == set(original)
    for name, tensor in original.items():
        assert exported[name].shape == tensor.shape and exported[name].dtype == tensor.dtype, name
        is_unused = name.startswith(("module.v.head.", "module.v.head_dist."))
        assert torch.equal(exported[name], torch.zeros_like(tensor) if is_unused else tensor), name
    weights = load_file(folder / "model.safetensors")
    assert f"verified  {len(weights)} tensors read back, largest difference 0" in out

    assert main(["ssast", str(path), str(tmp_path / "again"), *options_of(recipe)]) == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert set(again) == set(weights)
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_facts_of_a_pretrained_file(export, save):
    folder = save(pretraining_objective="discriminative")
    DualSSASTFeatureExtractor(mean=-5.0, std=4.0, sampling_rate=32000).save_pretrained(folder)
    status, out, _, path = export(folder)
    assert status == 0 and path.is_file()
    for words in (
        "DualSSASTForPreTraining, exported as SSAST's pretrained model",
        "v.head and v.head_dist are zeros",
        "192, 384, 768 wide: for 2 blocks of 64 its constructor needs a change",
        "gpredlayer is untrained: pretraining_objective was 'discriminative'",
        "SSAST pads every clip to 32 frames",
        "mean -5 and std 4, and audio at 32000 Hz",
    ):
        assert words in out
    DualSSASTFeatureExtractor(do_normalize=False).save_pretrained(folder)
    assert "needs skip_norm" in export(folder, "--overwrite")[1]


@pytest.mark.parametrize(("readout", "task"), [("patches", "ft_avgtok"), ("prefix", "ft_cls")])
def test_facts_of_a_fine_tuned_file(export, save, readout, task):
    folder = save(
        DualSSASTForAudioClassification, **SIMPLE, readout=readout, time_stride=10, attention_over_padding=True
    )
    status, out, *_ = export(folder, "--verify")
    assert status == 0
    assert f"task {task}, fstride 16, tstride 10, input_tdim 32, label_dim 3, labels in the order of config.json" in out
    assert "pads every clip" not in out


def test_half_precision_is_written_as_float32(export, save, tmp_path):
    folder = save()
    DualSSASTForPreTraining.from_pretrained(folder).bfloat16().save_pretrained(tmp_path / "half")
    _, out, _, path = export(tmp_path / "half", "--verify")
    assert "weights stored as bfloat16 are written as float32" in out
    dtypes = {tensor.dtype for tensor in torch.load(path, weights_only=True).values()}
    assert dtypes == {torch.float32, torch.int64}


def test_double_precision_is_written_as_float32(export, save):
    folder = save()
    model = DualSSASTForPreTraining.from_pretrained(folder).double()
    model.dual_ssast.layernorm.weight.data.fill_(1 / 3)  # rounded in float32
    model.save_pretrained(folder)
    status, _, _, path = export(folder, "--verify")
    assert status == 0 and torch.load(path, weights_only=True)["module.v.norm.weight"].dtype == torch.float32
    path.unlink()
    model.dual_ssast.layernorm.weight.data.fill_(1e300)  # infinite in float32
    model.save_pretrained(folder)
    assert_refused(export(folder), "folder: 1 of ", "hold NaN or infinity, the first one dual_ssast.layernorm.weight")


# ---- what SSAST cannot hold ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_prefix_tokens": 1}, "num_prefix_tokens=1, which SSAST cannot hold: it needs 2"),
        ({"num_decoder_layers": 2}, "num_decoder_layers=2, which SSAST cannot hold: it needs 0"),
        ({"clip_contrast_weight": 1.0}, "clip_contrast_weight=1.0, which SSAST cannot hold: it needs 0"),
        ({"num_attention_heads": 2}, "num_attention_heads=2, which SSAST cannot hold: it needs 1"),
        ({"hidden_size": 48}, "hidden_size=48, which SSAST cannot hold: it needs 64"),
        ({"intermediate_size": 128}, "intermediate_size=128, which SSAST cannot hold: it needs 256"),
        ({"hidden_act": "relu"}, "hidden_act='relu', which SSAST cannot hold: it needs 'gelu'"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps=1e-12, which SSAST cannot hold: it needs 1e-06"),
        ({"qkv_bias": False}, "qkv_bias=False, which SSAST cannot hold: it needs True"),
    ],
)
def test_encoders_that_ssast_cannot_hold(export, save, options, words):
    assert_refused(export(save(**options)), words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fusion_layers": [1, 2]}, "fused_layers=[1, 2], which SSAST cannot hold: it needs [2]"),
        ({"fusion_layers": [1]}, "fused_layers=[1], which SSAST cannot hold: it needs [2]"),
        ({"fusion_norm": "none"}, "fusion_norm='none', which SSAST cannot hold: it needs 'shared'"),
        ({"fusion": "weighted"}, "fusion='weighted', which SSAST cannot hold: it needs 'concat' or 'sum'"),
        ({"readout": "frames"}, "readout='frames', which SSAST cannot hold: it needs 'patches' or 'prefix'"),
        ({"pooling": ["max"]}, "pooling_per_layer=[['max']], which SSAST cannot hold: it needs [['mean']]"),
        ({"classifier": "prototypes"}, "classifier='prototypes', which SSAST cannot hold: it needs 'linear'"),
        ({"classifier_hidden_sizes": [32]}, "classifier_hidden_sizes=[32], which SSAST cannot hold: it needs []"),
        ({"classifier_layer_norm_eps": 1e-6}, "classifier_layer_norm_eps=1e-06, which SSAST cannot hold"),
        ({"num_mel_bins": 64}, "num_mel_bins=64, which SSAST cannot hold: it needs 128"),
        ({"num_prefix_tokens": 1}, "num_prefix_tokens=1, which SSAST cannot hold: it needs 2"),
    ],
)
def test_classifiers_that_ssast_cannot_hold(export, save, options, words):
    assert_refused(export(save(DualSSASTForAudioClassification, **SIMPLE | options)), words)


def test_other_folders(export, save, tmp_path):
    assert_refused(export(save(DualSSASTModel)), "DualSSASTModel of model_type 'dual_ssast', but SSAST's files hold a")
    assert_refused(export(tmp_path / "nowhere"), "nowhere")
    folder = save()
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"dual_ssast"', '"vit"'))
    assert_refused(export(folder), "model_type 'vit'")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('"num_hidden_layers": 2', '"num_hidden_layers": 3', "dual_ssast.layers.2.attention"),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 1', "dual_ssast.layers.1.attention"),
        ('"intermediate_size": 256', '"intermediate_size": 128', "dual_ssast.layers.0.mlp.fc1.bias"),
    ],
)
def test_weights_that_contradict_the_configuration(export, save, old, new, word):
    folder = save(fusion_layers=[-1])
    config = (folder / "config.json").read_text()
    assert old in config
    (folder / "config.json").write_text(config.replace(old, new))
    assert_refused(export(folder), f"contradicts its config.json: {word}", "missing, unknown or misshapen")


def test_damaged_weights(export, save):
    folder = save()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    assert_refused(export(folder), "folder cannot be read: ")


# ---- saving ----


def test_the_file_is_kept_until_the_new_one_is_complete(export, save, tmp_path, monkeypatch):
    folder = save()
    (tmp_path / "out.pth").write_text("mine")
    status, _, err, path = export(folder)
    assert status == 1 and "out.pth exists: choose another file or add --overwrite" in err

    def fails(*args):
        raise ConversionError("verification failed")

    with monkeypatch.context() as patch:
        patch.setattr(export_ssast, "compare_exported", fails)
        assert export(folder, "--overwrite", "--verify")[0] == 1
    assert path.read_text() == "mine"
    assert export(folder, "--overwrite", "--verify")[0] == 0
    assert "module.mask_embed" in torch.load(path, weights_only=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "out.pth"]


@pytest.mark.parametrize(("target", "words"), [("", "is a folder"), ("folder/model.pth", "lies in the source")])
def test_targets_that_are_refused(save, tmp_path, capsys, target, words):
    assert main(["export-ssast", str(save()), str(tmp_path / target), "--overwrite"]) == 1
    assert words in capsys.readouterr().err


def test_parents_are_made(save, tmp_path):
    target = tmp_path / "a" / "b" / "model.pth"
    assert main(["export-ssast", str(save()), str(target)]) == 0
    assert target.is_file()
