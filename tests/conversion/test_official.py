"""Tests `python -m conversion build-official`: the catalogue, and files in the originals' layout."""

import dataclasses
import hashlib
import json
import re

import pytest
import torch
import yaml
from golden import FIXTURES, checkpoint, settings, shrunk_state
from huggingface_hub import ModelCard
from transformers import AutoModelForAudioClassification, AutoModelForPreTraining

from conversion import catalogue, official
from conversion.__main__ import main as convert_command
from conversion.catalogue import recognise
from conversion.checkpoint import ConversionError
from conversion.families import FAMILIES
from conversion.options import Options
from model_cards import card as cards
from modeling_dual_ssast import ASiTConfig, PannsCnn14Config, PannsCnn14FeatureExtractor

ALL = catalogue.read_catalogue()
TINY_SHAPES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_shape": [16, 16]}


# ---- the catalogue ----


@pytest.mark.parametrize("name", ALL)
def test_every_entry_is_well_formed(name):
    entry = ALL[name]
    assert entry.family in FAMILIES and re.fullmatch(r"[a-z0-9.-]+", name) and entry.file.endswith((".pth", ".pt"))
    assert entry.license is None or re.fullmatch(r"[a-z0-9.-]+", entry.license)
    assert entry.license_note and entry.sources and entry.repository.startswith("https://github.com/")
    assert set(entry.papers) <= set(cards.bibliography())
    assert entry.url_note if entry.url is None else entry.url.startswith("https://")
    assert entry.url is None or catalogue.published_name(FIXTURES / entry.url.rsplit("/", 1)[1]) == entry.file
    assert entry.md5 is None or re.fullmatch(r"[0-9a-f]{32}", entry.md5)
    assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{8,64}", entry.sha256)
    assert set(entry.options) <= {field.name for field in dataclasses.fields(Options)}
    assert entry.options.get("labels") in (None, *official.LABEL_LINKS)
    for figure in entry.figures:
        assert figure["name"] and figure["source"] and isinstance(figure["value"], float)
        assert ("type" in figure) == ("dataset" in figure) == ("dataset_id" in figure) == ("split" in figure)
    if "grid_shape" in entry.shapes and entry.family == "ast":
        length, stride = entry.options["max_length"], entry.options["time_stride"]
        assert entry.shapes["grid_shape"] == [(128 - 16) // stride + 1, (length - 16) // stride + 1]


def test_the_catalogue_is_complete():
    families = [entry.family for entry in ALL.values()]
    counts = {family: families.count(family) for family in FAMILIES}
    assert counts == {"ssast": 13, "asit": 4, "ast": 8, "vggish": 1, "panns-cnn14": 2, "hf-ast": 0, "dual-ssast": 0}
    assert len({entry.file for entry in ALL.values()}) == len(ALL)
    shapes = json.loads((FIXTURES / "asit_vit_base_shapes.json").read_text())
    asit = ALL["asit-base"].shapes
    assert shapes["backbone.pos_embed"] == [1, 1 + asit["grid_shape"][0] * asit["grid_shape"][1], asit["hidden_size"]]


def test_shapes_are_those_of_the_originals_at_full_size():
    """Compares with the fixtures, which were made with the original code."""
    cnn14, vggish = (
        {e["name"]: e.get("shape") for e in settings(f"{name}_weights")["tensors"]} for name in ("cnn14", "vggish")
    )
    channels = [cnn14[f"conv_block{block}.conv1.weight"][0] for block in range(1, 7)]
    sizes = {"embedding_size": cnn14["fc1.bias"][0], "num_labels": cnn14["fc_audioset.bias"][0]}
    assert ALL["cnn14-16k"].shapes == {"channels": channels, **sizes, "sampling_rate": 16000}
    channels = [vggish[f"features.{layer}.weight"][0] for layer in (0, 3, 6, 11)]
    sizes = {"fc_size": vggish["fc.0.bias"][0], "embedding_size": vggish["fc.4.bias"][0]}
    assert ALL["vggish"].shapes == {"channels": channels, **sizes}


def test_an_unknown_field_is_an_error(tmp_path):
    content = yaml.safe_load(catalogue.PATH.read_text())
    content["checkpoints"]["vggish"]["colour"] = "blue"
    path = tmp_path / "catalogue.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(TypeError, match="colour"):
        catalogue.read_catalogue(path)


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        ("SSAST.pth?dl=1", "SSAST.pth"),
        ("Cnn14_mAP%3D0.431.pth?download=1", "Cnn14_mAP=0.431.pth"),
        ("Cnn14_mAP=0.431.pth", "Cnn14_mAP=0.431.pth"),
    ],
)
def test_names_as_browsers_and_wget_save_them(tmp_path, saved, name):
    assert catalogue.published_name(tmp_path / saved) == name


