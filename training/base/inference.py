"""Loads finished classifiers and encoders; imports little but torch and transformers, so that programs start fast."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    ASTConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    PretrainedConfig,
)
from transformers.utils import logging

from hub.scan import UnsafeModelError, scan_model

# The import registers the Auto classes: no checkpoint's own code is needed.
from modeling_dual_ssast import ASiTConfig, DualSSASTConfig, PannsCnn14Config, VGGishConfig
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop

from ..data.labels import LabelSet
from ..errors import LIBRARY_ERRORS, InputError, nearest, one_line, short
from .finite import check_weights_finite

# Encoders of patches, for every task; the convolutional networks have no pretraining.
PATCH_MODEL_TYPES = (DualSSASTConfig.model_type, ASiTConfig.model_type)
MODEL_TYPES = (*PATCH_MODEL_TYPES, VGGishConfig.model_type, PannsCnn14Config.model_type)
ORIGINAL_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")
# Keys that may differ between a saved configuration and the one of the run that saved it.
VOLATILE_KEYS = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
NO_CHECKPOINT = "python -m conversion turns published checkpoints into folders (README.md, Where checkpoints come from)"


def check_checkpoint(name: str, option: str = "", revision: str = "main"):
    """
    Checks the name of a checkpoint and, before anything of it is loaded, what `from_pretrained` would take from it.

    Raises:
        InputError: an original checkpoint, a local path that does not exist (with the nearest folder), or a model that
            could run foreign code.
    """
    path = Path(name).expanduser()
    if path.suffix in ORIGINAL_SUFFIXES:
        raise InputError(
            f"{option}{name} is an original checkpoint; convert it with python -m conversion FAMILY {name} "
            "OUT, and name OUT (--help lists the families)"
        )
    if not path.exists():
        parent = path.parent
        folders = {other.name: other for other in parent.glob("*") if other.is_dir()} if parent.is_dir() else {}
        similar = nearest(path.name, folders)
        is_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or (path.parent.is_dir() and "/" in name)
        if is_local or similar:
            raise InputError(f"{option}{name} does not exist; {similar or NO_CHECKPOINT}")
    elif revision not in (None, "main"):
        raise InputError(f"{option}{name} is a local folder and has no revision {revision}; leave it out, or name main")
    scan(name, option, revision)


def scan(name: str, option: str = "", revision: str = "main", resumes: bool = False):
    """Raises `InputError` for a model that could run foreign code, see [`hub.scan.scan_model`]."""
    try:
        scan_model(name, revision, resumes=resumes)
    except UnsafeModelError as error:
        raise InputError(f"{option}{error}") from None


@contextlib.contextmanager
def explained(name: str, problem: str, remedy: str) -> Iterator[None]:
    """
    Silences Transformers' warnings and bars while the model `name` is loaded, and turns its errors into messages.

    Raises:
        InputError: `NAME: PROBLEM (reason); REMEDY`
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing weights are an error here, not a warning
    logging.disable_progress_bar()
    try:
        yield
    except LIBRARY_ERRORS as error:
        raise InputError(f"{name}: {problem} ({short(one_line(error))}); {remedy}") from error
    finally:
        logging.set_verbosity(verbosity)


