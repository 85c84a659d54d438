"""Tests `python -m conversion asit`: what it recognises, drops, refuses and prints; numbers: test_golden_asit.py."""

import argparse
import json
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conversions import Malicious, assert_refused, run_conversion
from golden import FIXTURES, settings
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining

from conversion import asit
from conversion.__main__ import main
from modeling_dual_ssast import ASiTConfig, ASiTForPreTraining, DualSSASTForAudioClassification, DualSSASTModel

SOURCE = FIXTURES / "asit_pretrain.pth"


@pytest.fixture
def checkpoint():
    """Rebuilds the file that the original's script saved."""
    return torch.load(SOURCE, weights_only=False)  # made by this project, from the original


@pytest.fixture
def convert(tmp_path, capsys):
    return lambda content, *options: run_conversion("asit", content, tmp_path, capsys, *options)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# ---- what is made ----


def test_both_networks(convert, checkpoint):
    status, out, _, folder = convert(SOURCE, "--verify")
    assert status == 0
    for words in (
        "ASiT model, pretraining",
        "128 wide, 4 blocks, 2 heads, 512 intermediate",
        "8 rows x 6 columns of 16 x 16 patches",
        "32000 Hz, (log-mel - -4.26774) / (2 * 4.569)",
        "the feature extractor refuses other rates, so resample first",
        "the next epoch is 3",
        "--task encoder gives the teacher's encoder alone",
        "optimizer, fp16_scaler: stored beside the weights",
        "largest difference 0",
        "AutoModelForPreTraining.from_pretrained",
    ):
        assert words in out
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert type(model) is ASiTForPreTraining
    state = saved(folder)
    teacher, student = checkpoint["teacher"], checkpoint["student"]
    for name, expected in (
        ("dual_ssast.layers.3.mlp.fc2.bias", teacher["backbone.blocks.3.mlp.fc2.bias"]),
        ("student.layers.3.mlp.fc2.bias", student["module.backbone.blocks.3.mlp.fc2.bias"]),
        ("student.embeddings.prefix_tokens", student["module.backbone.cls_token"]),
        ("teacher_heads.mlp.4.weight", teacher["head_cls.mlp.4.weight"]),
        ("student_heads.class_layer.scale", student["module.head_cls.cls_layer.weight_g"]),
        ("student_heads.data_layer.direction", student["module.head_cls.data_layer.weight_v"]),
        ("student_heads.reconstruction.mlp.2.weight", student["module.head_recons.mlp.2.weight"]),
        ("student_heads.reconstruction.unpatch.weight", student["module.head_recons.convTrans.weight"].mT),
        ("class_center", checkpoint["loss_cls"]["center"]),
    ):
        assert torch.equal(state[name], expected), name


def test_settings_come_from_shapes_and_the_command_line(convert):
    config = ASiTForPreTraining.from_pretrained(convert(SOURCE)[-1]).config
    described = settings("asit")
    for name, key in (
        ("num_attention_heads", "num_heads"),
        ("max_length", "num_frames"),
        ("layer_norm_eps", "layer_norm_eps"),
        ("class_dim", "out_dim_cls"),
        ("data_dim", "out_dim_data"),
        ("head_hidden_size", "cls_head_hidden_dim"),
        ("head_bottleneck_size", "cls_head_bottleneck_dim"),
        ("reconstruction_hidden_size", "recons_head_hidden_dim"),
        ("reconstruction_bottleneck_size", "recons_head_bottleneck_dim"),
        ("teacher_momentum", "momentum_teacher"),
        ("corruption_fraction", "drop_perc"),
        ("replacement_fraction", "drop_replace"),
        ("corruption_align", "drop_align"),
    ):
        assert getattr(config, name) == described[key], name
    assert (config.drop_path_rate, config.corruption, config.num_prefix_tokens) == (0, "zeros", 1)


