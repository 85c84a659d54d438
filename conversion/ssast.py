"""Converts checkpoints of SSAST (Gong et al., AAAI 2022; github.com/YuanGongND/ssast): patch and frame models."""

import functools
from pathlib import Path

import torch

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification, DualSSASTForPreTraining

from . import deit
from .checkpoint import ConversionError, Tensors, open_checkpoint
from .labels import name_settings, read_labels
from .options import LABELS, Family, Options, grid, statistics, task
from .result import Converted, build_model, dtype_notes, make_feature_extractor, resize

PRETEXT_HEADS = {"cpredlayer": "discriminative_head", "gpredlayer": "generative_head"}
PRETEXT_NAMES = (*(f"{head}." for head in PRETEXT_HEADS), "mask_embed")
# The original's `ft_avgtok`: it pads every clip and attends to the padding.
SSAST_READOUT = {
    "fusion_layers": [-1],
    "pooling": ["mean"],
    "readout": "patches",
    "attention_over_padding": True,
}


def convert(source: Path, options: Options) -> Converted:
    """Converts a checkpoint of SSAST; raises `ConversionError` if the file or the options are wrong."""
    tensors = open_checkpoint(source, "an SSAST checkpoint")
    sizes = deit.read_sizes(tensors)
    if tensors.names("mlp_head."):
        return _convert_fine_tuned(tensors, sizes, options)
    missing = [name for name in ("p_input_fdim", "p_input_tdim") if name not in tensors]
    if missing:
        raise ConversionError(
            f"{source} is not an SSAST checkpoint: missing {' and '.join(missing)} of a pretrained file and "
            "mlp_head.1.weight of a fine-tuned one"
        )
    return _convert_pretrained(tensors, sizes, options)


def _convert_pretrained(tensors: Tensors, sizes: dict, options: Options) -> Converted:
    num_mel_bins, num_frames = tensors.take_integer("p_input_fdim"), tensors.take_integer("p_input_tdim")
    tensors.dropped.append(("p_input_fdim, p_input_tdim", "became num_mel_bins and max_length"))
    wants_classifier = options.task == "classification"
    config = _pretrained_config(tensors, sizes, num_mel_bins, num_frames)
    if wants_classifier:
        if options.labels is None:
            raise ConversionError(
                f"{tensors.path} is pretrained and has no classifier: --task classification needs --labels FILE to "
                "make a new one"
            )
        config = DualSSASTConfig(**_grid_settings(config), **sizes, **name_settings(read_labels(options.labels)))
    else:
        _check_pretraining_options(tensors, deit.patch_shape(sizes), options)
    weights = deit.map_distilled(tensors, config)
    if wants_classifier:
        pretext = [name for prefix in PRETEXT_NAMES for name in tensors.names(prefix)]
        tensors.drop(pretext, "pretext heads, which only --task pretraining keeps")
    else:
        weights |= _map_pretext(tensors, config)
    tensors.finish()
    model_class = DualSSASTForAudioClassification if wants_classifier else DualSSASTForPreTraining
    model = build_model(model_class, config, weights, new=("classifier.",) if wants_classifier else ())
    notes = resize(model, options)
    new = []
    if wants_classifier:
        new.append(f"classifier for {model.config.num_labels} labels: random; train it before you use it")
    else:
        notes.append("AutoModelForAudioClassification loads the folder too, with a new classifier (num_labels=...)")
    return Converted(
        model=model,
        feature_extractor=make_feature_extractor(model.config, **options.statistics),
        title=f"SSAST {_kind(sizes)} model, pretrained",
        notes=notes + dtype_notes(tensors),
        dropped=tensors.dropped,
        new=new,
    )


def _pretrained_config(tensors: Tensors, sizes: dict, num_mel_bins: int, num_frames: int) -> DualSSASTConfig:
    patch = deit.patch_shape(sizes)
    grid = {
        "num_mel_bins": num_mel_bins,
        "max_length": num_frames,
        "frequency_stride": patch[0],  # SSAST's pretraining has patches side by side
        "time_stride": patch[1],
    }
    try:
        config = DualSSASTConfig(**grid, **sizes)
    except ValueError as error:
        raise ConversionError(f"{tensors.path} contradicts itself: {error}") from error
    num_patches = deit.count_patches(tensors)
    if config.num_patches != num_patches:
        rows, columns = config.grid_shape
        raise ConversionError(
            f"{tensors.path} contradicts itself: p_input_fdim {num_mel_bins} and p_input_tdim {num_frames} make {rows} "
            f"x {columns} patches of {patch[0]} x {patch[1]}, but v.pos_embed holds {num_patches}"
        )
    return config