# ---- small checkpoints of every family, with a catalogue of their shapes ----


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    torch.save(checkpoint("ssast_patch_pretrained.json"), folder / "SSAST-Tiny-Patch-400.pth?dl=1")
    torch.save(checkpoint("ast_tiny_weights.json"), folder / "audioset_10_10_0.4593.pth")
    torch.save(shrunk_state("vggish_weights.json"), folder / "vggish-10086976.pth")
    (folder / "checkpoint.pth").write_bytes((FIXTURES / "asit_pretrain.pth").read_bytes())
    torch.save({"model": shrunk_state("cnn14_weights.json"), "iteration": 3}, folder / "renamed.pth")
    return folder


@pytest.fixture
def small(downloads):
    """The catalogue's entries with the shapes and hashes of the small files."""
    labels = settings("ast_tiny_weights")["tensors"]
    num_labels = next(entry["shape"][0] for entry in labels if entry["name"] == "mlp_head.1.bias")
    md5 = hashlib.md5((downloads / "renamed.pth").read_bytes()).hexdigest()
    changes = {
        "ssast-tiny-patch-400": {"shapes": TINY_SHAPES | {"grid_shape": [8, 6]}},
        "ast-audioset-10-10-0.4593": {
            "shapes": {"num_labels": num_labels},
            "options": {"labels": "class_labels_indices.csv"},
        },
        "asit-base": {"shapes": TINY_SHAPES | {"num_prefix_tokens": 1}},
        "vggish": {"shapes": {"embedding_size": 4}, "sha256": None},
        "cnn14-16k": {"shapes": {"sampling_rate": 16000, "num_labels": 16}, "md5": md5},
        "cnn14-32k": {},
    }
    return {name: dataclasses.replace(ALL[name], **values) for name, values in changes.items()}


def statuses(outcomes) -> dict[str, str]:
    return {outcome.published.name: outcome.status for outcome in outcomes}


