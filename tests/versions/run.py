"""
Tests saved folders in every supported version of Transformers and torch: `python tests/versions/run.py [VERSION ...]`.

Builds an environment for each, saves tiny models with the versions at hand, publishes them on a local Hub, runs
`suite.py` in each environment on the folders and on the Hub's repositories, and loads here what was saved there.
Prints a table in Markdown. Complete environments are kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForPreTraining,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishForAudioClassification,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from hub_server import USER, HubServer
from versions import suite

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Versions:
    """Holds the versions of an environment, which also has the newest matching numpy and accelerate."""

    transformers: str
    torch: str

    @property
    def requirements(self) -> list[str]:
        return [f"transformers=={self.transformers}", f"torch=={self.torch}", "accelerate", "numpy"]


# The oldest of both; releases in between, the last 4.x and the first 5.x; and the newest, with every torch.
MATRIX = (
    Versions("4.48.0", "2.6.0"),
    Versions("4.48.0", "2.13.0"),
    Versions("4.52.4", "2.13.0"),
    Versions("4.57.6", "2.13.0"),
    Versions("5.0.0", "2.13.0"),
    Versions("5.23.0", "2.6.0"),
    Versions("5.23.0", "2.13.0"),
    Versions("5.23.0", "2.15.0"),
    Versions("5.24.0", "2.13.0"),
)


class Failed(Exception):
    """A command that did not end well, and what it printed: the reason last."""


def main() -> int:
    known = ", ".join(dict.fromkeys(versions.transformers for versions in MATRIX))
    parser = argparse.ArgumentParser(description=__doc__.split(": `")[0].strip())
    parser.add_argument("versions", nargs="*", help=f"of Transformers, such as 4.48 ({known}); default: all")
    parser.add_argument("--torch", help="only environments with this version of torch")
    parser.add_argument("--python", default=sys.executable, help="what the environments are built with")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venvs", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    chosen = choose(arguments.versions, arguments.torch)
    if not chosen:
        parser.error(f"no environment has such versions; there are {known}")
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary, "saved")
        save_models(saved)
        results = []
        for number, versions in enumerate(chosen):
            print(f"== Transformers {versions.transformers}, torch {versions.torch}", flush=True)
            try:
                python = build(versions, arguments.environments, arguments.python)
                results.append(check(python, saved, Path(temporary, str(number))))
            except Failed as failure:
                print(failure, file=sys.stderr)
                failures.append(f"Transformers {versions.transformers}, torch {versions.torch}")
    table = as_markdown(results)
    print(table)
    if arguments.output:
        unfinished = arguments.output.with_name(f"{arguments.output.name}.unfinished")
        unfinished.write_text(table)
        os.replace(unfinished, arguments.output)
    if failures:
        print("failed: " + "; ".join(failures), file=sys.stderr)
    return 1 if failures else 0


def choose(wanted: list[str], with_torch: str | None = None) -> list[Versions]:
    """Environments by their Transformers, named as 4.48.0, 4.48 or 4; all if none is named."""
    return [
        versions
        for versions in MATRIX
        if (not wanted or any(f"{versions.transformers}.".startswith(f"{name}.") for name in wanted))
        and with_torch in (None, versions.torch)
    ]


def build(versions: Versions, folder: Path, python: str, options: Sequence[str] = ()) -> Path:
    """The Python of the environment, which is made if it is not there. Options are pip's."""
    python_version = run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    home = folder.resolve() / f"transformers-{versions.transformers}-torch-{versions.torch}-python-{python_version}"
    ready = home / "ready"  # the last file that is made
    if not ready.exists():
        start = time.perf_counter()
        shutil.rmtree(home, ignore_errors=True)
        run([python, "-m", "venv", home])
        pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir", *options]
        run([*pip, *versions.requirements])
        ready.touch()
        print(f"built {home.name} in {time.perf_counter() - start:.0f} s", flush=True)
    return home / "bin" / "python"


def save_models(saved: Path):
    """Tiny models of all families with random weights, and beside each folder an npz: clips, and what it gives."""
    logging.disable_progress_bar()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shape |= {"num_mel_bins": 32, "max_length": 120, "initializer_range": 0.3}
    labels = ("dog", "cat", "owl")
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    models = {
        "dual_ssast": (DualSSASTForAudioClassification, DualSSASTConfig(**shape, **names, fusion="weighted")),
        "mspm": (DualSSASTForPreTraining, DualSSASTConfig(**shape)),
        "asit": (ASiTForPreTraining, ASiTConfig(**shape, class_dim=8, data_dim=8, head_hidden_size=16)),
        "vggish": (
            VGGishForAudioClassification,
            VGGishConfig(channels=[3, 4, 5, 6], fc_size=8, num_mel_bins=32, example_length=32, **names),
        ),
        "panns_cnn14": (
            PannsCnn14ForAudioClassification,
            PannsCnn14Config(channels=[2, 3, 4, 5, 6, 7], embedding_size=9, num_mel_bins=32, **names),
        ),
    }
    extractors = {"vggish": VGGishFeatureExtractor, "panns_cnn14": PannsCnn14FeatureExtractor}
    random = np.random.default_rng(0)
    clips = [random.normal(0, 0.1, length).astype(np.float32) for length in (18000, 15000, 16411)]
    for name, (model_class, config) in models.items():
        torch.manual_seed(0)
        options = {} if name in extractors else {"max_length": config.max_length}
        extractor = extractors.get(name, DualSSASTFeatureExtractor)(num_mel_bins=config.num_mel_bins, **options)
        suite.save(saved / name, model_class(config), extractor, clips)


def check(python: str | Path, saved: Path, work: Path) -> dict:
    """The suite on folders and on a Hub; what was saved there must give the same here. Returns a row of the table."""
    start = time.perf_counter()
    with HubServer() as hub:
        for folder in (path for path in saved.iterdir() if path.is_dir()):
            hub.create(f"{USER}/{folder.name}", {path.name: path.read_bytes() for path in folder.iterdir()})
        found = [run_suite(python, hub, work, "start", saved, work, USER)]
        found.append(run_suite(python, hub, work, "resume", work, USER))
        found.append(run_suite(sys.executable, hub, work, "load", work / "saved"))
    print(f"ran in {time.perf_counter() - start:.0f} s", flush=True)
    return {**found[0], "difference": max(row["difference"] for row in found)}


def run_suite(python: str | Path, hub: HubServer, work: Path, *words) -> dict:
    """`suite.py` in a process that sees neither this checkout nor what another process has downloaded."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        environment = {**hub.environment(Path(cache)), "CUDA_VISIBLE_DEVICES": ""}
        output = run([python, "-I", suite.__file__, *words], cwd=work, env=environment)
    print(output, end="", flush=True)
    return json.loads(output.splitlines()[-1])


def as_markdown(results: list[dict]) -> str:
    columns = ("transformers", "torch", "python", "numpy", "huggingface_hub", "accelerate")
    rows = [[*(row[name] for name in columns), f"{row['difference']:.1e}"] for row in results]
    lines = [[*columns, "largest difference"], ["---"] * (len(columns) + 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def run(command, **options) -> str:
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if process.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n{process.stderr}{process.stdout}")
    return process.stdout


if __name__ == "__main__":
    sys.exit(main())