@pytest.mark.parametrize("weights", [None, "teacher", "student"])
def test_encoder(convert, checkpoint, weights):
    status, out, _, folder = convert(
        SOURCE, "--task", "encoder", "--verify", *(["--weights", weights] if weights else [])
    )
    assert status == 0
    chosen = weights or "teacher"
    other = {"teacher": "student", "student": "teacher"}[chosen]
    assert f"ASiT's {chosen}, encoder alone" in out
    assert f"dropped   {other}, epoch, loss_cls, loss_data: of the pretraining" in out
    assert "head_recons.convTrans.bias: heads, which only --task pretraining keeps" in out
    assert "transformers.AutoModel.from_pretrained" in out
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("dual_ssast", ["DualSSASTModel"])
    model = AutoModel.from_pretrained(folder)
    assert type(model) is DualSSASTModel and model.config.num_prefix_tokens == 1
    network = {name.removeprefix("module."): tensor for name, tensor in checkpoint[chosen].items()}
    assert torch.equal(model.layers[0].mlp.fc1.weight, network["backbone.blocks.0.mlp.fc1.weight"])


def test_encoder_gets_a_classifier(convert):
    *_, folder = convert(SOURCE, "--task", "encoder")
    model, info = AutoModelForAudioClassification.from_pretrained(folder, num_labels=7, output_loading_info=True)
    assert type(model) is DualSSASTForAudioClassification
    assert {str(name).split(".")[0] for name in info["missing_keys"]} == {"classifier"} and not info["unexpected_keys"]
    assert torch.equal(model.dual_ssast.layernorm.weight, saved(folder)["layernorm.weight"])
    assert model(torch.zeros(1, 96, 128)).logits.shape == (1, 7)


@pytest.mark.parametrize("weights", ["teacher", "student"])
def test_both_networks_from_one(convert, weights):
    status, out, _, folder = convert(SOURCE, "--weights", weights)
    assert status == 0
    assert f"teacher and student both start from the {weights}" in out
    assert ("student" if weights == "teacher" else "teacher") + ": not chosen with --weights" in out
    state = saved(folder)
    for name, tensor in state.items():
        if name.startswith(("dual_ssast.", "teacher_heads.")):
            twin = name.replace("dual_ssast.", "student.").replace("teacher_heads.", "student_heads.")
            assert torch.equal(tensor, state[twin]), name


def test_resizing(convert):
    _, out, _, folder = convert(SOURCE, "--max-length", 160)
    assert "positions resized from 8 x 6 to 8 x 10" in out
    model = ASiTForPreTraining.from_pretrained(folder)
    shapes = {encoder.embeddings.position_embeddings.shape for encoder in (model.student, model.dual_ssast)}
    assert shapes == {(1, 81, 128)}
    assert AutoFeatureExtractor.from_pretrained(folder).max_length == 160
    _, out, _, folder = convert(
        SOURCE, "--task", "encoder", "--time-stride", 10, "--frequency-stride", 10, "--overwrite"
    )
    assert AutoModel.from_pretrained(folder).config.grid_shape == (12, 9)


def test_statistics(convert, checkpoint):
    """Numpy's numbers are taken too."""
    arguments = checkpoint["args"]
    arguments.data_mean, arguments.data_std, arguments.num_frames = np.float64(-7.5), np.float32(3.5), np.int64(96)
    *_, folder = convert(checkpoint, "--std", 2)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert (extractor.mean, extractor.std, extractor.sampling_rate) == (-7.5, 2.0, 32000)
    assert ASiTForPreTraining.from_pretrained(folder).config.padding_value == 7.5 / 4


def test_patches_that_are_not_square(convert, checkpoint):
    """Patches of 8 frames x 16 mel bins, against a convolution of the time-major spectrogram."""
    generator = torch.Generator().manual_seed(0)
    network = {name: tensor for name, tensor in checkpoint["teacher"].items() if name.startswith("backbone.")}
    kernels = torch.randn(128, 1, 8, 16, generator=generator)
    positions = torch.randn(1, 1 + 12 * 8, 128, generator=generator)
    network |= {"backbone.patch_embed.proj.weight": kernels, "backbone.pos_embed": positions}
    status, out, _, folder = convert({"teacher": network, "args": checkpoint["args"]}, "--task", "encoder")
    assert status == 0 and "8 rows x 12 columns of 16 x 8 patches" in out
    spectrogram = torch.randn(2, 96, 128, generator=generator)  # (batch, frames, mel)
    bias = network["backbone.patch_embed.proj.bias"]
    expected = torch.nn.functional.conv2d(spectrogram.unsqueeze(1), kernels, bias, stride=(8, 16))
    expected = expected.flatten(2).mT + positions[:, 1:]  # (batch, columns * rows, hidden)
    own = AutoModel.from_pretrained(folder).embeddings(spectrogram)[0][:, 1:]
    own = own.unflatten(1, (8, 12)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-5)