def test_what_is_there_is_converted_verified_and_described(downloads, small, tmp_path, capsys):
    output = tmp_path / "checkpoints"
    outcomes = official.build(downloads, output, catalogue=small)
    expected = {**dict.fromkeys(small, "converted"), "cnn14-32k": "missing", "asit-base": "left out"}
    assert statuses(outcomes) == expected
    assert sorted(path.name for path in output.iterdir()) == sorted(
        {*small} - {"cnn14-32k", "asit-base"}
    )  # no leftovers
    printed = capsys.readouterr().out
    assert "asit-base: left out; checkpoint.pth may be anybody's: --only asit-base takes it for the original" in printed
    assert statuses(official.build(downloads, output, ["asit-base"], catalogue=small)) == {"asit-base": "converted"}
    capsys.readouterr()
    assert "tensors verified" in printed and "class_labels_indices.csv is not there" in printed
    table = official.table(outcomes)
    model = AutoModelForPreTraining.from_pretrained(output / "ssast-tiny-patch-400")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert re.search(rf"^ssast-tiny-patch-400 +converted +{count:,}  ", table, re.MULTILINE)
    cnn = AutoModelForAudioClassification.from_pretrained(output / "cnn14-16k")
    assert official.num_parameters(output / "cnn14-16k") == sum(parameter.numel() for parameter in cnn.parameters())
    assert re.search(r"^cnn14-32k +missing$", table, re.MULTILINE)
    official.print_missing(outcomes, downloads)
    told = capsys.readouterr().out
    assert f"{downloads / 'Cnn14_mAP=0.431.pth'}, from https://zenodo.org/record/3987831/" in told
    assert f"{downloads / 'class_labels_indices.csv'}, which names the outputs, from https://" in told

    card = ModelCard.load(output / "ast-audioset-10-10-0.4593" / "README.md")
    result = card.data.eval_results[0]
    assert (result.metric_value, result.dataset_name, result.dataset_split) == (0.459, "AudioSet", "eval")
    assert result.source_url == "https://github.com/YuanGongND/ast" and card.data.license == "bsd-3-clause"
    assert card.data.datasets == ["agkphysics/AudioSet"] and "no names (LABEL_0" in card.text
    assert "| mean average precision, AudioSet (eval) | 0.459 | list of README.md |" in card.text
    card = ModelCard.load(output / "ssast-tiny-patch-400" / "README.md")
    assert (
        card.data.eval_results is None and "| average over the audio tasks | 53.3 | table of README.md |" in card.text
    )
    assert "AudioSet-2M and LibriSpeech-960" in card.text and "`SSAST-Tiny-Patch-400.pth`" in card.text
    assert "their largest difference from the original is 0" in card.text
    card = ModelCard.load(output / "asit-base" / "README.md")
    assert card.data.license is None and "none is stated" in card.text and "no licence" in card.text
    for name in {*small} - {"cnn14-32k"}:
        assert str(tmp_path) not in (output / name / "README.md").read_text()