def load_classifier(name: str, revision: str = "main", of_frames: bool = False, **settings):
    """
    Loads a classifier for inference in float32, on the accelerator if there is one, and its feature extractor.

    Args:
        name: folder or Hub name
        revision: branch, tag or commit on the Hub
        of_frames: also accepts a classifier of time frames
        settings: settings of `from_pretrained`, such as `attn_implementation`

    Raises:
        InputError: the model cannot be loaded, is of another kind, has an untrained classifier, or weights that are not
            finite.
    """
    check_checkpoint(name, revision=revision)
    with explained(name, "not a classifier that can be loaded", "name a folder or a Hub model"):
        is_of_frames = "FrameClassification" in str(check_folder(name, revision).get("architectures"))
        if is_of_frames and not of_frames:
            raise InputError(
                f"{name}: classifies time frames, not clips; give it recordings with predict_hf.py --events, or load "
                "it with AutoModelForAudioFrameClassification in Python"
            )
        extractor = AutoFeatureExtractor.from_pretrained(name, revision=revision)
        auto_class = AutoModelForAudioFrameClassification if is_of_frames else AutoModelForAudioClassification
        model, loading = auto_class.from_pretrained(
            name,
            revision=revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,  # also of a folder in float16: programs choose the number format of the computation
            **settings,
        )
        window_and_hop(model.base_model, extractor)  # an impossible length is an error before the first clip
    untrained = _not_loaded(loading)
    if untrained:
        raise InputError(
            f"{name}: has no trained classifier ({len(untrained)} weights are missing or of another size, such as "
            f"{untrained[0]}); fine-tune it with train_hf.py"
        )
    check_weights_finite(name, model)
    if is_of_frames:  # each label by itself, unless the configuration says otherwise
        model.config.problem_type = model.config.problem_type or "multi_label_classification"
    return _for_inference(model), extractor


def load_encoder(name: str, revision: str = "main", **changes):
    """
    Loads an encoder for inference in float32, on the accelerator if there is one. Callers explain its errors, see
    `explained`.

    Args:
        name: folder or Hub name
        revision: branch, tag or commit on the Hub
        changes: fields of the configuration to change

    Raises:
        OSError, ValueError, TypeError, SafetensorError: as `from_pretrained`
        InputError: encoder weights are not finite, or missing or mismatched (they would stay random). Fusion weights
            and attention may be missing: their initial weights are equal, and their norms have no effect.
    """
    model, loading = AutoModel.from_pretrained(
        name, revision=revision, output_loading_info=True, dtype=torch.float32, **changes
    )
    missing = [key for key in _not_loaded(loading) if not key.startswith(("fusion.", "attention."))]
    if missing:
        raise InputError(
            f"{name}: {len(missing)} weights are missing or of another size, such as {missing[0]}; convert or train it "
            "anew"
        )
    check_weights_finite(name, model)
    return _for_inference(model)


def _not_loaded(loading: dict) -> list[str]:
    """Returns the names of missing and mismatched weights from a loading report of Transformers."""
    return sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})


def _for_inference(model):
    return model.eval().to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")


def check_folder(name: str, revision: str = "main") -> dict:
    """
    Checks that a folder or Hub model is one of this project; returns its configuration as it is stored.

    Raises:
        InputError: the model is of another kind, or the folder has no feature extractor.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise InputError(f"{name}: has no config.json, so it is no model; {NO_CHECKPOINT}")
    stored, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    model_type = stored.get("model_type")
    if model_type == ASTConfig.model_type:
        raise InputError(
            f"{name}: model_type is {model_type!r}, expected {DualSSASTConfig.model_type!r}; convert the folder with "
            "python -m conversion hf-ast FOLDER OUT"
        )
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"{name}: not a model that can be loaded (model_type is {model_type!r}, expected one of "
            f"{', '.join(MODEL_TYPES)}); SSAST and AST models are converted with python -m conversion"
        )
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").exists():
        raise InputError(f"{name}: has no preprocessor_config.json; copy the one that was saved with the model")
    return stored


def labels_of(name: str, config: DualSSASTConfig) -> LabelSet:
    """
    Returns the model's classes and kind of problem, by Transformers' convention if the configuration names none.

    Raises:
        InputError: the model is a regression with several numbers per clip.
    """
    problem_type = config.problem_type
    if problem_type is None:
        problem_type = "regression" if config.num_labels == 1 else "single_label_classification"
    if problem_type != "regression":
        return LabelSet(tuple(config.id2label[index] for index in range(config.num_labels)), problem_type)
    if config.num_labels > 1:
        raise InputError(f"{name}: gives {config.num_labels} numbers per clip, but one can be shown; call the model")
    return LabelSet(("value",), problem_type)
