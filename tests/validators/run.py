"""
Runs the benchmarks' own checks on a folder of every family: `python tests/validators/run.py`.

HEAR's validator checks examples/hear_dual_ssast.py, and X-ARES' `check_audio_encoder` checks
examples/xares_dual_ssast.py. Both are fetched once from the package index, without what they require. TensorFlow is a
stub: the validator only asks it whether a model is one of its own. Prints a table in Markdown; the status is 1 if a
check fails.
"""

import contextlib
import io
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tiny_models import TINY, save_tiny_classifier, save_tiny_cnn
from transformers_suite.run import fetch

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForPreTraining,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioFrameClassification,
    DualSSASTForPreTraining,
)

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".venvs" / "validators"
FILES = {
    "hearvalidator-2021.0.2-py3-none-any.whl": "33db60b5d543dac684f77de3939e5b47997c58c030b57457736681c00d3c81f0",
    "xares-0.1.3-py3-none-any.whl": "0e9fb369bee9926194eed3186f404cf09e5f710c80345cdb63c09acc26599253",
    "loguru-0.7.3-py3-none-any.whl": "31a33c10c8e1e10422bfd431aeb5d351c7cf7fa671e3c4df004162264b28220c",
}
FRAMES = {"patch_size": (128, 2), "frequency_stride": 128, "time_stride": 2}
OVERLAP = {"frequency_stride": 10, "time_stride": 10, "readout": "frames", "pooling": ["mean", "max", "min"]}
AST = {"readout": "prefix", "attention_over_padding": True, "fusion_layers": [-1], "pooling": ["mean"]}


def save(model, folder: Path):
    model.save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=TINY["max_length"]).save_pretrained(folder)


FAMILIES = {
    "SSAST, patches": lambda folder: save(DualSSASTForPreTraining(DualSSASTConfig(**TINY)), folder),
    "SSAST, frames": lambda folder: save(DualSSASTForPreTraining(DualSSASTConfig(**TINY, **FRAMES)), folder),
    "Dual SSAST": lambda folder: save_tiny_classifier(folder, fusion_layers=[1, 2]),
    "Dual SSAST, overlapping patches": lambda folder: save_tiny_classifier(folder, **OVERLAP),
    "Dual SSAST, frame classifier": lambda folder: save(
        DualSSASTForAudioFrameClassification(DualSSASTConfig(**TINY)), folder
    ),
    "AST": lambda folder: save_tiny_classifier(folder, **AST),
    "ASiT": lambda folder: save(ASiTForPreTraining(ASiTConfig(**TINY)), folder),
    "VGGish": lambda folder: save_tiny_cnn(folder, "vggish"),
    "CNN14": lambda folder: save_tiny_cnn(folder, "panns_cnn14"),
}


def main() -> int:
    for name, digest in FILES.items():
        if not fetch(name, digest, CACHE):
            return 1
        with zipfile.ZipFile(CACHE / name) as wheel:
            wheel.extractall(CACHE / "packages")
    sys.path += [str(ROOT / "examples"), str(CACHE / "packages")]  # last: what is installed comes first
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows, failures = [], []
    for family, make in FAMILIES.items():
        outcomes = []
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            make(folder)
            for check in (hear, xares):
                reason = check(folder)
                outcomes.append("failed" if reason else "passed")
                failures += [f"{family}, {check.__name__}: {reason}"] if reason else []
        rows.append((family, *outcomes))
    print("| model | HEAR's validator | X-ARES' check_audio_encoder |\n|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print("\n".join(["", *failures]) if failures else "\nAll checks passed.")
    return 1 if failures else 0


def hear(folder: Path) -> str | None:
    """Returns why HEAR's validator refuses the model, or `None`."""
    if "tensorflow" not in sys.modules:
        sys.modules["tensorflow"] = types.ModuleType("tensorflow")
        sys.modules["tensorflow"].Module = type("Module", (), {})
    from hearvalidator.validate import ModelError, ValidateModel

    with contextlib.redirect_stdout(io.StringIO()):
        try:
            ValidateModel("hear_dual_ssast", str(folder), "cpu")()
        except (Exception, ModelError) as error:  # ModelError is no Exception
            return f"{type(error).__name__}: {error}"
    return None


def xares(folder: Path) -> str | None:
    """Returns why X-ARES refuses the encoder, or why ten minutes of audio do not pass; or `None`."""
    from loguru import logger
    from xares.audio_encoder_checker import check_audio_encoder
    from xares_dual_ssast import DualSSASTEncoder

    reasons = []
    logger.remove()
    logger.add(reasons.append, format="{message}")
    encoder = DualSSASTEncoder(str(folder))
    if not check_audio_encoder(encoder):
        return " ".join(map(str, reasons)).strip()
    frames = encoder(torch.zeros(1, 600 * encoder.sampling_rate)).shape[1]
    missing_ms = 600_000 - frames * encoder.hop_size_in_ms
    return None if abs(missing_ms) < 1000 else f"{frames} frames are {missing_ms} ms shorter than 600 s"


if __name__ == "__main__":
    sys.exit(main())