def test_finished_folders_are_kept_and_label_files_name_the_outputs(downloads, small, tmp_path):
    names, output = ["ast-audioset-10-10-0.4593"], tmp_path / "checkpoints"
    official.build(downloads, output, names, catalogue=small)
    count = small[names[0]].shapes["num_labels"]
    rows = [f"{index},/m/{index},sound {index}" for index in range(count)]
    (downloads / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    before = (output / names[0] / "config.json").read_bytes()
    assert statuses(official.build(downloads, output, names, catalogue=small)) == {names[0]: "kept"}
    assert (output / names[0] / "config.json").read_bytes() == before
    official.build(downloads, output, names, catalogue=small, overwrite=True)
    model = AutoModelForAudioClassification.from_pretrained(output / names[0])
    assert model.config.id2label[count - 1] == f"sound {count - 1}"


def test_a_broken_file_stops_no_other(downloads, small, tmp_path, capsys):
    path = downloads / "SSAST-Tiny-Patch-400.pth?dl=1"
    path.write_bytes(path.read_bytes()[:5000])
    (tmp_path / "checkpoints" / "vggish").mkdir(parents=True)
    (tmp_path / "checkpoints" / "vggish" / "mine.txt").write_text("mine")
    outcomes = official.build(downloads, tmp_path / "checkpoints", catalogue=small)
    found = statuses(outcomes)
    assert found["ssast-tiny-patch-400"] == found["vggish"] == "failed" and found["cnn14-16k"] == "converted"
    messages = {outcome.published.name: outcome.message for outcome in outcomes}
    assert "truncated: download it again" in messages["ssast-tiny-patch-400"]
    assert "exists and is not empty" in messages["vggish"] and "\n" not in "".join(messages.values())
    assert not (tmp_path / "checkpoints" / "ssast-tiny-patch-400").exists()
    assert [entry.name for entry in (tmp_path / "checkpoints" / "vggish").iterdir()] == ["mine.txt"]


def test_a_file_that_is_not_the_published_one(downloads, small, tmp_path):
    """Reports bytes and shapes that differ from the published ones; neither leaves a folder."""
    (downloads / "renamed.pth").rename(downloads / "Cnn14_16k_mAP=0.438.pth")
    small["cnn14-16k"] = dataclasses.replace(small["cnn14-16k"], md5="0" * 32)
    small["vggish"] = dataclasses.replace(small["vggish"], size=10)
    small["asit-base"] = ALL["asit-base"]
    outcomes = official.build(downloads, tmp_path / "out", ["cnn14-16k", "vggish", "asit-base"], catalogue=small)
    messages = [outcome.message for outcome in outcomes]
    assert {outcome.status for outcome in outcomes} == {"failed"}
    assert re.search(r"has the md5 \w{32}, published is 0{32}: download it again from https://zenodo", messages[0])
    assert "published are 10: download it again" in messages[1]
    assert "hidden_size is 128, published is 768" in messages[2] and "grid_shape" in messages[2]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_numpy_arrays_beside_the_weights(downloads, small, tmp_path):
    """The published 16 kHz CNN14 holds a sampler's state; whatever could run code is still refused."""
    state = {"model": shrunk_state("cnn14_weights.json"), "sampler": {"indexes": torch.arange(5).numpy(), "pointer": 3}}
    torch.save(state, downloads / "Cnn14_16k_mAP=0.438.pth")
    small["cnn14-16k"] = dataclasses.replace(small["cnn14-16k"], md5=None)
    assert statuses(official.build(downloads, tmp_path / "out", ["cnn14-16k"], catalogue=small)) == {
        "cnn14-16k": "converted"
    }
    torch.save({**state, "hook": print}, downloads / "Cnn14_16k_mAP=0.438.pth")
    outcome = official.build(downloads, tmp_path / "other", ["cnn14-16k"], catalogue=small)[0]
    assert outcome.status == "failed" and "is refused" in outcome.message


def test_folders_are_pushed(downloads, small, tmp_path, hub, capsys):
    names = ["ssast-tiny-patch-400", "asit-base"]
    outcomes = official.build(downloads, tmp_path / "out", names, "user", catalogue=small)
    assert statuses(outcomes) == dict.fromkeys(names, "pushed")
    assert "warning: asit-base: The originals' repository states no licence" in capsys.readouterr().err
    card = ModelCard.load("user/ssast-tiny-patch-400")
    assert 'repository = "user/ssast-tiny-patch-400"' in card.text and card.data.license == "bsd-3-clause"
    assert "https://www.dropbox.com/s/fkbtf78y94113wz/SSAST-Tiny-Patch-400.pth?dl=1" in card.text
    again = official.build(downloads, tmp_path / "out", names[:1], "user", catalogue=small)
    assert statuses(again) == {names[0]: "pushed"}


# ---- the command, and a checkpoint of the published size ----


def tiny_patch_400() -> dict[str, torch.Tensor]:
    """SSAST-Tiny-Patch-400 with random weights: 192 wide, 12 blocks, 8 x 64 patches, in the original's layout."""
    recipe = settings("ssast_patch_pretrained")
    outer = [entry for entry in recipe["tensors"] if ".blocks." not in entry["name"]]
    block = [entry for entry in recipe["tensors"] if ".blocks.0." in entry["name"]]
    entries = outer + [
        {**entry, "name": entry["name"].replace(".0.", f".{index}.", 1)} for index in range(12) for entry in block
    ]
    sizes = {128: 192, 384: 576, 512: 768}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for entry in entries:
        if "value" in entry:
            state[entry["name"]] = torch.tensor({96: 1024}.get(entry["value"], entry["value"]))
            continue
        shape = [
            514 if entry["name"] == "v.pos_embed" and size == 50 else sizes.get(size, size) for size in entry["shape"]
        ]
        state[entry["name"]] = torch.randn(shape, generator=generator) * 0.02
    return {f"module.{name}": tensor for name, tensor in state.items()}


def test_the_command_on_a_checkpoint_of_the_published_size(tmp_path, capsys):
    downloads, output = tmp_path / "downloads", tmp_path / "checkpoints"
    downloads.mkdir()
    torch.save(tiny_patch_400(), downloads / "SSAST-Tiny-Patch-400.pth")
    torch.save(checkpoint("ssast_patch_pretrained.json"), downloads / "SSAST-Small-Patch-400.pth")  # another model
    words = ["build-official", "--download-dir", str(downloads), "--output-dir", str(output)]
    assert convert_command(words) == 1  # of the other model
    printed = capsys.readouterr().out
    assert "SSAST-Small-Patch-400.pth is another model than ssast-small-patch-400: hidden_size is 128" in printed
    assert re.search(r"^ssast-tiny-patch-400 +converted +5,\d{3},\d{3}  ", printed, re.MULTILINE)
    assert printed.count("\nmissing: ") == 26
    assert sorted(path.name for path in output.iterdir()) == ["ssast-tiny-patch-400"]
    assert convert_command([*words, "--only", "ssast-tiny-patch-400"]) == 0
    # The ordinary conversion recognises the file and writes the same card.
    source, other = str(downloads / "SSAST-Tiny-Patch-400.pth"), tmp_path / "other" / "ssast-tiny-patch-400"
    assert convert_command(["ssast", source, str(other), "--verify"]) == 0
    assert (other / "README.md").read_text() == (output / "ssast-tiny-patch-400" / "README.md").read_text()
    # On another grid it is still that file; the figures are of models that were trained from it.
    words = ["ssast", source, str(tmp_path / "short"), "--max-length", "512"]
    assert convert_command(words) == 0
    card = ModelCard.load(tmp_path / "short" / "README.md")
    assert card.data.license == "bsd-3-clause" and "53.3" in card.text
    # A file of that name with other sizes is not taken for it.
    source = str(downloads / "SSAST-Small-Patch-400.pth")
    assert convert_command(["ssast", source, str(tmp_path / "small")]) == 0
    assert ModelCard.load(tmp_path / "small" / "README.md").data.license is None


def test_bad_commands(tmp_path, capsys):
    assert convert_command(["build-official", "--download-dir", str(tmp_path / "nowhere")]) == 1
    assert convert_command(["build-official", "--download-dir", str(tmp_path), "--only", "vgish"]) == 1
    assert convert_command(["build-official", "--download-dir", str(tmp_path)]) == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert (
        "nowhere: is no folder" in first and "did you mean vggish?" in second and "holds none of these files" in third
    )
    with pytest.raises(ConversionError, match="not in the catalogue"):
        official.build(tmp_path, tmp_path / "out", ["nothing"])


def test_a_name_alone_makes_no_origin(tmp_path):
    """Every training writes this name. For a file with known bytes, grid and outputs do not matter."""
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"anybody's")
    assert recognise("asit", path, ASiTConfig(max_length=592), None) is None
    cnn = ALL["cnn14-16k"]
    path = tmp_path / cnn.file
    path.write_bytes(b"other bytes")
    config, extractor = PannsCnn14Config(), PannsCnn14FeatureExtractor()
    assert recognise("panns-cnn14", path, config, extractor) is None


def test_of_other_outputs_the_figures_are_left_out(tmp_path, monkeypatch):
    cnn = dataclasses.replace(ALL["cnn14-16k"], md5=hashlib.md5(b"weights").hexdigest(), size=None)
    monkeypatch.setattr(catalogue, "read_catalogue", lambda: {cnn.name: cnn})
    path = tmp_path / cnn.file
    path.write_bytes(b"weights")
    extractor = PannsCnn14FeatureExtractor()
    encoder = recognise("panns-cnn14", path, PannsCnn14Config(num_labels=2), extractor)
    whole = recognise("panns-cnn14", path, PannsCnn14Config(num_labels=527), extractor)
    assert encoder.license == whole.license == "cc-by-4.0" and whole.figures
    assert [figure for figure in whole.figures if "type" not in figure] == encoder.figures
