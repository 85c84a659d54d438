"""Exports saved folders as files of the SSAST repository, or of the Dual SSAST authors' one (PhDHyosunChoi/hssast)."""

import dataclasses
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from hub.finite import non_finite_weights
from hub.scan import scan_model
from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
)
from modeling_dual_ssast.configuration_dual_ssast import PUBLISHED_MLP_LAYERS, PUBLISHED_POOLINGS
from training.files import UNFINISHED, check_writable

from . import deit, dual_ssast, ssast
from .checkpoint import ConversionError, shorten
from .options import Options
from .saving import compare_states

MODELS = {model.__name__: model for model in (DualSSASTForPreTraining, DualSSASTForAudioClassification)}
TIMM_CLASSES = 1000  # outputs of `v.head` and `v.head_dist`, which the original never calls
ORIGINAL_WIDTHS = (192, 384, 768)  # tiny, small, base
UNTRAINED_HEADS = {"generative": "cpredlayer", "discriminative": "gpredlayer"}
FINETUNING_TASKS = {"patches": "ft_avgtok", "prefix": "ft_cls"}


@dataclasses.dataclass
class Exported:
    """
    Holds an exported checkpoint.

    model: the saved model
    state: the original's names -> tensors
    facts: lines to print, as (word, text)
    """

    model: PreTrainedModel
    state: dict[str, torch.Tensor]
    facts: list[tuple[str, str]]


def export(source: str, target: Path, verify: bool = False, overwrite: bool = False) -> list[tuple[str, str]]:
    """
    Writes the checkpoint file, whole or not at all.

    Args:
        source: a folder or Hub repository of a `DualSSASTForPreTraining`, or of a `DualSSASTForAudioClassification`
            with one of SSAST's readouts
        verify: read the file back as `conversion ssast` does and compare every tensor

    Returns:
        lines to print, as (word, text)

    Raises:
        ConversionError: SSAST's files cannot hold the model, or the source or the target is wrong.
    """
    check_target(source, target, overwrite)
    exported = make_checkpoint(source)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent) as stage:
        path = Path(stage, target.name)
        torch.save(exported.state, path)
        if verify:
            count, worst = compare_exported(exported.model, path)
            exported.facts.append(("verified", f"{count} tensors read back, largest difference {worst:g}"))
        os.replace(path, target)
    return [*exported.facts, ("saved", f"{target} ({len(exported.state)} tensors)")]


def check_target(source: str, target: Path, overwrite: bool):
    """
    Checks the path to write to.

    Raises:
        InputError: the folder of `target` cannot be written.
        ConversionError: `target` exists and may not be replaced, is a folder, or lies in the source.
    """
    check_writable(target.parent, is_folder=True)
    if target.is_dir():
        raise ConversionError(f"{target} is a folder, but a checkpoint file is written: give a name like {target}.pth")
    if Path(source).resolve() in target.resolve().parents:
        raise ConversionError(f"{target} lies in the source {source}: choose another output file")
    if target.exists() and not overwrite:
        raise ConversionError(f"{target} exists: choose another file or add --overwrite")


def make_checkpoint(source: str) -> Exported:
    """Makes the state dict that the original's DataParallel model would have saved, on the CPU and in float32."""
    model = _read_model(source)
    weights = _float32_state(model)
    if problem := non_finite_weights(weights):
        raise ConversionError(f"{source}: {problem}; take an earlier checkpoint")
    config = model.config
    is_classifier = isinstance(model, DualSSASTForAudioClassification)
    system = "Dual SSAST" if is_classifier and is_dual(config) else "SSAST"
    _check(source, config, is_classifier, system)
    state = _encoder(weights, config) | (_classifier(weights, config) if is_classifier else _pretext(weights, config))
    if weights:  # an error in the mapping, not in the user's folder
        raise RuntimeError(f"the mapping leaves out {list(weights)}")
    kind = "fine-tuned" if is_classifier else "pretrained"
    facts = [("source", source), ("holds", f"{type(model).__name__}, exported as {system}'s {kind} model")]
    facts += [("note", note) for note in _notes(source, model)]
    state = {f"module.{name}": tensor.contiguous() for name, tensor in state.items()}
    return Exported(model, state, facts)


