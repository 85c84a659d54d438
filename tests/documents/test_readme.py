"""
Tests that every snippet of the README and of docs/ runs as it is, in a folder with stand-ins for the files it names.

`<!-- run: no -->` above a snippet excludes it; the text beside it has to give the reason. A command on several pages
runs once.
"""

import ast
import importlib.util
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
import yaml
from audio_files import ROOT, tone, write_class_folders
from golden import FIXTURES, shrunk_state
from hub_server import HubServer
from tiny_models import save_tiny_classifier
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

sys.path.insert(0, str(FIXTURES))
from make_weights import load_recipe, make_state_dict

SITE = ROOT / "docs"
LANGUAGES = ("en", "es", "fr", "it", "ru")
SNIPPET = re.compile(r"^(<!-- run: no -->\n)?```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _pages(nav) -> list[str]:
    """The pages of a part of the navigation, in its order."""
    if isinstance(nav, dict):
        nav = list(nav.values())
    return [nav] if isinstance(nav, str) else [page for part in nav for page in _pages(part)]


def documents() -> list[Path]:
    """The README and all pages of the site, in the order in which people read them."""
    order = _pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    places = {SITE / page: index for index, page in enumerate(order)}
    return [ROOT / "README.md", *sorted(SITE.rglob("*.md"), key=lambda path: (places.get(path, len(places)), path))]


DOCUMENTS = documents()
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def snippets(path: Path) -> list[tuple[str, str]]:
    """(language, code) of every code block that is meant to run."""
    found = SNIPPET.findall(path.read_text(encoding="utf-8"))
    return [(language, code) for skip, language, code in found if not skip]


def commands(code: str) -> list[str]:
    """The commands of a bash snippet, one a line; a snippet with a here-document stays whole."""
    if "<<" in code:
        return [code]
    lines = (re.sub(r"(^|\s+)# .*$", "", line) for line in code.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


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
        "embed_hf.py", "serve_hf.py", "app.py", "app.yaml", "setup.cfg", "LICENSE", "examples",
    ):  # fmt: skip
        (folder / name).symlink_to(ROOT / name)
    (folder / "recipes").mkdir()
    for recipe in (ROOT / "recipes").glob("*.yaml"):  # two epochs instead of twenty-five
        short = re.sub(r"(?m)^num_train_epochs: .*$", "num_train_epochs: 2", recipe.read_text())
        if recipe.stem.startswith(("mspm", "asit", "small_encoder")):
            short = re.sub(r"(?m)^(per_device_\w+): .*$", r"\1: 4", short)
            short = re.sub(r"(?m)^(eval|save|logging)_steps: .*$", r"\1_steps: 2", short)
            short = re.sub(r"(?m)^max_steps: .*\n", "", short) + "max_steps: 4\n"
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
    port = ASTConfig(**{**config.to_dict(), "num_hidden_layers": 12, "frequency_stride": 16, "time_stride": 16})
    ASTForAudioClassification(port).save_pretrained(folder / "ssast-small-patch-audioset-16-16")
    ASTFeatureExtractor(max_length=64).save_pretrained(folder / "ssast-small-patch-audioset-16-16")
    _hub_repository(folder / "ashraq" / "esc50")
    shutil.copytree(folder / "my_clips", folder / "my_recordings")
    listed = sorted((folder / "my_clips").rglob("*.wav"))[:3]  # two clips are set aside: one must be left
    (folder / "my_manifest.csv").write_text("\n".join(["file_name", *map(str, listed)]) + "\n")
    torch.save(load_recipe(str(FIXTURES / "dual_ssast_finetuned_4.json")), folder / "best_audio_model.pth")
    shutil.copy(FIXTURES / "asit_pretrain.pth", folder / "asit_checkpoint.pth")
    torch.save(shrunk_state("vggish_weights.json"), folder / "pytorch_vggish.pth")
    torch.save(shrunk_state("cnn14_weights.json"), folder / "Cnn14_16k_mAP=0.438.pth")
    return folder


class Reader:
    """Somebody who pastes the snippets of the pages, one after the other, into one folder."""

    def __init__(self, folder: Path, hub: HubServer):
        self.folder, self.hub, self.done = folder, hub, set()
        self.environment = hub.environment(folder / "hf_home")
        self.environment |= {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.environment['PATH']}"

    def read(self, path: Path):
        for language, code in snippets(path):
            parts = [part for part in (commands(code) if language == "bash" else [code]) if part not in self.done]
            if parts:
                self.run(language, "\n".join(parts))
                self.done |= set(parts)

    def run(self, language: str, code: str):
        words = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        process = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert process.returncode == 0, f"{code}\n{process.stdout[-1500:]}\n{process.stderr[-3000:]}"
        assert process.stdout.strip(), code


@pytest.fixture(scope="module")
def reader(workspace):
    with HubServer() as hub:
        yield Reader(workspace, hub)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_snippet_runs(reader, path):
    """In order: a later page may use what an earlier one made."""
    reader.read(path)


@pytest.mark.slow
def test_the_snippets_make_what_the_pages_say(reader):
    for path in DOCUMENTS:
        reader.read(path)  # what has run already does not run again
    workspace, hub = reader.folder, reader.hub
    assert json.loads((workspace / "runs" / "sweep" / "results.json").read_text())["candidates"] == 2093
    assert json.loads((workspace / "runs" / "probe" / "results.json").read_text())["metric"] == "accuracy"
    assert json.loads((workspace / "runs" / "folds" / "results.json").read_text())["metrics"]["accuracy"]
    for name, kind in (("name", "models"), ("clips", "models"), ("languages", "models"), ("page", "spaces")):
        assert "README.md" in hub.files(f"user/{name}", kind)
    for name in ("exported/model.onnx", "exported-int8/model_int8.onnx", "exported-pt2/model.pt2"):
        assert (workspace / name).stat().st_size
    for run in ("mine", "esc50", "two_processes", "from_my_pretraining", "sweep-fine-tuned", "weighted", "from_port"):
        assert json.loads((workspace / "runs" / run / "results.json").read_text())["metrics"]["test"]
    assert np.isfinite(pandas.read_csv(workspace / "scores.csv").iloc[:, 2:].to_numpy()).all()
    assert json.loads((workspace / "runs" / "from_port" / "config.json").read_text())["attention_over_padding"] is False


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_a_document_names_only_files_that_exist(path):
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"\b[A-Z]{4,}_[A-Z]+\b", text)) <= {"TRACKIO_DIR"}, "a place left to fill in"
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    for recipe in set(re.findall(r"recipes/(?:\w+/)?\w+\.yaml", text)):
        assert (ROOT / recipe).exists(), recipe
    assert shutil.which("make") is None or "quickstart" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_a_snippet_that_is_left_out_says_why(path):
    text = path.read_text(encoding="utf-8")
    for snippet in SNIPPET.finditer(text):
        if snippet[1]:
            beside = " ".join([*text[: snippet.start()].split("\n\n")[-2:], *text[snippet.end() :].split("\n\n")[:2]])
            assert re.search("not run", " ".join(beside.split()), re.IGNORECASE), snippet[3]