def _check_pretraining_options(tensors: Tensors, patch: tuple[int, int], options: Options):
    if options.labels is not None:
        raise ConversionError(
            f"--labels {options.labels} names no outputs of a pretraining model: add --task classification"
        )
    check_strides(tensors.path, patch, options, "make a classifier with --task classification --labels FILE")


def check_strides(path: Path, patch: tuple[int, int], options: Options, remedy: str):
    """Raises `ConversionError` if the options ask for overlapping patches (mel bins, frames) in a pretraining model."""
    strides = zip(("frequency", "time"), (options.frequency_stride, options.time_stride), patch)
    overlapping = [f"--{axis}-stride {stride}" for axis, stride, side in strides if stride not in (None, side)]
    if overlapping:
        raise ConversionError(
            f"{path} becomes a pretraining model, which needs patches side by side (strides {patch[0]} x {patch[1]}), "
            f"got {' '.join(overlapping)}: leave it out, or {remedy}"
        )


def _grid_settings(config: DualSSASTConfig) -> dict:
    return {name: getattr(config, name) for name in ("num_mel_bins", "max_length", "frequency_stride", "time_stride")}


def _map_pretext(tensors: Tensors, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """Maps the pretext heads and the mask token: own name -> tensor."""
    size, values = config.hidden_size, config.patch_shape[0] * config.patch_shape[1]
    state = {"mask_token": tensors.take("mask_embed", 1, 1, size).flatten()}
    _merge_linears(tensors, size)
    for original, name in PRETEXT_HEADS.items():
        for layer, outputs in ((0, size), (2, values)):
            state[f"{name}.{layer}.weight"] = tensors.take(f"{original}.{layer}.weight", outputs, size)
            state[f"{name}.{layer}.bias"] = tensors.take(f"{original}.{layer}.bias", outputs)
    return state


def _merge_linears(tensors: Tensors, size: int):
    """
    Merges the first two Linears of a generative head of the Dual SSAST authors' pretraining, which has three with
    nothing between the first two, into one.
    """
    if "gpredlayer.3.weight" not in tensors:
        return
    (first, bias), (second, second_bias) = (
        (tensors.take(f"gpredlayer.{layer}.weight", size, size), tensors.take(f"gpredlayer.{layer}.bias", size))
        for layer in (0, 1)
    )
    merged = second.double() @ first.double(), second.double() @ bias.double() + second_bias.double()
    for kind, tensor in zip(("weight", "bias"), merged):
        tensors.state[f"gpredlayer.0.{kind}"] = tensor.float()
        tensors.state[f"gpredlayer.2.{kind}"] = tensors.state.pop(f"gpredlayer.3.{kind}", None)
    tensors.dropped.append(("gpredlayer.1", "merged into the Linear before it: nothing stands between the two"))


def _convert_fine_tuned(tensors: Tensors, sizes: dict, options: Options) -> Converted:
    if options.task == "pretraining":
        raise ConversionError(
            f"{tensors.path} is fine-tuned: it has a classifier (mlp_head) and no pretext heads, so it cannot become a "
            "pretraining model; leave --task out"
        )
    patch = deit.patch_shape(sizes)
    is_frame = patch[0] == deit.NUM_MEL_BINS
    strides = (deit.NUM_MEL_BINS, 1) if is_frame else (min(10, patch[0]), min(10, patch[1]))
    title = f"SSAST {_kind(sizes)} model, fine-tuned"
    tensors.require("mlp_head.0.weight")
    if tensors.shape("mlp_head.0.weight", 1)[0] == 2 * sizes["hidden_size"]:
        raise ConversionError(
            f"{tensors.path} has a classifier of twice {sizes['hidden_size']} inputs: it is a Dual SSAST; its family "
            "is dual-ssast"
        )
    make = functools.partial(DualSSASTConfig, **SSAST_READOUT)
    converted = deit.convert_classifier(tensors, sizes, options, make, strides, title)
    converted.notes.append(
        "the file does not store its readout: the mean over the patches (ft_avgtok) is assumed; for ft_cls load it "
        "with readout='prefix'. Files of the AST repository look the same: their family is ast"
    )
    return converted


def _kind(sizes: dict) -> str:
    return "frame" if deit.patch_shape(sizes)[0] == deit.NUM_MEL_BINS else "patch"


FAMILY = Family(
    name="ssast",
    source="a .pth file of the SSAST repository: patch or frame model, pretrained or fine-tuned",
    convert=convert,
    options={
        **task("pretraining", "classification", text="what to make; default: what the file holds"),
        **grid("pretrained files are resized to it; it describes fine-tuned files, which do not store it"),
        **LABELS,
        **statistics(),
    },
)