def _read_model(source: str) -> PreTrainedModel:
    scan_model(source)
    stored, _ = DualSSASTConfig.get_config_dict(source)
    model_type, architecture = stored.get("model_type"), (stored.get("architectures") or [None])[0]
    if model_type != DualSSASTConfig.model_type or architecture not in MODELS:
        raise ConversionError(
            f"{source} holds a {architecture} of model_type {model_type!r}, but SSAST's files hold a "
            f"{' or a '.join(MODELS)}"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the error below replaces the table that Transformers would print
    try:
        model, info = MODELS[architecture].from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (ValueError, SafetensorError) as error:
        raise ConversionError(f"{source} cannot be read: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    misshapen = {name for name, *_ in info["mismatched_keys"]}
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"], *misshapen})
    if wrong:
        raise ConversionError(f"{source} contradicts its config.json: {shorten(wrong)} missing, unknown or misshapen")
    return model.eval()


def _float32_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().float() for name, tensor in model.state_dict().items()}


def _check(source: str, config: DualSSASTConfig, is_classifier: bool, system: str):
    """Raises `ConversionError` for settings that the original's constructor fixes and its files do not store."""
    size = config.hidden_size
    needed = {
        "num_prefix_tokens": [2],
        "hidden_act": ["gelu"],
        "layer_norm_eps": [deit.LAYER_NORM_EPS],
        "qkv_bias": [True],
        "hidden_size": [-(-size // deit.HEAD_SIZE) * deit.HEAD_SIZE],
        "num_attention_heads": [size // deit.HEAD_SIZE],
        "intermediate_size": [4 * size],
    }
    needed |= (
        _needed_by_classifier(config) if is_classifier else {"num_decoder_layers": [0], "clip_contrast_weight": [0]}
    )
    needed |= {"classifier": ["linear"]} if is_classifier else {}
    for name, values in needed.items():
        value = getattr(config, name)
        if value not in values:
            raise ConversionError(
                f"{source} has {name}={value!r}, which {system} cannot hold: it needs {' or '.join(map(repr, values))}"
            )


def is_dual(config: DualSSASTConfig) -> bool:
    """Returns whether a classifier is exported to the code of the Dual SSAST authors."""
    return config.fusion_norm == "shared_twice"


def published_name(config: DualSSASTConfig) -> str:
    """Returns the published name of a classifier's pooling."""
    return next(name for name, pooling in PUBLISHED_POOLINGS.items() if pooling == config.pooling_per_layer[0])


def _needed_by_dual(config: DualSSASTConfig) -> dict[str, list]:
    needed = {
        "fused_layers": [config.default_fusion_layers(config.num_hidden_layers)],
        "fusion": ["concat"],
        "readout": ["patches"],
        "pooling_combination": ["sum"],
        "pooling_per_layer": [[pooling] * 2 for pooling in PUBLISHED_POOLINGS.values()],
        "classifier_hidden_sizes": [[config.fused_size] * (layers // 2 - 1) for layers in PUBLISHED_MLP_LAYERS],
        "classifier_layer_norm_eps": [1e-5],
        "num_mel_bins": [deit.NUM_MEL_BINS],
    }
    return needed | ({"classifier_activation": [None]} if config.classifier_hidden_sizes else {})


def _needed_by_classifier(config: DualSSASTConfig) -> dict[str, list]:
    if is_dual(config):
        return _needed_by_dual(config)
    needed = {
        "fused_layers": [[config.num_hidden_layers]],
        "fusion_norm": ["shared"],
        "fusion": ["concat", "sum"],  # identical for one layer
        "readout": list(FINETUNING_TASKS),
        "pooling_per_layer": [[["mean"]]],
        "classifier_hidden_sizes": [[]],
        "classifier_layer_norm_eps": [1e-5],
        "num_mel_bins": [deit.NUM_MEL_BINS],  # fine-tuned files do not store it
    }
    if config.readout == "prefix":
        del needed["pooling_per_layer"]  # no pooling
    return needed


def _encoder(weights: dict, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """Removes the encoder from `weights` and returns it: the original's name -> tensor."""
    own = "dual_ssast."
    tokens = weights.pop(f"{own}embeddings.prefix_tokens").split(1, dim=1)  # (1, 1, hidden) each
    state = {f"v.{name}": token for name, token in zip(deit.DISTILLED, tokens)}
    state |= {f"v.{original}": weights.pop(own + name) for original, name in deit.OUTER_NAMES.items()}
    for index in range(config.num_hidden_layers):
        block, target = f"{own}layers.{index}.", f"v.blocks.{index}."
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{block}{name}.{kind}") for name in deit.QKV_NAMES]
            state[f"{target}attn.qkv.{kind}"] = torch.cat(parts)
            for original, name in deit.BLOCK_NAMES.items():
                state[f"{target}{original}.{kind}"] = weights.pop(f"{block}{name}.{kind}")
    for head in ("head", "head_dist"):
        state[f"v.{head}.weight"] = torch.zeros(TIMM_CLASSES, config.hidden_size)
        state[f"v.{head}.bias"] = torch.zeros(TIMM_CLASSES)
    return state


def _pretext(weights: dict, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """Removes the pretext heads and the mask token from `weights` and returns them, with the two sizes of the input."""
    state = {
        "mask_embed": weights.pop("mask_token").view(1, 1, -1),
        "p_input_fdim": torch.tensor(config.num_mel_bins),
        "p_input_tdim": torch.tensor(config.max_length),
    }
    for original, name in ssast.PRETEXT_HEADS.items():
        for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
            state[f"{original}.{part}"] = weights.pop(f"{name}.{part}")
    return state


def _classifier(weights: dict, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """Removes the classifier from `weights` and returns it: the original's name -> tensor."""
    return {
        f"{original}.{kind}": weights.pop(f"{name}.{kind}")
        for original, name in deit.classifier_names(config).items()
        for kind in ("weight", "bias")
    }


def _notes(source: str, model: PreTrainedModel) -> list[str]:
    config = model.config
    notes = ["v.head and v.head_dist are zeros: the original makes them and never calls them"]
    if (config.hidden_size, config.num_hidden_layers) not in ((width, 12) for width in ORIGINAL_WIDTHS):
        notes.append(
            f"the original builds 12 blocks that are {', '.join(map(str, ORIGINAL_WIDTHS))} wide: for "
            f"{config.num_hidden_layers} blocks of {config.hidden_size} its constructor needs a change"
        )
    if isinstance(model, DualSSASTForAudioClassification):
        task = FINETUNING_TASKS[config.readout]
        if is_dual(config):
            mlp_layers = 2 * len(config.classifier_hidden_sizes) + 2
            task += f", comp_fusion 'True', pooling_ty {published_name(config)}, mlp_layers {mlp_layers}"
        notes.append(
            "the file stores neither readout, grid nor labels: build the original's ASTModel with task "
            f"{task}, fstride {config.frequency_stride}, tstride {config.time_stride}, "
            f"input_tdim {config.max_length}, label_dim {config.num_labels}, labels in the order of config.json"
        )
    elif config.pretraining_objective in UNTRAINED_HEADS:
        head = UNTRAINED_HEADS[config.pretraining_objective]
        notes.append(f"{head} is untrained: pretraining_objective was {config.pretraining_objective!r}")
    if not config.attention_over_padding:
        notes.append(
            f"SSAST pads every clip to {config.max_length} frames and attends to the padding: its results for shorter "
            "clips differ from this model's"
        )
    if model.dtype != torch.float32:
        notes.append(f"weights stored as {str(model.dtype).removeprefix('torch.')} are written as float32")
    return notes + _feature_notes(source)


def _feature_notes(source: str) -> list[str]:
    try:
        extractor = DualSSASTFeatureExtractor.from_pretrained(source)
    except OSError:
        return []
    if not extractor.do_normalize:
        return ["the features were not normalised: SSAST's data loader needs skip_norm"]
    note = f"SSAST's data loader needs mean {extractor.mean:g} and std {extractor.std:g}"
    return [note if extractor.sampling_rate == 16000 else f"{note}, and audio at {extractor.sampling_rate} Hz"]


def compare_exported(model: PreTrainedModel, path: Path) -> tuple[int, float]:
    """
    Reads a file back through `conversion ssast` or `dual-ssast` and compares every tensor with the model's.

    Returns:
        number of tensors, largest absolute difference (always 0)

    Raises:
        ConversionError: a tensor is missing, new or different.
    """
    config = model.config
    options = {name: getattr(config, name) for name in ("max_length", "frequency_stride", "time_stride")}
    family = ssast
    if isinstance(model, DualSSASTForAudioClassification) and is_dual(config):
        family, options["pooling"] = dual_ssast, published_name(config)
    return compare_states(_float32_state(model), family.convert(path, Options(**options)).model.state_dict())
