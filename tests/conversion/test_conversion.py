"""Tests the conversion command: what it recognises, drops, refuses, saves and prints; numbers: test_golden.py."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conversions import Malicious, assert_refused, run_conversion
from golden import checkpoint
from safetensors.torch import load_file, save_file
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
)

from conversion import saving
from conversion.__main__ import main
from conversion.checkpoint import ConversionError, Tensors
from conversion.families import FAMILIES
from conversion.grids import read_grid
from conversion.labels import read_labels
from modeling_dual_ssast import DualSSASTForAudioClassification, DualSSASTForPreTraining
from training.data.labels import read_label_file
from training.errors import InputError

# Transformers' own extractor says so at every construction.
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")

ROOT = Path(__file__).parents[2]
PRETRAINED = "ssast_patch_pretrained.json"
FINE_TUNED = "ssast_patch_finetuned_0.json"


@pytest.fixture(scope="module")
def fine_tuned():
    """State dict of a fine-tuned patch model without `module.`: 48 patches, 5 labels."""
    return {name.removeprefix("module."): tensor for name, tensor in checkpoint(FINE_TUNED).items()}


@pytest.fixture(scope="module")
def pretrained():
    return {name.removeprefix("module."): tensor for name, tensor in checkpoint(PRETRAINED).items()}


@pytest.fixture
def convert(tmp_path, capsys):
    return lambda content, *options, family="ssast": run_conversion(family, content, tmp_path, capsys, *options)


# ---- what is recognised ----


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_prefixes_and_wrappers(convert, fine_tuned, prefix, wrapper):
    state = {prefix + name: tensor for name, tensor in fine_tuned.items()}
    status, out, _, folder = convert({wrapper: state, "epoch": 3} if wrapper else state)
    assert status == 0
    assert ("epoch: stored beside the weights" in out) == (wrapper is not None)
    saved = load_file(folder / "model.safetensors")
    query, key, value = fine_tuned["v.blocks.2.attn.qkv.weight"].split(128)
    attention = "dual_ssast.layers.2.attention."
    for name, expected in (
        (attention + "q_proj.weight", query),
        (attention + "k_proj.weight", key),
        (attention + "v_proj.weight", value),
        (attention + "o_proj.bias", fine_tuned["v.blocks.2.attn.proj.bias"]),
        ("dual_ssast.layers.3.layernorm_after.weight", fine_tuned["v.blocks.3.norm2.weight"]),
        ("dual_ssast.embeddings.prefix_tokens", torch.cat((fine_tuned["v.cls_token"], fine_tuned["v.dist_token"]), 1)),
        ("classifier.dense.weight", fine_tuned["mlp_head.1.weight"]),
    ):
        assert torch.equal(saved[name], expected), name


@pytest.mark.parametrize(
    ("recipe", "kind", "model_class"),
    [
        ("ssast_patch_pretrained.json", "SSAST patch model, pretrained", "DualSSASTForPreTraining"),
        ("ssast_frame_pretrained.json", "SSAST frame model, pretrained", "DualSSASTForPreTraining"),
        ("ssast_patch_finetuned_1.json", "SSAST patch model, fine-tuned", "DualSSASTForAudioClassification"),
        ("ssast_frame_finetuned_1.json", "SSAST frame model, fine-tuned", "DualSSASTForAudioClassification"),
    ],
)
def test_kinds(convert, recipe, kind, model_class):
    status, out, _, folder = convert(checkpoint(recipe))
    assert status == 0
    assert kind in out
    assert "128 wide, 4 blocks, 2 heads, 512 intermediate" in out
    assert json.loads((folder / "config.json").read_text())["architectures"] == [model_class]
    auto = AutoModelForPreTraining if "PreTraining" in model_class else AutoModelForAudioClassification
    assert type(auto.from_pretrained(folder)).__name__ == model_class


def test_frame_model_keeps_its_grid(convert):
    _, out, _, folder = convert(checkpoint("ssast_frame_finetuned_2.json"))
    config = DualSSASTForAudioClassification.from_pretrained(folder).config
    assert (config.patch_shape, config.grid_shape, config.max_length) == ((128, 2), (1, 149), 150)
    assert "149 patches are read as 1 rows x 149 columns (--frequency-stride 128 --time-stride 1, 150 frames)" in out


def test_fine_tuned_model_keeps_the_original_head(convert, fine_tuned):
    *_, folder = convert(fine_tuned)
    config = DualSSASTForAudioClassification.from_pretrained(folder).config
    assert (config.fusion_layers, config.pooling, config.readout) == ([-1], ["mean"], "patches")
    assert config.attention_over_padding
    assert config.layer_norm_eps == 1e-6


def assert_padding_is_noted(out: str, frames: int):
    notes = [line for line in out.splitlines() if "every clip is padded to max_length" in line]
    assert len(notes) == 1 and notes[0].startswith("note ") and f"({frames} frames), as in the original" in notes[0]
    assert "attention_over_padding=False" in notes[0]


def test_attention_over_padding_is_noted_and_can_be_left(convert, fine_tuned, pretrained):
    _, out, _, folder = convert(fine_tuned)
    model = DualSSASTForAudioClassification.from_pretrained(folder, attention_over_padding=False)
    assert_padding_is_noted(out, model.config.max_length)
    mask = torch.ones(1, 20)
    columns = model.dual_ssast.embeddings(torch.zeros(1, 20, 128), mask)[1].shape[1] // model.config.grid_shape[0]
    assert columns < model.config.grid_shape[1]
    _, out, *_ = convert(pretrained, "--overwrite")
    assert "every clip is padded" not in out


def test_model_without_qkv_bias(convert, fine_tuned):
    state = {name: tensor for name, tensor in fine_tuned.items() if not name.endswith("qkv.bias")}
    status, _, _, folder = convert(state)
    assert status == 0
    assert not DualSSASTForAudioClassification.from_pretrained(folder).config.qkv_bias


def test_half_precision_becomes_float32(convert, fine_tuned):
    _, out, _, folder = convert({name: tensor.half() for name, tensor in fine_tuned.items()})
    assert "weights stored as float16 are saved as float32" in out
    saved = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_files_of_old_pytorch(convert, fine_tuned, tmp_path, capsys):
    source = tmp_path / "old.pth"
    torch.save(fine_tuned, source, _use_new_zipfile_serialization=False)
    assert main(["ssast", str(source), str(tmp_path / "out")]) == 0


# ---- what is dropped and what is new ----


def test_drops_are_listed_with_reasons(convert, pretrained):
    _, out, _, folder = convert(pretrained)
    dropped = [line for line in out.splitlines() if line.startswith("dropped")]
    assert len(dropped) == 2
    assert "p_input_fdim, p_input_tdim: became num_mel_bins and max_length" in dropped[0]
    for name in ("v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias"):
        assert name in dropped[1]
    assert "timm's own 1000-class head" in dropped[1]
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(saved["mask_token"], pretrained["mask_embed"].flatten())
    assert torch.equal(saved["discriminative_head.2.weight"], pretrained["cpredlayer.2.weight"])
    assert torch.equal(saved["generative_head.0.bias"], pretrained["gpredlayer.0.bias"])


def test_pretrained_file_as_classifier(convert, pretrained, tmp_path):
    (tmp_path / "labels.txt").write_text("anger\njoy\n\n")
    options = ["--task", "classification", "--labels", tmp_path / "labels.txt", "--verify"]
    status, out, _, folder = convert(pretrained, *options)
    assert status == 0
    assert "new       classifier for 2 labels: random" in out
    assert "cpredlayer.0.bias" in out
    assert "pretext heads, which only --task pretraining keeps" in out
    model = DualSSASTForAudioClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "anger", 1: "joy"}
    assert model.config.label2id == {"anger": 0, "joy": 1}
    assert model.config.fused_layers == [2, 4]
    head = load_file(folder / "model.safetensors")["classifier.dense.weight"]
    assert head.shape == (2, 256)
    # The same command gives the same folder.
    *_, again = convert(pretrained, *options, "--overwrite")
    assert torch.equal(load_file(again / "model.safetensors")["classifier.dense.weight"], head)


def test_resize_of_a_pretraining_model(convert, pretrained):
    status, out, _, folder = convert(pretrained, "--max-length", 160)
    assert status == 0
    assert "positions resized from 8 x 6 to 8 x 10" in out
    assert DualSSASTForPreTraining.from_pretrained(folder).config.max_length == 160
    assert AutoFeatureExtractor.from_pretrained(folder).max_length == 160


def test_statistics_reach_extractor_and_padding(convert, fine_tuned):
    *_, folder = convert(fine_tuned, "--mean", "-6.6268077", "--std", "5.358466")
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert (extractor.mean, extractor.std, extractor.padding) == (-6.6268077, 5.358466, "longest")
    config = DualSSASTForAudioClassification.from_pretrained(folder).config
    assert config.padding_value == pytest.approx(6.6268077 / (2 * 5.358466))
    assert extractor.max_length == config.max_length


# ---- grids ----

GRID = {"path": "file.pth", "patch": (16, 16), "num_mel_bins": 128, "recipe_strides": (10, 10)}


def test_grid_of_the_recipe_and_its_length():
    grid, notes = read_grid(num_patches=1212, **GRID)
    assert (grid.rows, grid.columns, grid.max_length) == (12, 101, 1024)
    assert any("1016 to 1025 frames give the same grid" in note for note in notes)


def test_ambiguous_grid_names_both_readings():
    grid, notes = read_grid(num_patches=48, **GRID)
    assert (grid.rows, grid.columns, grid.max_length) == (12, 4, 46)
    assert "8 rows x 6 columns (--frequency-stride 16 --time-stride 16, 96 to 111 frames) would fit too" in notes[0]


def test_length_decides_between_readings():
    grid, _ = read_grid(num_patches=48, max_length=100, **GRID)
    assert (grid.frequency_stride, grid.time_stride, grid.max_length) == (16, 16, 100)


def test_described_grid_needs_no_notes():
    grid, notes = read_grid(num_patches=48, frequency_stride=16, time_stride=16, max_length=96, **GRID)
    assert (grid.rows, grid.columns, grid.max_length) == (8, 6, 96)
    assert notes == []


@pytest.mark.parametrize(
    "options", [{"frequency_stride": 12}, {"max_length": 200}, {"time_stride": 17}, {"frequency_stride": 17}]
)
def test_grid_that_does_not_fit(options):
    with pytest.raises(ConversionError, match=r"48 patches of 16 x 16, which does not fit .*Possible readings: 8 rows"):
        read_grid(num_patches=48, **options, **GRID)


def test_command_tells_possible_grids(convert, fine_tuned):
    assert_refused(convert(fine_tuned, "--max-length", 97, "--time-stride", 10), "48 patches", "8 rows x 6 columns")


def test_contradicting_length_in_the_file(convert, pretrained):
    state = {**pretrained, "p_input_tdim": torch.tensor(112)}
    assert_refused(convert(state), "p_input_tdim 112", "8 x 7", "v.pos_embed holds 48")


# ---- the command line ----


def test_help_and_refusals_name_every_family(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in (*FAMILIES, "export-ssast", "build-official"))
    with pytest.raises(ConversionError) as error:
        Tensors({}, tmp_path / "foreign.pth", "an SSAST checkpoint").require("v.cls_token")
    assert all(name in str(error.value) for name in FAMILIES)


def test_ctrl_c_ends_with_one_line(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "check_target", interrupt)
    assert main(["vggish", str(tmp_path / "source.pth"), str(tmp_path / "out")]) == 130
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().splitlines()) == 1 and "interrupted" in printed.err


# ---- labels ----


def test_label_count_must_match(convert, fine_tuned, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    result = convert(fine_tuned, "--labels", tmp_path / "labels.txt")
    assert_refused(result, "labels.txt names 3 labels", "source.pth has 5 outputs")


def test_audioset_style_csv(convert, fine_tuned, tmp_path):
    rows = ['0,/m/0,"Speech, synthetic"', "2,/m/2,Bark", "1,/m/1,Rain", "4,/m/4,Bell", "3,/m/3,Horn"]
    (tmp_path / "labels.csv").write_text("index,mid,display_name\n" + "\n".join(rows) + "\n")
    *_, folder = convert(fine_tuned, "--labels", tmp_path / "labels.csv")
    labels = DualSSASTForAudioClassification.from_pretrained(folder).config.id2label
    assert labels == {0: "Speech, synthetic", 1: "Rain", 2: "Bark", 3: "Horn", 4: "Bell"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb\na\nc\nd\n", "names the label 'a' twice"),
        ("\n\n", "holds no labels"),
        ("index,mid,display_name\n0,x,a\n0,y,b\n", "the indices must be 0 to 1, each once"),
        ("index,mid,display_name\n0,x\n", "row 1 (line 2) has 2 cells and the header 3"),
        ("index,mid,display_name\nzero,x,a\n", "index,mid,display_name"),
    ],
)
def test_bad_label_files(convert, fine_tuned, tmp_path, text, words):
    (tmp_path / "labels.txt").write_text(text)
    assert_refused(convert(fine_tuned, "--labels", tmp_path / "labels.txt"), "labels.txt", words)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "\ufeffrain\n\n  dog bark \n"),
        ("labels.csv", "\ufeffindex,mid,display_name\n0,/m/0,rain\n1,/m/1,dog bark\n"),
        ("order.csv", "index,mid,display_name\n1,/m/1,dog bark\n0,/m/0,rain\n\n"),
        ("columns.csv", 'display_name,note,index,mid\ndog bark,"a, b",1,/m/1\nrain,,0,/m/0\n'),
    ],
)
def test_label_files_are_read_as_recipes_read_them(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name) == ["rain", "dog bark"]
    assert list(read_label_file(tmp_path / name).values()) == ["rain", "dog bark"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "a\nb\na\n"),
        ("labels.txt", "\n"),
        ("labels.csv", "a\nb\n"),
        ("labels.csv", "mid,display_name\nx,a\n"),
        ("gaps.csv", "index,mid,display_name\n7,/m/1,dog bark\n3,/m/0,rain\n"),
        ("twice.csv", "index,mid,display_name\n0,/m/1,dog bark\n0,/m/0,rain\n"),
    ],
)
def test_label_files_that_recipes_refuse_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConversionError, match=name):
        read_labels(tmp_path / name)
    with pytest.raises(InputError, match=name):
        read_label_file(tmp_path / name)


def test_missing_label_file(convert, fine_tuned, tmp_path):
    assert_refused(convert(fine_tuned, "--labels", tmp_path / "nowhere.txt"), "nowhere.txt: no such file")


# ---- what is refused ----


def test_tasks_that_the_file_cannot_do(convert, fine_tuned, pretrained, tmp_path):
    assert_refused(convert(fine_tuned, "--task", "pretraining"), "source.pth is fine-tuned", "no pretext heads")
    assert_refused(convert(pretrained, "--task", "classification"), "needs --labels FILE")
    assert_refused(convert(pretrained, "--labels", tmp_path / "x"), "add --task classification")
    for options in (["--time-stride", 10], ["--frequency-stride", 10, "--time-stride", 16]):
        words = "patches side by side (strides 16 x 16)", f"got {options[0]} 10:", "--task classification"
        result = convert(pretrained, *options)
        assert_refused(result, *words)
        assert "None" not in result[2]
    assert_refused(convert(pretrained, family="ast"), "is not an AST checkpoint: missing mlp_head.0.weight")


def test_strict_in_both_directions(convert, fine_tuned):
    broken = dict(fine_tuned)
    del broken["v.blocks.1.mlp.fc2.bias"], broken["v.norm.weight"]
    broken["v.fc_norm.weight"] = torch.zeros(3)
    broken["v.blocks.0.norm1.bias"] = torch.zeros(7)
    broken["v.blocks.3.norm1.bias"] = torch.full((128,), float("nan"))
    assert_refused(
        convert(broken),
        "source.pth does not fit an SSAST checkpoint",
        "missing v.norm.weight, v.blocks.1.mlp.fc2.bias",
        "unknown v.fc_norm.weight",
        "v.blocks.0.norm1.bias has shape (7,), expected (128,)",
        "v.blocks.3.norm1.bias holds NaN",
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("long", "p_input_tdim is a str, expected a whole number"),
        (float("nan"), "p_input_tdim is nan, expected a whole number"),
        (torch.tensor(float("inf")), "p_input_tdim is inf, expected a whole number"),
        (torch.tensor(96.5), "p_input_tdim is 96.5, expected a whole number"),
        (True, "p_input_tdim is a bool, expected a whole number"),
        (torch.zeros(2), "p_input_tdim has shape (2,), expected one number"),
        (torch.tensor([96]).to_sparse(), "p_input_tdim is stored as torch.sparse_coo, expected a dense tensor"),
        (torch.tensor(96, device="meta"), "p_input_tdim holds no values"),
        (-96, "p_input_tdim is -96, expected a whole number from 0"),
        (1e30, "p_input_tdim is 1e+30, expected a whole number from 0 to 2**63 - 1"),
    ],
)
def test_sizes_that_are_no_numbers(convert, pretrained, value, words):
    assert_refused(convert({**pretrained, "p_input_tdim": value}), "source.pth: ", words)


def test_sizes_in_half_precision_are_whole(convert, pretrained):
    assert convert({**pretrained, "p_input_tdim": torch.tensor(96.0).half()})[0] == 0


def test_sparse_weights(convert, fine_tuned):
    name = "v.blocks.1.mlp.fc1.weight"
    result = convert({**fine_tuned, name: fine_tuned[name].to_sparse()})
    assert_refused(result, "source.pth does not fit", f"{name} is stored as torch.sparse_coo, expected a dense tensor")


@pytest.mark.parametrize("name", ["v.pos_embed", "v.blocks.1.mlp.fc1.weight"])
def test_weights_on_the_meta_device(convert, fine_tuned, name):
    result = convert({**fine_tuned, name: fine_tuned[name].to("meta")})
    assert_refused(result, "source.pth", f"{name} holds no values (device meta): save it with its weights loaded")


def test_weights_beyond_float32(convert, fine_tuned):
    large = torch.full((128,), 1e38, dtype=torch.float64)
    *_, folder = convert({**fine_tuned, "v.norm.bias": large}, "--verify")
    assert torch.equal(load_file(folder / "model.safetensors")["dual_ssast.layernorm.bias"], large.float())
    shutil.rmtree(folder)
    assert_refused(convert({**fine_tuned, "v.norm.bias": large * 1e200}), "v.norm.bias holds NaN", "beyond float32")


def test_missing_block(convert, fine_tuned):
    state = {name: tensor for name, tensor in fine_tuned.items() if ".blocks.1." not in name}
    assert_refused(convert(state), "missing v.blocks.1.attn.qkv.weight")


@pytest.mark.parametrize("number", ["99999999", "9" * 5000])
def test_a_block_beyond_all_tensors(convert, fine_tuned, number):
    """Its gaps would fill the memory, and Python refuses to read integers of more than 4300 digits."""
    result = convert({**fine_tuned, f"v.blocks.{number}.norm1.bias": torch.zeros(128)})
    assert_refused(result, f"source.pth is not an SSAST checkpoint: it holds v.blocks.{number[:60]}", "tensors")


@pytest.mark.parametrize("family", ["ssast", "ast"])
def test_foreign_checkpoint(convert, family):
    kind = {"ssast": "an SSAST", "ast": "an AST"}[family]
    result = convert({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, family=family)
    assert_refused(
        result, f"source.pth is not {kind} checkpoint: missing v.patch_embed.proj.weight", "holds conv1.weight"
    )


def test_neither_pretrained_nor_fine_tuned(convert, fine_tuned):
    state = {name: tensor for name, tensor in fine_tuned.items() if "mlp_head" not in name}
    assert_refused(convert(state), "missing p_input_fdim and p_input_tdim", "mlp_head.1.weight")


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}, torch.zeros(2)], ids=["list", "dict", "tensor"])
def test_no_state_dict(convert, content):
    assert_refused(convert(content), "source.pth holds no state dict")


@pytest.mark.parametrize("is_zip", [True, False])
def test_malicious_pickle(convert, fine_tuned, tmp_path, capsys, is_zip):
    source, marker, target = tmp_path / "evil.pth", tmp_path / "marker", tmp_path / "converted"
    torch.save({"model": fine_tuned, "x": Malicious(marker)}, source, _use_new_zipfile_serialization=is_zip)
    status = main(["ssast", str(source), str(target)])
    assert_refused((status, *capsys.readouterr(), target), "evil.pth is refused", ".system", "run any code")
    assert not marker.exists()
    with open(source, "rb") as file:  # the trap is a real one
        torch.load(file, weights_only=False)
    assert marker.exists()


def damaged(kind: str, whole: bytes) -> bytes:
    return {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>404: Not Found</html>",
        "pickle": pickle.dumps([1, 2]),
        "zip": b"PK\x05\x06" + bytes(18),
        "a bit": whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is empty: download it again"),
        ("truncated", "is truncated: download it again"),
        ("text", "damaged or no PyTorch checkpoint"),
        ("pickle", "damaged or no PyTorch checkpoint"),
        ("zip", "damaged or no PyTorch checkpoint"),
        ("a bit", "is damaged: the checksum of"),
    ],
)
def test_damaged_files(fine_tuned, tmp_path, capsys, kind, words):
    source, target = tmp_path / "source.pth", tmp_path / "converted"
    torch.save(fine_tuned, source)
    source.write_bytes(damaged(kind, source.read_bytes()))
    status = main(["ssast", str(source), str(target)])
    assert_refused((status, *capsys.readouterr(), target), "source.pth", words)


def test_files_without_checksums(convert, fine_tuned):
    """PyTorch can leave them out; a bit that is changed then stays unnoticed."""
    torch.serialization.set_crc32_options(False)
    try:
        assert convert(fine_tuned)[0] == 0
    finally:
        torch.serialization.set_crc32_options(True)


def test_missing_file_and_folder(tmp_path, capsys):
    for family, source, words in (
        ("ssast", tmp_path / "nowhere.pth", "does not exist"),
        ("ssast", tmp_path / "folder", "has the family hf-ast"),
        ("hf-ast", tmp_path / "nowhere.pth", "needs the folder that save_pretrained has written"),
        ("hf-ast", tmp_path / "folder", "config.json: is damaged ([Errno 2] No such file"),
    ):
        (tmp_path / "folder").mkdir(exist_ok=True)
        status = main([family, str(source), str(tmp_path / "converted")])
        assert_refused((status, *capsys.readouterr(), tmp_path / "converted"), str(source), words)


# ---- saving ----


def test_verify_prints_count_and_difference(convert, fine_tuned):
    _, out, _, folder = convert(fine_tuned, "--verify")
    count = len(load_file(folder / "model.safetensors"))
    assert f"verified  {count} tensors read back, largest difference 0\n" in out


def tamper(folder: Path, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["classifier.dense.bias"].add_(1e-3), "classifier.dense.bias differs by 0.001"),
        (lambda state: state["classifier.dense.bias"][0].fill_(float("nan")), "classifier.dense.bias differs by inf"),
        (lambda state: state.pop("dual_ssast.layernorm.bias"), "dual_ssast.layernorm.bias are not the same names"),
    ],
)
def test_failed_verification_leaves_nothing(convert, fine_tuned, monkeypatch, change, words):
    compare = saving.compare_saved

    def compare_tampered(converted, folder):
        tamper(folder, change)
        return compare(converted, folder)

    monkeypatch.setattr(saving, "compare_saved", compare_tampered)
    assert_refused(convert(fine_tuned, "--verify"), "verification failed", words)


def test_comparison_of_values_that_are_not_finite():
    """NaN and infinity differ from every other value, and are equal to themselves."""
    nan, inf = float("nan"), float("inf")
    same = torch.tensor([1.0, nan, inf, -inf])
    state = {"a": same, "empty": torch.zeros(0)}
    assert saving.compare_states(state, {name: tensor.clone() for name, tensor in state.items()}) == (2, 0.0)
    for values in ([2.0, nan, inf, -inf], [1.0, 0.0, inf, -inf], [1.0, nan, nan, -inf], [1.0, nan, inf, inf]):
        for pair in ((same, torch.tensor(values)), (torch.tensor(values), same)):
            states = ({"zeros": torch.zeros(2), "b": tensor, "ones": torch.ones(2)} for tensor in pair)
            with pytest.raises(ConversionError, match="b differs by " + ("1" if values[0] == 2 else "inf")):
                saving.compare_states(*states)


def test_output_folder_is_kept_until_the_new_one_is_complete(convert, fine_tuned, monkeypatch):
    *_, folder = convert(fine_tuned)
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.safetensors").read_bytes()

    status, out, err, _ = convert(fine_tuned)
    assert (status, out) == (1, "")
    assert "exists and is not empty" in err
    assert "--overwrite" in err

    broken = {name: tensor for name, tensor in fine_tuned.items() if name != "v.norm.bias"}
    assert convert(broken, "--overwrite")[0] == 1

    def disk_is_full(self, folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DualSSASTForAudioClassification, "save_pretrained", disk_is_full)
        status, _, err, _ = convert(fine_tuned, "--overwrite")
        assert status == 1
        assert "No space left on device" in err
    assert (folder / "model.safetensors").read_bytes() == before
    assert (folder / "notes.txt").read_text() == "mine"

    assert convert(fine_tuned, "--overwrite")[0] == 0
    assert not (folder / "notes.txt").exists()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_failed_move_brings_the_old_folder_back(convert, fine_tuned, monkeypatch):
    *_, folder = convert(fine_tuned)
    (folder / "notes.txt").write_text("mine")
    rename = os.rename

    def rename_fails(source, target):
        if Path(source).name == "new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_fails)
    assert convert(fine_tuned, "--overwrite")[0] == 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_output_must_not_hold_the_source(fine_tuned, tmp_path, capsys):
    source = tmp_path / "source.pth"
    torch.save(fine_tuned, source)
    for target in (tmp_path, source):
        assert main(["ssast", str(source), str(target), "--overwrite"]) == 1
        assert "holds the source" in capsys.readouterr().err
    assert source.exists()


def test_output_may_be_an_empty_folder_and_parents_are_made(fine_tuned, tmp_path):
    source = tmp_path / "source.pth"
    torch.save(fine_tuned, source)
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert main(["ssast", str(source), str(target)]) == 0
        assert (target / "model.safetensors").exists()


# ---- Transformers' AST ----


@pytest.fixture(scope="module")
def hf_ast():
    """A model whose parameters are all random, LayerNorms and tokens too."""
    config = ASTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=80,
        max_length=64,
        num_labels=4,
        id2label={0: "one", 1: "two", 2: "three", 3: "four"},
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = ASTForAudioClassification(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def hf_folder(hf_ast, tmp_path):
    """Saved by Transformers, which writes the key names of version 4 to disk."""
    folder = tmp_path / "ast"
    hf_ast.save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, mean=-5.0, std=4.0, sampling_rate=22050).save_pretrained(folder)
    return folder


def assert_same_logits(folder: Path, hf_ast):
    model = DualSSASTForAudioClassification.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        inputs = torch.randn(3, 64, 128)
        expected = hf_ast(inputs, output_hidden_states=True)
        states = torch.stack(model(inputs, output_hidden_states=True).hidden_states)
        torch.testing.assert_close(states, torch.stack(expected.hidden_states), atol=1e-5, rtol=0)
        torch.testing.assert_close(model(inputs).logits, expected.logits, atol=1e-6, rtol=0)


def names_of_version_5(folder: Path, hf_ast):
    save_file(hf_ast.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def names_of_version_4(folder: Path, hf_ast):
    """Uses the folder as it is; the assertion checks that it has the key names of version 4."""
    assert any("encoder.layer.0.attention.attention.query" in name for name in load_file(folder / "model.safetensors"))


def pytorch_file(folder: Path, hf_ast):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shards(folder: Path, hf_ast):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for part, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / part, metadata={"format": "pt"})
    weight_map = {key: part for part, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("rewrite", [names_of_version_4, names_of_version_5, pytorch_file, shards])
def test_hf_ast_gives_the_same_logits(hf_folder, hf_ast, tmp_path, capsys, rewrite):
    rewrite(hf_folder, hf_ast)
    assert main(["hf-ast", str(hf_folder), str(tmp_path / "out"), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "AST patch model of Transformers" in out
    assert_padding_is_noted(out, 64)
    assert_same_logits(tmp_path / "out", hf_ast)


def test_hf_ast_settings(hf_folder, tmp_path):
    assert main(["hf-ast", str(hf_folder), str(tmp_path / "out")]) == 0
    config = DualSSASTForAudioClassification.from_pretrained(tmp_path / "out").config
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "one", 1: "two", 2: "three", 3: "four"}
    assert (config.readout, config.fusion_layers, config.attention_over_padding) == ("prefix", [-1], True)
    assert (config.layer_norm_eps, config.problem_type, config.max_length) == (1e-12, None, 64)
    assert config.classifier_layer_norm_eps == 1e-12
    assert (extractor.mean, extractor.std, extractor.sampling_rate, extractor.max_length) == (-5.0, 4.0, 22050, 64)
    assert config.padding_value == pytest.approx(5 / 8)


@torch.no_grad()
def test_a_port_of_ssast_is_read_as_ssast(hf_folder, hf_ast, tmp_path, capsys):
    assert main(["hf-ast", str(hf_folder), str(tmp_path / "out"), "--readout", "patches", "--verify"]) == 0
    assert "the mean over the patches takes the place of AST's class tokens" in capsys.readouterr().out
    model = DualSSASTForAudioClassification.from_pretrained(tmp_path / "out")
    inputs = torch.randn(2, model.config.max_length, model.config.num_mel_bins)
    encoded = hf_ast.audio_spectrogram_transformer.eval()(inputs).last_hidden_state
    torch.testing.assert_close(model.dual_ssast(inputs).pooler_output, encoded[:, 2:].mean(dim=1), atol=1e-5, rtol=1e-5)


def test_hf_ast_resized_and_relabelled(hf_folder, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    command = ["hf-ast", str(hf_folder), str(tmp_path / "out"), "--max-length", "40", "--time-stride", "8"]
    assert main([*command, "--labels", str(tmp_path / "labels.txt"), "--mean", "1", "--verify"]) == 0
    assert "positions resized from 12 x 5 to 12 x 4" in capsys.readouterr().out
    config = DualSSASTForAudioClassification.from_pretrained(tmp_path / "out").config
    assert (config.max_length, config.time_stride, config.id2label[3]) == (40, 8, "d")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.max_length, extractor.mean, extractor.std) == (40, 1.0, 4.0)


def test_hf_ast_without_normalisation_or_extractor(hf_folder, tmp_path, capsys):
    path = hf_folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_normalize": False}))
    assert main(["hf-ast", str(hf_folder), str(tmp_path / "raw")]) == 0
    assert "log-mel without normalisation" in capsys.readouterr().out
    assert DualSSASTForAudioClassification.from_pretrained(tmp_path / "raw").config.padding_value == 0
    path.unlink()
    assert main(["hf-ast", str(hf_folder), str(tmp_path / "none")]) == 0
    assert "preprocessor_config.json is missing" in capsys.readouterr().out
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "none").mean == -4.2677393


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"num_hidden_layers": 2}, "config.json says 2 blocks, the weights hold 3"),
        ("config.json", {"intermediate_size": 81}, "mlp"),
        ("config.json", {"model_type": "vit"}, "model_type in config.json is 'vit'"),
        ("preprocessor_config.json", {"max_length": 1024}, "max_length is 1024 in preprocessor_config.json, but 64"),
        ("config.json", {"hidden_dropout_prob": "x"}, "config.json has a setting that is wrong"),
        ("config.json", {"num_hidden_layers": 0.5}, "config.json has a setting that is wrong"),
        ("preprocessor_config.json", {"std": "x"}, "preprocessor_config.json has a setting that is wrong"),
    ],
)
def test_contradictions_in_hf_ast(hf_folder, tmp_path, capsys, file, change, words):
    path = hf_folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    status = main(["hf-ast", str(hf_folder), str(tmp_path / "converted")])
    words = "intermediate.dense.weight has shape (80, 48), expected (81, 48)" if words == "mlp" else words
    assert_refused((status, *capsys.readouterr(), tmp_path / "converted"), str(hf_folder), words)


def test_damaged_hf_ast(hf_folder, tmp_path, capsys):
    target = tmp_path / "converted"
    weights = hf_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    status = main(["hf-ast", str(hf_folder), str(target)])
    assert_refused((status, *capsys.readouterr(), target), "model.safetensors cannot be read as safetensors")
    weights.unlink()
    status = main(["hf-ast", str(hf_folder), str(target)])
    assert_refused((status, *capsys.readouterr(), target), "holds no weights")
    (hf_folder / "config.json").write_text("{")
    status = main(["hf-ast", str(hf_folder), str(target)])
    assert_refused((status, *capsys.readouterr(), target), "config.json: is damaged")


def test_base_model_of_hf_ast(hf_folder, hf_ast, tmp_path, capsys):
    shutil.rmtree(hf_folder)
    hf_ast.audio_spectrogram_transformer.save_pretrained(hf_folder)
    status = main(["hf-ast", str(hf_folder), str(tmp_path / "converted")])
    assert_refused((status, *capsys.readouterr(), tmp_path / "converted"), "missing classifier.dense.weight")


# ---- the command line ----


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["wav2vec", "a", "b"],
        ["ssast", "a"],
        ["ssast", "a", "b", "--max-length", "0"],
        ["ssast", "a", "b", "--std", "-1"],
        ["ssast", "a", "b", "--mean", "nan"],
        ["ssast", "a", "b", "--task", "regression"],
        ["ssast", "a", "b", "--lables", "x"],
        ["ast", "a", "b", "--task", "classification"],
    ],
)
def test_wrong_options_exit_with_2(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert "usage: python -m conversion" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_fresh_process(pretrained, tmp_path):
    torch.save(pretrained, tmp_path / "source.pth")
    command = [sys.executable, "-m", "conversion", "ssast", str(tmp_path / "source.pth"), str(tmp_path / "out")]
    done = subprocess.run([*command, "--verify"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    facts = [line.split()[0] for line in done.stdout.splitlines()]
    facts_wanted = ["source", "holds", "sizes", "grid", "features", "note", "dropped", "verified", "saved", "load"]
    assert list(dict.fromkeys(facts)) == facts_wanted
    assert (tmp_path / "out" / "modeling_dual_ssast.py").exists()
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
