"""Loads and checks a checkpoint's configuration and feature extractor; computes statistics of the clips."""

import contextlib
import os
from collections.abc import Iterator

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedModel
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor
from modeling_dual_ssast.configuration_composed import ComposedConfig
from modeling_dual_ssast.configuration_dual_ssast import published_classifier
from modeling_dual_ssast.embedding_dual_ssast import window_and_hop

from ..data.arguments import ClipArguments, FeatureArguments
from ..data.labels import LabelSet
from ..errors import LIBRARY_ERRORS, InputError, one_line, short
from .arguments import EncoderArguments, ModelArguments
from .finite import check_weights_finite
from .inference import MODEL_TYPES, NO_CHECKPOINT, check_checkpoint

# Weights that may be missing from a checkpoint: fusion and classifiers.
NEW_WEIGHTS = (
    "classifier.", "dual_ssast.fusion.", "composed_classifier.", "audioset_classifier.", "panns_cnn14.embedding.",
    "panns_cnn14.attention.", "vggish.attention.",
)  # fmt: skip

logger = logging.get_logger(__name__)


def load_config(model_arguments: EncoderArguments, model_types: tuple[str, ...] = MODEL_TYPES):
    """
    Loads the checkpoint's configuration; returns `None` for random weights.

    Raises:
        InputError: a checkpoint that does not exist, cannot be loaded, or is of another model type.
    """
    name = model_arguments.model_name_or_path
    if name is None:
        return None
    check_checkpoint(name, "model_name_or_path: ", model_arguments.model_revision)
    try:
        config = AutoConfig.from_pretrained(name, revision=model_arguments.model_revision)
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"model_name_or_path: {name} cannot be loaded ({short(one_line(error))}); name a folder or a Hub model; "
            f"{NO_CHECKPOINT}"
        ) from error
    if config.model_type not in model_types:
        raise InputError(
            f"model_name_or_path: {name} is a {config.model_type} model, not one of {', '.join(model_types)}; convert "
            "original checkpoints with python -m conversion"
        )
    return config


@contextlib.contextmanager
def blames_model(model_arguments: EncoderArguments) -> Iterator[None]:
    """Turns what libraries raise while a model is made into `InputError`: its settings, or a damaged checkpoint."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        name = model_arguments.model_name_or_path
        other = f", or take another checkpoint than {name}" if name else ""
        raise InputError(f"model: {short(one_line(error))}; correct the settings of the model{other}") from error


def config_changes(model_arguments: EncoderArguments, config) -> dict:
    """
    Returns the configuration fields that the recipe sets, under the names of this model type.

    Raises:
        InputError: a field that this model type lacks.
    """
    changes = model_arguments.overrides()
    mlp_layers = changes.pop("mlp_layers", None)
    if isinstance(config, ComposedConfig):
        changes = _composed_changes(changes, config)
    if mlp_layers is not None:
        with blames_model(model_arguments):
            fused_size = type(config).from_dict(config.to_dict() | changes).fused_size
        changes |= published_classifier(fused_size, mlp_layers)
    return changes


def _composed_changes(changes: dict, config) -> dict:
    changes.pop("max_length", None)  # the network has no limit; the feature extractor keeps it
    if "pooling" in changes:
        changes["temporal_pooling"] = changes.pop("pooling")
    unknown = changes.keys() - config.to_dict().keys()
    if unknown:
        raise InputError(f"{min(unknown)}: a {config.model_type} model has no such setting; leave it out")
    return changes


def load_feature_extractor(
    model_arguments: EncoderArguments, data_arguments: FeatureArguments, config_class=DualSSASTConfig
) -> DualSSASTFeatureExtractor:
    """Loads the checkpoint's feature extractor, or makes one; applies the recipe's length, mean and std."""
    wanted = {"max_length": model_arguments.overrides().get("max_length")}
    wanted |= {"mean": data_arguments.mean, "std": data_arguments.std}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    name = model_arguments.model_name_or_path
    if name is None:
        bins = model_arguments.overrides().get("num_mel_bins", config_class().num_mel_bins)
        wanted.setdefault("max_length", config_class().max_length)
        try:
            return DualSSASTFeatureExtractor(sampling_rate=data_arguments.sampling_rate, num_mel_bins=bins, **wanted)
        except ValueError as error:
            raise InputError(f"features: {error}") from error
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, revision=model_arguments.model_revision, **wanted)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model_name_or_path: {name} has no feature extractor that can be loaded ({reason})"
        ) from error
    given = [name for name in ("mean", "std") if name in wanted]
    if given and not isinstance(extractor, DualSSASTFeatureExtractor):
        raise InputError(f"{given[0]}: {type(extractor).__name__} does not normalise; leave it out")
    return extractor


def load_model(
    model_arguments: ModelArguments, stored_config, labels: LabelSet, auto_class=AutoModelForAudioClassification
) -> PreTrainedModel:
    """
    Returns the classifier to train: the checkpoint with the recipe's changes; or, with a warning, a Dual SSAST with
    random weights.

    Args:
        stored_config: as `load_config` returns it
        auto_class: of clips or of time frames

    Raises:
        InputError: impossible settings, or a checkpoint without weights that fit the encoder.
    """
    config = DualSSASTConfig() if stored_config is None else stored_config
    overrides = (
        {"event_detection": None}
        | config_changes(model_arguments, config)
        | {
            "id2label": labels.id2label,
            "label2id": labels.label2id,
            "problem_type": labels.problem_type,
            "calibration_temperature": 1.0,  # fine-tuning invalidates an earlier calibration
            "decision_thresholds": None,
        }
    )
    with blames_model(model_arguments):
        if stored_config is None:
            attention = overrides.pop("attn_implementation", None)
            model = auto_class.from_config(
                DualSSASTConfig(**overrides), **({"attn_implementation": attention} if attention else {})
            )
            warn_of_random_weights(model)
            return model
        model, report = auto_class.from_pretrained(
            model_arguments.model_name_or_path,
            revision=model_arguments.model_revision,
            dtype=torch.float32,  # also of a folder in float16: its steps would be lost in rounding
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **overrides,
        )
    new = mismatched(report) | set(report["missing_keys"])
    check_weights(model_arguments, {key for key in new if not key.startswith(NEW_WEIGHTS)})
    check_weights_finite(f"model_name_or_path: {model_arguments.model_name_or_path}", model)
    if hasattr(model.base_model, "fusion") and any(
        getattr(stored_config, name) != getattr(model.config, name) for name in ("fused_layers", "fusion")
    ):
        model.base_model.reset_fusion()  # its weights were trained for other layers, or another formula
    if stored_config.id2label != labels.id2label and not new:  # the same number of classes, but different ones
        logger.warning("The checkpoint's classifier has other classes: a new one takes its place.")
        model.reset_classifier()
    model.config.event_detection = overrides["event_detection"]  # the recipe's, which a new classifier drops
    return model


def warn_of_random_weights(model):
    """Warns, in the main process, that a training starts from random weights, and points to checkpoints."""
    if os.environ.get("RANK", "0") == "0":
        count = sum(parameter.numel() for parameter in model.parameters())
        logger.warning(
            f"Training {count:,} random weights: model_name_or_path can name a checkpoint to start from; "
            f"{NO_CHECKPOINT}"
        )


def mismatched(report: dict) -> set[str]:
    """Returns the names of the weights with other shapes than the model's, from a loading report."""
    return {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]}