def test_names_and_shapes_at_full_size():
    """The published sizes, without their memory: one stored zero per tensor, and a model without storage."""
    shapes = json.loads((FIXTURES / "asit_vit_base_shapes.json").read_text())
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    tensors = asit.Tensors(state, Path("base.pth"), "the teacher of an ASiT checkpoint")
    sizes = asit._make_frequency_major(tensors, {})
    assert sizes["max_length"] == 592 and sizes["num_attention_heads"] == 12
    read = asit.Checkpoint(Path("base.pth"), {"teacher": tensors}, sizes, {}, {}, 0, [], [])
    config = asit._pretraining_config(read, tensors)
    assert config.to_dict() == ASiTConfig().to_dict()
    encoder, heads = asit._map_network(tensors, config)
    with torch.device("meta"):
        model = ASiTForPreTraining(config)
    for mapped, module in ((encoder, model.dual_ssast), (heads, model.teacher_heads)):
        expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
        assert {name: tensor.shape for name, tensor in mapped.items()} == expected


# ---- what files look like ----


@pytest.mark.parametrize("dropped", [["optimizer", "fp16_scaler"], ["args"], ["loss_cls", "loss_data", "epoch"]])
def test_files_without_some_of_it(convert, checkpoint, dropped):
    content = {name: value for name, value in checkpoint.items() if name not in dropped}
    status, out, _, folder = convert(content, "--verify")
    assert status == 0
    state = saved(folder)
    is_fresh = "epoch" in dropped
    assert ("class_center: zeros, as at the start of a training" in out) == is_fresh
    assert state["class_center"].any() != is_fresh
    assert state["teacher_temperature"].item() == pytest.approx(0.04 if is_fresh else 0.04 + 0.03 * 3 / 29)


def test_files_without_ddp(convert, checkpoint):
    plain = {name.removeprefix("module."): tensor for name, tensor in checkpoint["student"].items()}
    expected = saved(convert(SOURCE)[-1])
    *_, folder = convert({**checkpoint, "student": plain}, "--overwrite")
    actual = saved(folder)
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_a_single_network(convert, checkpoint):
    """The state dict alone is taken to be the teacher's."""
    assert convert(checkpoint["teacher"], "--task", "encoder")[0] == 0
    status, out, *_ = convert(checkpoint["teacher"], "--weights", "teacher", "--overwrite")
    assert status == 0 and "teacher and student both start from the teacher" in out
    status, _, err, _ = convert({"student": checkpoint["student"]}, "--task", "encoder", "--overwrite")
    assert status == 1 and "holds no teacher, only the student: give --weights student" in err