def test_the_map_of_rooms_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = {name for name in re.findall(r"`(\w+/[\w/.*]+)`", text) if "NAME" not in name}
    assert len(places) > 30
    assert sorted(name for name in places if not list(ROOT.glob(name.rstrip("/")))) == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def _texts(source: Path) -> set[str]:
    """All strings of a Python file; what an f-string fills in is an ellipsis."""
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    parts = (node.values if isinstance(node, ast.JoinedStr) else [node] for node in nodes)
    texts = ("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in part) for part in parts)
    return {re.sub("…+", "…", text) for text in texts if text}


def test_troubleshooting_quotes_messages_that_exist():
    """Ours whole; Transformers' up to where the page cuts them off."""
    transformers = Path(importlib.util.find_spec("transformers").origin).parent
    foreign = ("dynamic_module_utils.py", "trainer.py", "pipelines/audio_classification.py")
    foreign = [transformers / name for name in (*foreign, "models/auto/configuration_auto.py")]
    own = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in (".venv", ".venvs", "tests")]
    texts = set().union(*map(_texts, own))
    foreign_texts = set().union(*map(_texts, foreign))
    page = (SITE / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [text.strip() for text in re.findall(r"^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)]
    assert len(messages) >= 20
    for message in messages:
        message = re.sub(r"^(error|ValueError): ", "", message)
        if not message.startswith("torch."):
            assert message in texts or any(text.startswith(message) for text in foreign_texts), message