def check_weights(model_arguments: EncoderArguments, foreign: set[str]):
    """Raises `InputError` if encoder weights (`foreign`) are missing or do not fit: they would silently stay random."""
    if foreign:
        raise InputError(
            f"model_name_or_path: {model_arguments.model_name_or_path} has no weights that fit {min(foreign)}; check "
            "config_overrides against the checkpoint's configuration"
        )


def compute_statistics(waveforms, num_clips: int, extractor: DualSSASTFeatureExtractor) -> DualSSASTFeatureExtractor:
    """
    Returns the feature extractor with the mean and standard deviation of the log-mels of `waveforms`, each (samples,).

    Raises:
        InputError: no clip, only silence, or a feature extractor that does not normalise.
    """
    if not isinstance(extractor, DualSSASTFeatureExtractor):
        raise InputError(f"compute_statistics: {type(extractor).__name__} does not normalise; leave it out")
    count, total, squares = 0, 0.0, 0.0
    for waveform in tqdm(waveforms, total=num_clips, desc="computing statistics", leave=False):
        log_mel = extractor.log_mel([torch.tensor(waveform)])[0].double()
        count += log_mel.numel()
        total += float(log_mel.sum())
        squares += float(log_mel.square().sum())
    if not count:
        raise InputError("compute_statistics: no clip could be read; check the recordings")
    mean = total / count
    std = max(squares / count - mean**2, 0.0) ** 0.5
    if std == 0.0:
        raise InputError("compute_statistics: all clips are silent; check the recordings")
    return DualSSASTFeatureExtractor.from_dict(extractor.to_dict() | {"mean": mean, "std": std})


def with_statistics(extractor: DualSSASTFeatureExtractor, datasets: dict) -> DualSSASTFeatureExtractor:
    """Returns the feature extractor with the statistics of the training clips, and gives it to all data sets."""
    extractor = compute_statistics(datasets["train"].waveforms(), datasets["train"].num_clips, extractor)
    for dataset in datasets.values():
        dataset.feature_extractor = extractor
    return extractor


def choose_windows(encoder, extractor, data_arguments: ClipArguments) -> tuple[int, int]:
    """
    Returns window and hop of the evaluation, in samples.

    Raises:
        InputError: a window above the model's longest input, or a hop that skips audio.
    """
    try:
        return window_and_hop(encoder, extractor, data_arguments.window_s, data_arguments.hop_s)
    except ValueError as error:
        raise InputError(str(error)) from error