def with_globals(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A copy of a file of torch.save whose pickle refers to other names."""
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w") as changed:
        for entry in whole.infolist():
            content = whole.read(entry)
            changed.writestr(entry, content.replace(old, new) if entry.filename.endswith("/data.pkl") else content)
    return target


def globals_of(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as whole:
        name = next(name for name in whole.namelist() if name.endswith("/data.pkl"))
        return {argument for code, argument, _ in pickletools.genops(whole.read(name)) if code.name == "GLOBAL"}


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_spellings_of_numpy(convert, tmp_path, module):
    path = with_globals(SOURCE, tmp_path / "source.pth", b"numpy._core.multiarray\n", f"{module}\n".encode())
    assert {f"{module} scalar", "argparse Namespace"} <= globals_of(path)
    assert convert(path)[0] == 0


# ---- what is refused ----


def test_malicious_pickle(convert, checkpoint, tmp_path):
    for content in ({**checkpoint, "x": Malicious(tmp_path / "marker")}, {"args": Malicious(tmp_path / "marker")}):
        assert_refused(convert(content), "source.pth is refused", ".system", "run any code")
    assert not (tmp_path / "marker").exists()


def test_only_this_family_takes_a_namespace(checkpoint, tmp_path, capsys):
    torch.save({"model": checkpoint["teacher"], "args": argparse.Namespace(lr=1)}, tmp_path / "source.pth")
    assert main(["ssast", str(tmp_path / "source.pth"), str(tmp_path / "out")]) == 1
    assert "beside tensors it wants argparse.Namespace" in capsys.readouterr().err
    torch.save({"teacher": checkpoint["teacher"], "x": np.dtype("O")}, tmp_path / "source.pth")
    assert main(["asit", str(tmp_path / "source.pth"), str(tmp_path / "out")]) == 1


def change(checkpoint, network="teacher", **tensors):
    """A copy with some of a network's tensors replaced; `None` takes one out."""
    state = {**checkpoint[network], **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    return {**checkpoint, network: {name: tensor for name, tensor in state.items() if tensor is not None}}


def test_strict_in_both_directions(convert, checkpoint):
    broken = change(checkpoint, backbone__fc_norm__weight=torch.zeros(3), head_recons__convTrans__weight=torch.zeros(3))
    assert_refused(
        convert(broken),
        "does not fit the teacher of an ASiT checkpoint",
        "head_recons.convTrans.weight has shape (3,), expected (48, 1, 16, 16)",
        "unknown backbone.fc_norm.weight",
    )
    broken = change(checkpoint, "student", module__backbone__norm__bias=None)
    assert_refused(convert(broken), "does not fit the student of an ASiT checkpoint: missing backbone.norm.bias")
    assert_refused(convert(change(checkpoint, head_cls__mlp__0__weight=None)), "missing head_cls.mlp.0.weight")
    encoder = {name: tensor for name, tensor in checkpoint["teacher"].items() if name.startswith("backbone.")}
    assert_refused(
        convert({**checkpoint, "teacher": encoder}), "missing head_cls.cls_layer.weight_v", "it holds backbone"
    )


def test_contradictions(convert, checkpoint):
    for name, value, words in (
        ("num_frames", 128, "128 frames and 128 mel bins make 8 x 8 patches of 16 x 16, but backbone.pos_embed"),
        ("num_mel_bins", 64, "96 frames and 64 mel bins make 4 x 6 patches"),
        ("num_mel_bins", 8, "make 0 x 6 patches"),
        ("num_frames", "many", "args.num_frames is 'many', expected a number"),
        ("num_frames", float("inf"), "source.pth: args.num_frames is inf, expected a number up to 1000000"),
        ("num_frames", 96.5, "source.pth: args.num_frames is 96.5, expected a number up to 1000000 without a fraction"),
        ("num_mel_bins", float("nan"), "source.pth: args.num_mel_bins is nan, expected a number"),
        ("data_mean", 10**400, "source.pth: args.data_mean is 1000"),
        ("data_std", float("nan"), "source.pth: args.data_std is nan, expected a number"),
        ("data_std", 0.0, "std=0.0; --mean and --std replace its args"),
        ("data_std", 1e-320, "source.pth: mean="),
        ("teacher_temp", np.float64("inf"), "source.pth: args.teacher_temp is inf, expected a number"),
        ("teacher_temp", 0, "source.pth holds settings that cannot be kept: teacher_temperature"),
        (
            "drop_type",
            "blocks",
            "corruption must be one of zeros, noise, time, freq, got 'blocks'; --task encoder needs",
        ),
    ):
        changed = argparse.Namespace(**{**vars(checkpoint["args"]), name: value})
        assert_refused(convert({**checkpoint, "args": changed}), words)
    wider = change(checkpoint, "student", module__backbone__blocks__0__mlp__fc1__weight=torch.zeros(256, 128))
    assert_refused(convert(wider), "teacher and student differ in intermediate_size")
    assert_refused(convert({**checkpoint, "loss_cls": {"center": torch.zeros(1, 3)}}), "(1, 3), expected (1, 64)")


def test_other_files_and_options(convert, checkpoint):
    assert_refused(
        convert({"v.cls_token": torch.zeros(1)}), "missing backbone.patch_embed.proj.weight", "vggish or panns-cnn14"
    )
    assert_refused(convert({"teacher": 3}), "holds no state dict but a int")
    assert_refused(convert(SOURCE, "--time-stride", 10), "got --time-stride 10: leave it out, or take the encoder with")
    assert_refused(convert({"epoch": 0.5, "teacher": checkpoint["teacher"]}), "epoch is 0.5, expected a whole number")
    assert_refused(convert({"epoch": -3, "teacher": checkpoint["teacher"]}), "epoch is -3, expected a whole number")
    assert_refused(convert(SOURCE, "--labels", "x"), "--labels x names no outputs")
    assert_refused(convert(SOURCE, "--task", "classification"), "has no classifier: --task encoder takes it")
    with pytest.raises(SystemExit):
        convert(SOURCE, "--weights", "both")
