"""Writes the output folder of a run: every file is complete before it takes its place."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..errors import InputError, one_line
from ..files import LOCK, check_writable
from . import open_set
from .arguments import TrainingArguments
from .inference import scan
from .progress import is_metric
from .resumption import STATE, check_random_states, folder_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.get_logger(__name__)
STAGING_NAME = "unfinished-outputs"
EARLIER = "earlier-results.json"  # the results of a run while another one takes its place
WRITTEN = ("output_dir", "run_name", "logging_dir")  # options that name what a run writes; run_name may be output_dir
FIGURES = (
    "learning_curves", "reconstruction", "layer_weights", "confusion_matrix", "predicted_numbers", "calibration",
    "confusion_in_time", "threshold_curves", "health",
)  # fmt: skip
# Outputs that some runs lack: those of an earlier run in the same folder have to be removed.
OPTIONAL_OUTPUTS = (
    "predictions.csv",
    "events.csv",
    "confusion_matrix.csv",
    "health.csv",
    "probe.csv",
    "report.html",
    "adapter",  # LoRA's
    open_set.FILE,
    *(f"{name}.{ending}" for name in FIGURES for ending in ("png", "pdf", "svg")),
)


def check_output_folder(arguments: TrainingArguments) -> str | None:
    """
    Returns the checkpoint to resume from, or `None` for a new run.

    Raises:
        InputError: the folder cannot be written; holds a run, while overwrite is not set and no checkpoint in it is to
            be resumed; or the checkpoint could run foreign code.
    """
    checkpoint = _find_checkpoint(arguments)
    if checkpoint is not None:
        scan(checkpoint, resumes=True)
        check_random_states(checkpoint)
    return checkpoint


def _find_checkpoint(arguments: TrainingArguments) -> str | None:
    if not arguments.output_dir:
        raise InputError("output_dir: is not set; name the folder that the run writes to")
    folder = Path(arguments.output_dir)
    check_writable(folder, is_folder=True)
    resume = arguments.resume_from_checkpoint
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    named = str(resume) if resume and str(resume).lower() not in ("true", "false") else None
    if named is not None:
        if not Path(named).is_dir():
            raise InputError(f"resume_from_checkpoint: {named} is no folder; name a checkpoint-N folder, or true")
        # A folder without a state is no checkpoint: `check_same_run` refuses it.
        if folder_of(named) == os.path.realpath(folder) or not Path(named, STATE).exists():
            return named
    elif resume and str(resume).lower() == "true":
        if last is None and (folder / "results.json").exists():
            raise InputError(f"{folder}: holds a finished run without checkpoints; set overwrite to begin anew")
        return last  # a run that was stopped before its first checkpoint begins anew
    if not arguments.overwrite and (last or (folder / "results.json").exists()):
        raise InputError(
            f"{folder}: holds a run already; add --resume_from_checkpoint true to go on with it, --overwrite true to "
            "begin anew, or choose another output_dir"
        )
    return named


def check_free(folder: Path, what: str, overwrite: bool):
    """Raises `InputError` if a folder cannot be written, or holds a run, called `what`, and `overwrite` is not set."""
    check_writable(folder, is_folder=True)
    holds_run = (folder / "results.json").exists() or (folder.is_dir() and get_last_checkpoint(folder))
    if holds_run and not overwrite:
        raise InputError(
            f"{folder}: holds a {what} already; add --overwrite true to begin anew, or choose another output_dir"
        )


def check_inputs(parts: Iterable):
    """
    Checks that a run does not replace or remove what it reads.

    Args:
        parts: the argument objects of its task

    Raises:
        InputError: an option names a file or folder in the output folder that the run writes or removes, or something
            below it; or the output folder itself although it holds such files and no earlier run, or the model that
            a task reads without training it.
    """
    parts = list(parts)
    given = [(field.name, getattr(part, field.name)) for part in parts for field in dataclasses.fields(part)]
    folder = next((value for name, value in given if name == "output_dir" and value), None)
    if folder is None or not Path(folder).is_dir():
        return
    own = {os.path.realpath(Path(folder, name)): name for name in (*OPTIONAL_OUTPUTS, "results.json", EARLIER)}
    held = [name for path, name in own.items() if os.path.exists(path)]
    folders = [name for part in parts for name in getattr(part, "written_folders", ())]
    trains = any(isinstance(part, TrainingArguments) for part in parts)
    own |= {os.path.realpath(Path(folder, name)): name for name in folders}
    for name, value in given:
        for text in value if isinstance(value, list) else [value]:
            if name in WRITTEN or not isinstance(text, str) or not os.path.exists(text):
                continue
            place = os.path.realpath(text)
            if name == "model_name_or_path" and place == os.path.realpath(folder) and not trains:
                raise InputError(f"{name}: is output_dir too, whose files the run replaces; choose another output_dir")
            is_folder = place == os.path.realpath(folder) and held and not {"results.json", EARLIER} & set(held)
            lost = next((name for path, name in own.items() if Path(place).is_relative_to(path)), None)
            if lost or is_folder:
                lost = lost or held[0]
                raise InputError(
                    f"{name}: the run would replace {Path(folder, lost)}, which it reads; choose another output_dir"
                )


@contextlib.contextmanager
def written_alone(parts: Iterable) -> Iterator[None]:
    """
    Keeps other tasks away from the output folder of this one: both would write the same unfinished files, and results
    that belong to the other's weights. Where the file system has no locks, nothing is kept away.

    Args:
        parts: the argument objects of its task; the main process takes the lock

    Raises:
        InputError: another process writes to the folder.
    """
    output_dir = next((part.output_dir for part in parts if getattr(part, "output_dir", None)), None)
    if fcntl is None or output_dir is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(output_dir)
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except (OSError, ValueError):  # the task says what is wrong with the folder
        yield
        return
    try:
        # Not `flock`: the workers of a data loader, which outlive a killed process by seconds, would hold it too.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise InputError(f"{folder}: is being written by another process; choose another output_dir") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(file)
        for path in missing:
            with contextlib.suppress(OSError):  # it holds a run
                path.rmdir()


def write_results(results: dict, folder: Path):
    """Writes `results.json`; undefined numbers (NaN) become null."""
    text = json.dumps(without_nan(results), indent=2, default=str)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def dispensable(name: str) -> Iterator[None]:
    """Warns if a picture or a page of a finished run fails, which must not cost the run its model and results."""
    try:
        yield
    except Exception as error:
        text = f"{name} is left out ({type(error).__name__}: {error}); the model and results.json are complete"
        logger.warning(one_line(text))


def new_staging(folder: Path) -> Path:
    """Returns the empty folder below an output folder in which a run collects its outputs."""
    staging = folder / STAGING_NAME
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def publish(staging: Path, folder: Path, own: Iterable[str] = ()):
    """
    Moves complete outputs to `folder`, `results.json` last, and removes optional ones of an earlier run: those that
    several tasks have, and the task's `own`.
    """
    if (folder / "results.json").exists() or (folder / EARLIER).exists():  # else such files are not those of a run
        for name in (*OPTIONAL_OUTPUTS, *own):
            if not (staging / name).exists():
                _remove(folder / name)
    for path in sorted(staging.iterdir(), key=lambda path: (path.name == "results.json", path.name)):
        if path.is_dir():  # a rename cannot replace a folder
            _remove(folder / path.name)
        os.replace(path, folder / path.name)
    _remove(folder / EARLIER)
    shutil.rmtree(staging)


def begin_anew(folder: Path):
    """
    Moves `results.json` of an earlier run aside, which `publish` then removes. Called before the work of a run that
    overwrites: if it is stopped, the same command without overwrite goes on with what it has stored.
    """
    if (folder / "results.json").exists():
        os.replace(folder / "results.json", folder / EARLIER)


def earlier_results(folder: Path) -> dict:
    """Returns the results of the run that wrote a folder, also of one that was stopped in `publish`; empty for none."""
    for path in (folder / "results.json", folder / EARLIER, folder / STAGING_NAME / "results.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if isinstance(found := json.loads(path.read_text(encoding="utf-8")), dict):
                return found
    return {}


def _remove(path: Path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def describe_recipe(*arguments) -> dict[str, dict]:
    """
    Returns argument class -> its values.

    arguments: dataclass objects of a task, such as `DataArguments`; `to_dict` converts `TrainingArguments`
    """
    return {part.stored_as or type(part).__name__: dataclasses.asdict(part) for part in arguments}


def without_nan(value):
    """Replaces NaN by `None`, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kept_epoch(trainer) -> float | None:
    """Returns the epoch of the best checkpoint if the model has its weights; `None` if it has the last ones."""
    state = trainer.state
    if not trainer.args.load_best_model_at_end or state.best_model_checkpoint is None:
        return None
    return next((entry["epoch"] for entry in state.log_history if entry["step"] == best_step(state)), None)


def best_step(state) -> int:
    """Returns the step of the best checkpoint. `best_global_step` can be that of a better evaluation between two."""
    return int(Path(state.best_model_checkpoint).name.rpartition("-")[2])


def clean_metrics(metrics: dict, split: str) -> dict[str, float]:
    """Returns the metrics without the prefix of the split and without timings (these depend on the machine)."""
    metrics = {key.removeprefix(f"{split}_"): value for key, value in metrics.items()}
    return {key: value for key, value in metrics.items() if is_metric(key) or key == "loss"}
