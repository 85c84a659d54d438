"""Every snippet of the README and of docs/ runs as it stands, in a folder with stand-ins for the files it names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import ROOT, tone, write_class_folders
from golden import FIXTURES, shrunk_state
from tiny_models import save_tiny_classifier
from transformers import ASTConfig, ASTForAudioClassification

sys.path.insert(0, str(FIXTURES))
from make_weights import load_recipe, make_state_dict

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LANGUAGES = ("en", "es", "fr", "it", "ru")
SNIPPET = re.compile(r"(<!-- run: no -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)


def snippets() -> list[tuple[str, str]]:
    """(language, code) of every code block, in the order of the documents, but for those marked as not to be run."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    return [(language, code) for skip, language, code in SNIPPET.findall(text) if not skip]


def _ssast_checkpoint(path: Path):
    """A tiny pretrained SSAST of 12 blocks, in the original's format: the golden recipe with its blocks repeated."""
    recipe = json.loads((FIXTURES / "ssast_patch_pretrained.json").read_text())
    entries = [entry for entry in recipe["tensors"] if ".blocks." not in entry["name"]]
    block = [entry for entry in recipe["tensors"] if ".blocks.0." in entry["name"]]
    for index in range(12):
        entries += [{**entry, "name": entry["name"].replace(".0.", f".{index}.", 1)} for entry in block]
    torch.save(make_state_dict(entries, recipe["seed"], recipe["prefix"]), path)


def _hub_repository(folder: Path):
    """ESC-50's columns in a Parquet file with the audio as bytes."""
    (folder / "data").mkdir(parents=True)
    rows = []
    for index in range(40):
        path = folder / "clip.wav"
        soundfile.write(path, tone(0.2, hz=300 * (1 + index % 2), seed=index), 16000)
        rows.append(
            {"audio": {"bytes": path.read_bytes(), "path": f"{index}.wav"}, "category": ["dog", "rain"][index % 2]}
        )
    path.unlink()
    pandas.DataFrame(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A checkout with the files that the README names."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (
        "conversion", "training", "model_cards", "hub", "modeling_dual_ssast", "data", "train_hf.py", "predict_hf.py",
        "embed_hf.py", "app.py", "app.yaml", "setup.cfg", "LICENSE",
    ):  # fmt: skip
        (folder / name).symlink_to(ROOT / name)
    (folder / "recipes").mkdir()
    for recipe in (ROOT / "recipes").glob("*.yaml"):  # two epochs instead of twenty-five
        short = re.sub(r"(?m)^num_train_epochs: .*$", "num_train_epochs: 2", recipe.read_text())
        if recipe.stem.startswith(("mspm", "asit")):
            short = re.sub(r"(?m)^(per_device_\w+): .*$", r"\1: 4", short)
            short = re.sub(r"(?m)^(eval|save|logging)_steps: .*$", r"\1_steps: 2", short) + "max_steps: 4\n"
        (folder / "recipes" / recipe.name).write_text(short)
    quickstart = save_tiny_classifier(folder / "runs" / "quickstart", labels=LANGUAGES, max_length=256)
    (quickstart / "README.md").write_text("---\nlicense: mit\n---\n# quickstart\n")
    write_class_folders(folder / "my_clips", 12)
    soundfile.write(folder / "long_recording.wav", tone(5.0), 16000)
    _ssast_checkpoint(folder / "SSAST-Base-Patch-400.pth")
    torch.save(load_recipe(str(FIXTURES / "ast_tiny_weights.json")), folder / "audioset_10_10_0.4593.pth")
    labels = [f"{index},/m/{index},sound {index}" for index in range(7)]
    (folder / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *labels]) + "\n")
    config = ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_length=64)
    ASTForAudioClassification(config).save_pretrained(folder / "ast-finetuned-audioset-10-10-0.4593")
    _hub_repository(folder / "ashraq" / "esc50")
    shutil.copytree(folder / "my_clips", folder / "my_recordings")
    (folder / "my_manifest.csv").write_text(f"file_name\n{next((folder / 'my_clips').rglob('*.wav'))}\n")
    shutil.copy(FIXTURES / "asit_pretrain.pth", folder / "asit_checkpoint.pth")
    torch.save(shrunk_state("vggish_weights.json"), folder / "pytorch_vggish.pth")
    torch.save(shrunk_state("cnn14_weights.json"), folder / "Cnn14_16k_mAP=0.438.pth")
    return folder


@pytest.mark.slow
def test_every_snippet_runs(workspace, hub):
    """In order: a later one may use what an earlier one made."""
    environment = hub.environment(workspace / "hf_home")
    environment |= {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ordered = snippets()
    # The recipes come before the conversion in the README, as people read it; here the checkpoint has to exist first.
    ordered.sort(key=lambda snippet: "-m conversion ssast" not in snippet[1])
    assert len(ordered) >= 9
    for language, code in ordered:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        process = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=600)
        assert process.returncode == 0, f"{code}\n{process.stdout[-1500:]}\n{process.stderr[-3000:]}"
        assert process.stdout.strip(), code
    assert json.loads((workspace / "runs" / "sweep" / "results.json").read_text())["candidates"] == 2093
    assert json.loads((workspace / "runs" / "probe" / "results.json").read_text())["metric"] == "accuracy"
    assert json.loads((workspace / "runs" / "folds" / "results.json").read_text())["metrics"]["accuracy"]
    for name, kind in (("name", "models"), ("clips", "models"), ("languages", "models"), ("page", "spaces")):
        assert "README.md" in hub.files(f"user/{name}", kind)
    for name in ("exported/model.onnx", "exported-int8/model_int8.onnx", "exported-pt2/model.pt2"):
        assert (workspace / name).stat().st_size
    for run in ("mine", "esc50", "two_processes", "from_my_pretraining", "sweep-fine-tuned", "weighted"):
        assert json.loads((workspace / "runs" / run / "results.json").read_text())["metrics"]["test"]
    assert np.isfinite(pandas.read_csv(workspace / "scores.csv").iloc[:, 2:].to_numpy()).all()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_files_that_exist(path):
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"\b[A-Z]{4,}_[A-Z]+\b", text)) <= {"TRACKIO_DIR"}, "a place left to fill in"
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    for recipe in set(re.findall(r"recipes/(?:\w+/)?\w+\.yaml", text)):
        assert (ROOT / recipe).exists(), recipe
    assert shutil.which("make") is None or "quickstart" in (ROOT / "Makefile").read_text()
