"""Gives one input to the code that reads its kind, and judges what happens; runs in a worker process."""

import contextlib
import io
import json
import logging
import shutil
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from audio_encodings import check_reading
from audio_files import tone
from safetensors.torch import load_file

import app
from conversion.__main__ import main as convert
from modeling_dual_ssast import DualSSASTFeatureExtractor
from training import tasks
from training.base.inference import load_classifier, load_encoder
from training.data.audio import read_audio
from training.data.columns import Columns
from training.data.tables import load_table, load_table_as_it_stands
from training.errors import InputError

RATE = 16000


class Fault(Exception):
    """Reports a result that is wrong: `Fault(column of the table, text)`."""


class Refused(Exception):
    """Reports that a program refused the input in one line."""


def judge(kind: str, path: str, facts: dict, bases: str) -> tuple[str, str]:
    """
    Gives a file to the code that reads its kind.

    Args:
        facts: of `inputs.Input`
        bases: folder with the saved models that some inputs belong to

    Returns:
        column of the table, and the message
    """
    torch.manual_seed(0)
    warnings = _Warnings()
    logging.getLogger().addHandler(warnings)
    try:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[kind](path, facts, Path(bases), Path(folder), warnings.texts)
        return "accepted", "; ".join(warnings.texts)
    except (InputError, Refused) as error:
        text = str(getattr(error, "message", error)).strip()
        return ("refused", text) if text else ("error", f"{type(error).__name__} without a message")
    except Fault as fault:
        return fault.args
    except AssertionError as error:  # of check_reading
        return "silent", str(error)
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException:  # SystemExit and KeyboardInterrupt too: no reader may end the process
        return "error", traceback.format_exc()
    finally:
        logging.getLogger().removeHandler(warnings)


class _Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def _check_finite(values, what: str):
    if not np.isfinite(np.asarray(values)).all():
        raise Fault("non-finite", f"{what} hold NaN or infinite values")


def _audio(path: str, facts: dict, bases: Path, folder: Path, warnings: list[str]):
    waveform = read_audio(path, RATE)
    _check_finite(waveform, "samples")
    check_reading(path, facts.get("seconds"), facts["cut"], warnings)
    features = DualSSASTFeatureExtractor(max_length=64)(waveform[: 10 * RATE], RATE, return_tensors="pt")
    _check_finite(features["input_values"], "features")


def _upload(path: str, facts: dict, bases: Path, folder: Path, warnings: list[str]):
    page = app.results(path, [_page_model(str(bases / "dual_ssast"))])
    if "class=" not in page or ">nan" in page:
        raise Fault("non-finite", page[:2000])


_models = {}


def _page_model(folder: str):
    if folder not in _models:
        _models[folder] = app.Classifier("tiny", *load_classifier(folder, attn_implementation="eager"))
    return _models[folder]


def _manifest(path: str, facts: dict, bases: Path, folder: Path, warnings: list[str]):
    rows = {len(read) for read in _read_rows(path)}
    there = _rows_there(Path(path), facts)
    if there and not rows <= there and not warnings:
        raise Fault("silent", f"{rows} rows are read of {there}")


def _read_rows(path: str):
    refusal = None
    for load in (lambda: load_table(Path(path), Columns()), lambda: load_table_as_it_stands(Path(path))[0]):
        try:
            yield load()
        except InputError as error:
            refusal = error
    if refusal:
        raise refusal


def _rows_there(path: Path, facts: dict) -> set[int]:
    """Returns the numbers of rows that may be read from a table; empty where that is a question of the format."""
    content = path.read_bytes()
    if path.suffix in (".parquet", ".xlsx"):
        return {facts["rows"]} if facts["intact"] else set()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return set()
    if path.suffix == ".json":
        with contextlib.suppress(ValueError, RecursionError):
            rows = json.loads(text)
            if isinstance(rows, list):
                return {len(rows)}
        return set()
    if path.suffix == ".csv" and '"' in text:
        return set()
    lines = [text.split("\n"), text.splitlines(), text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    header = path.suffix != ".jsonl"
    # Blank lines are no rows, whichever way a reader defines them.
    return {
        sum(1 for line in split if line.strip(blank)) - header for split in lines for blank in ("\0", " \t", " ,;\t")
    }


def _recipe(path: str, facts: dict, bases: Path, folder: Path, warnings: list[str]):
    tasks.parse([path, "--output_dir", str(folder)])


def _convert(family: str, source: str, target: Path) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = convert([family, source, str(target)])
    if status == 0:
        return out.getvalue()
    line = err.getvalue().strip()
    if status != 1 or not line.startswith("error: ") or "\n" in line:
        raise Fault("error", f"status {status}: {line or 'without a line'}")
    raise Refused(line)


def _checkpoint(path: str, facts: dict, bases: Path, folder: Path, warnings: list[str]):
    _convert(facts["base"], path, folder / "out")
    _check_saved(folder / "out")
    if facts["checked"] and not facts["intact"] and _is_damaged(path):
        raise Fault("silent", "a checksum of the file is wrong, and it is converted")


def _is_damaged(path: str) -> bool:
    try:
        return zipfile.ZipFile(path).testzip() is not None
    except Exception:  # what zipfile cannot read is not for it to judge
        return False


def _check_saved(folder: Path):
    for name, tensor in load_file(folder / "model.safetensors").items():
        _check_finite(tensor.float(), name)


def _saved_folder(path: str, facts: dict, bases: Path, folder: Path, warnings: list[str]):
    """Puts the file into a copy of the saved folder that it belongs to, and uses that."""
    saved = folder / "saved"
    shutil.copytree(bases / facts["base"], saved)
    shutil.copyfile(path, saved / Path(path).name)
    if facts["base"] == "hf-ast":
        _convert("hf-ast", str(saved), folder / "out")
        _check_saved(folder / "out")
        return
    model, extractor = load_classifier(str(saved))
    clip = torch.from_numpy(tone(0.5, min(extractor.sampling_rate, 192000)))
    with torch.no_grad():
        logits = model.classify_windows(clip, extractor, sampling_rate=extractor.sampling_rate).logits
        _check_finite(logits.float(), "logits")
        features = extractor([clip], extractor.sampling_rate, return_tensors="pt")
        _check_finite(features["input_values"], "features")
    load_encoder(str(saved))


TARGETS: dict[str, Callable] = {
    "audio": _audio,
    "upload": _upload,
    "manifest": _manifest,
    "recipe": _recipe,
    "checkpoint": _checkpoint,
    "config": _saved_folder,
    "safetensors": _saved_folder,
}
