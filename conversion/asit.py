"""
Converts checkpoints of ASiT's pretraining (Atito et al., IEEE/ACM TASLP 2024; github.com/Sara-Ahmed/ASiT).

The original's patches are time-major: token = time * rows + row, with kernels (time, mel). This project's are
frequency-major, with kernels (mel, time).
"""

import argparse
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast import ASiTConfig, ASiTForPreTraining, DualSSASTConfig, DualSSASTModel

from . import deit, pretrained_sed
from .checkpoint import ConversionError, Tensors, find_state_dict, read_checkpoint
from .options import LABELS, LARGEST, Family, Options, grid, statistics, task
from .result import Converted, build_model, dtype_notes, make_feature_extractor, resize
from .ssast import check_strides

KIND = "an ASiT checkpoint"
NETWORKS = ("teacher", "student")
SAMPLING_RATE = 32000  # of the original's data, in Hz
BACKBONE = "backbone."
PREFIX = ("cls_token",)
HEADS = ("head_cls.", "head_recons.")
# Layers 0, 2 and 4 of the two MLPs: the original's name -> this project's.
MLPS = {"head_cls.mlp": "mlp", "head_recons.mlp": "reconstruction.mlp"}
# The original's buffers: name in the file -> (the loss that contains it, this project's name).
CENTERS = {"loss_cls": "class_center", "loss_data": "data_center"}
# Settings of the original's command line that `ASiTConfig` has too.
ARGUMENTS = {
    "drop_path_rate": "drop_path_rate",
    "warmup_teacher_temp": "warmup_teacher_temperature",
    "teacher_temp": "teacher_temperature",
    "warmup_teacher_temp_epochs": "warmup_teacher_temperature_epochs",
    "momentum_teacher": "teacher_momentum",
    "drop_type": "corruption",
    "drop_perc": "corruption_fraction",
    "drop_replace": "replacement_fraction",
    "drop_align": "corruption_align",
}


def _allowed() -> tuple:
    """
    Returns the classes and functions that the training script's file needs beside tensors and containers: for its
    command line, and for learning rates and weight decays as NumPy scalars. None can run code.
    """
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # numpy 1 and 2
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    return (
        argparse.Namespace,
        np.dtype,
        *((scalar, name) for name in names),
        *(type(np.dtype(kind)) for kind in kinds),
    )


@dataclasses.dataclass
class Checkpoint:
    """
    Holds the content of a checkpoint file.

    networks: `teacher` and `student`, or one of them, already frequency-major
    sizes: keywords of `DualSSASTConfig`, sizes and grid of the encoder
    centers: this project's name -> tensor (1, outputs); empty if the file has none
    arguments: the original's command line, empty if the file has none
    epoch: the next one
    training: names beside the networks that only a pretraining model uses
    dropped: names that no model uses, and why
    """

    path: Path
    networks: dict[str, Tensors]
    sizes: dict
    centers: dict[str, torch.Tensor]
    arguments: dict
    epoch: int
    training: list[str]
    dropped: list[tuple[str, str]]


def convert(source: Path, options: Options) -> Converted:
    """Converts a checkpoint of ASiT's training; raises `ConversionError` if the file or the options are wrong."""
    content = read_checkpoint(source, _allowed())
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if isinstance(state, dict) and pretrained_sed.is_pretrained_sed(state):
        if options.weights is not None:
            raise ConversionError(f"--weights {options.weights}: {source} holds one network; leave it out")
        return pretrained_sed.convert(source, state, options)
    if options.labels is not None:
        raise ConversionError(f"--labels {options.labels} names no outputs: {source} has no classifier; leave it out")
    checkpoint = read(source, content)
    if options.task in pretrained_sed.HEADS:
        raise ConversionError(f"{source} has no classifier: --task encoder takes it for a fine-tuning")
    return (_convert_encoder if options.task == "encoder" else _convert_pretraining)(checkpoint, options)


def read(source: Path, content) -> Checkpoint:
    """Reads the content of a file of the training script, or the state dict of one network, read as the teacher."""
    if not isinstance(content, dict) or not any(name in content for name in NETWORKS):
        state, beside = find_state_dict(content, source)
        content = {"teacher": state, **{name: content.get(name) for name in beside}}
    networks = {name: _open(source, content, name) for name in NETWORKS if name in content}
    arguments = _read_arguments(content)
    sizes = [_make_frequency_major(tensors, arguments) for tensors in networks.values()]
    if sizes[0] != sizes[-1]:
        differing = [name for name in sizes[0] if sizes[0][name] != sizes[1][name]]
        raise ConversionError(f"{source} contradicts itself: teacher and student differ in {', '.join(differing)}")
    beside = [str(name) for name in content if name not in (*NETWORKS, *CENTERS, "args", "epoch")]
    return Checkpoint(
        path=source,
        networks=networks,
        sizes=sizes[0],
        centers=_read_centers(source, content),
        arguments=arguments,
        epoch=Tensors(content, source, KIND).take_integer("epoch") if "epoch" in content else 0,
        training=[name for name in content if name in (*CENTERS, "epoch")],
        dropped=[(", ".join(beside), "stored beside the weights")] if beside else [],
    )


def _open(source: Path, content: dict, name: str) -> Tensors:
    """Opens the state dict `name` of a file."""
    return Tensors(find_state_dict(content[name], source)[0], source, f"the {name} of {KIND}")


def _read_arguments(content: dict) -> dict:
    arguments = vars(content["args"]) if isinstance(content.get("args"), argparse.Namespace) else {}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}


def _read_centers(source: Path, content: dict) -> dict[str, torch.Tensor]:
    centers = {}
    for loss, name in CENTERS.items():
        if loss in content:
            tensors = _open(source, content, loss)
            tensors.require("center")
            centers[name] = tensors.take("center", *tensors.shape("center", 2))
            tensors.finish()
    return centers


def _make_frequency_major(tensors: Tensors, arguments: dict) -> dict:
    """Transposes patches, positions and kernels in `tensors`, and returns the encoder's sizes and its grid."""
    sizes = deit.read_sizes(tensors, BACKBONE, PREFIX)
    patch_frames, patch_mels = deit.patch_shape(sizes)  # of the kernels, which are (time, mel) here
    sizes["patch_size"] = patch_mels if patch_mels == patch_frames else [patch_mels, patch_frames]
    num_mel_bins = _argument(tensors.path, arguments, "num_mel_bins", deit.NUM_MEL_BINS, is_whole=True)
    positions = tensors.state[f"{BACKBONE}pos_embed"]
    num_patches = tensors.shape(f"{BACKBONE}pos_embed", 3)[1] - len(PREFIX)
    rows = num_mel_bins // patch_mels
    columns = num_patches // max(rows, 1)
    num_frames = _argument(tensors.path, arguments, "num_frames", columns * patch_frames, is_whole=True)
    if rows * columns != num_patches or num_frames // patch_frames != columns or not num_patches:
        raise ConversionError(
            f"{tensors.path} contradicts itself: {num_frames} frames and {num_mel_bins} mel bins make {rows} x "
            f"{num_frames // patch_frames} patches of {patch_mels} x {patch_frames}, but {BACKBONE}pos_embed of "
            f"{tensors.kind} holds {num_patches}"
        )
    prefix, grid = positions.split((len(PREFIX), num_patches), dim=1)
    grid = grid.unflatten(1, (columns, rows)).transpose(1, 2).flatten(1, 2)  # (1, rows * columns, hidden)
    tensors.state[f"{BACKBONE}pos_embed"] = torch.cat((prefix, grid), dim=1)
    for name in (f"{BACKBONE}patch_embed.proj.weight", "head_recons.convTrans.weight"):
        kernels = tensors.state.get(name)
        # `take` reports anything else.
        if isinstance(kernels, torch.Tensor) and kernels.ndim == 4 and kernels.layout == torch.strided:
            tensors.state[name] = kernels.transpose(2, 3).contiguous()
    strides = {"frequency_stride": patch_mels, "time_stride": patch_frames}
    return sizes | strides | {"num_mel_bins": num_mel_bins, "max_length": num_frames}


def _argument(path: Path, arguments: dict, name: str, default: float = 0, is_whole: bool = False):
    """Returns a number of the original's command line."""
    value = arguments.get(name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    if not is_number or (is_whole and value % 1):  # NaN is not up to any number
        raise ConversionError(
            f"{path}: args.{name} is {value!r:.50}, expected a number up to {LARGEST}"
            f"{' without a fraction' if is_whole else ''}: correct it, or remove it from the file's args"
        )
    return int(value) if is_whole else value


def _choose(checkpoint: Checkpoint, name: str) -> Tensors:
    if name not in checkpoint.networks:
        held = " and ".join(checkpoint.networks)
        raise ConversionError(f"{checkpoint.path} holds no {name}, only the {held}: give --weights {held}")
    return checkpoint.networks[name]


# ---- one network's encoder ----


def _convert_encoder(checkpoint: Checkpoint, options: Options) -> Converted:
    name = options.weights or "teacher"
    tensors = _choose(checkpoint, name)
    config = DualSSASTConfig(**checkpoint.sizes)
    weights = deit.map_encoder(tensors, config, BACKBONE, PREFIX)
    tensors.drop([n for head in HEADS for n in tensors.names(head)], "heads, which only --task pretraining keeps")
    tensors.finish()
    extractor, notes = _make_extractor(checkpoint, config, options)
    model = build_model(DualSSASTModel, config, weights)
    notes += resize(model, options)
    extractor.max_length = model.config.max_length
    others = [*(other for other in checkpoint.networks if other != name), *checkpoint.training]
    return Converted(
        model=model,
        feature_extractor=extractor,
        title=f"ASiT's {name}, encoder alone",
        notes=[
            *notes,
            "AutoModelForAudioClassification loads the folder too, with a new classifier (num_labels=...)",
            *dtype_notes(tensors),
        ],
        dropped=[
            *checkpoint.dropped,
            *([(", ".join(others), "of the pretraining, which only --task pretraining keeps")] if others else []),
            *tensors.dropped,
        ],
        new=[],
    )


# ---- both networks with their heads ----


def _convert_pretraining(checkpoint: Checkpoint, options: Options) -> Converted:
    check_strides(checkpoint.path, deit.patch_shape(checkpoint.sizes), options, "take the encoder with --task encoder")
    names = {role: options.weights or role for role in NETWORKS}  # role -> the network it starts from
    config = _pretraining_config(checkpoint, _choose(checkpoint, names["teacher"]))
    states = {name: _map_network(_choose(checkpoint, name), config) for name in dict.fromkeys(names.values())}
    (teacher, teacher_heads), (student, student_heads) = states[names["teacher"]], states[names["student"]]
    parts = {"dual_ssast": teacher, "teacher_heads": teacher_heads, "student": student, "student_heads": student_heads}
    weights = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    centers, new = _map_centers(checkpoint, config)
    weights |= centers | {"teacher_temperature": torch.tensor(config.teacher_temperature_at(checkpoint.epoch))}
    extractor, notes = _make_extractor(checkpoint, config, options)
    model = build_model(ASiTForPreTraining, config, weights)
    notes += resize(model, options)
    extractor.max_length = model.config.max_length
    if options.weights:
        notes.append(f"teacher and student both start from the {options.weights}")
    notes += [
        f"the next epoch is {checkpoint.epoch}, counted from 0: the teacher's temperature is set for it",
        "--task encoder gives the teacher's encoder alone, for fine-tuning",
    ]
    used = [checkpoint.networks[name] for name in states]
    dropped = list(checkpoint.dropped)
    dropped += [(name, "not chosen with --weights") for name in checkpoint.networks if name not in states]
    return Converted(
        model=model,
        feature_extractor=extractor,
        title="ASiT model, pretraining",
        notes=notes + list(dict.fromkeys(n for tensors in used for n in dtype_notes(tensors))),
        dropped=dropped,
        new=new,
    )


def _pretraining_config(checkpoint: Checkpoint, tensors: Tensors) -> ASiTConfig:
    layers = ("head_cls.cls_layer.weight_v", "head_cls.data_layer.weight_v")
    mlps = [f"{mlp}.{layer}.weight" for mlp in MLPS for layer in (0, 4)]
    tensors.require(*layers, *mlps)
    outputs = [tensors.shape(name, 2)[0] for name in (*layers, *mlps)]
    names = (
        "class_dim",
        "data_dim",
        "head_hidden_size",
        "head_bottleneck_size",
        "reconstruction_hidden_size",
        "reconstruction_bottleneck_size",
    )
    arguments = checkpoint.arguments
    given = {
        name: arguments[original] if name == "corruption" else _argument(checkpoint.path, arguments, original)
        for original, name in ARGUMENTS.items()
        if original in arguments
    }
    try:
        return ASiTConfig(**checkpoint.sizes, **dict(zip(names, outputs)), **given)
    except ValueError as error:
        raise ConversionError(
            f"{checkpoint.path} holds settings that cannot be kept: {error}; --task encoder needs none of them"
        ) from error


def _map_network(tensors: Tensors, config: ASiTConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Maps the weights of an encoder and of its `ASiTHeads`: own name -> tensor each."""
    encoder = deit.map_encoder(tensors, config, BACKBONE, PREFIX)
    size, bottleneck = config.hidden_size, config.head_bottleneck_size
    wide, narrow = config.reconstruction_hidden_size, config.reconstruction_bottleneck_size
    widths = (size, config.head_hidden_size, config.head_hidden_size, bottleneck), (size, wide, wide, narrow)
    heads = {}
    for (original, name), sizes in zip(MLPS.items(), widths):
        for layer, (inputs, outputs) in zip((0, 2, 4), itertools.pairwise(sizes)):
            heads[f"{name}.{layer}.weight"] = tensors.take(f"{original}.{layer}.weight", outputs, inputs)
            heads[f"{name}.{layer}.bias"] = tensors.take(f"{original}.{layer}.bias", outputs)
    for original, name, outputs in (
        ("head_cls.cls_layer", "class_layer", config.class_dim),
        ("head_cls.data_layer", "data_layer", config.data_dim),
    ):
        heads[f"{name}.scale"] = tensors.take(f"{original}.weight_g", outputs, 1)
        heads[f"{name}.direction"] = tensors.take(f"{original}.weight_v", outputs, bottleneck)
    unpatch = "head_recons.convTrans"
    heads["reconstruction.unpatch.weight"] = tensors.take(f"{unpatch}.weight", narrow, 1, *config.patch_shape)
    heads["reconstruction.unpatch.bias"] = tensors.take(f"{unpatch}.bias", 1)
    tensors.finish()
    return encoder, heads


def _map_centers(checkpoint: Checkpoint, config: ASiTConfig) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Maps the two centres, own name -> tensor (1, outputs), with a note for each that the file lacks."""
    shapes = {"class_center": (1, config.class_dim), "data_center": (1, config.data_dim)}
    centers, new = {}, []
    for name, shape in shapes.items():
        if name not in checkpoint.centers:
            new.append(f"{name}: zeros, as at the start of a training; the file does not hold it")
        centers[name] = checkpoint.centers.get(name, torch.zeros(shape))
        if tuple(centers[name].shape) != shape:
            raise ConversionError(
                f"{checkpoint.path} contradicts itself: {name} has shape {tuple(centers[name].shape)}, expected {shape}"
            )
    return centers, new


# ---- features ----


def _make_extractor(checkpoint: Checkpoint, config: DualSSASTConfig, options: Options):
    """Makes the feature extractor of the original's front end; returns it with its notes."""
    statistics = options.statistics
    for name in ("mean", "std"):
        if name not in statistics and f"data_{name}" in checkpoint.arguments:
            statistics[name] = _argument(checkpoint.path, checkpoint.arguments, f"data_{name}")
    try:
        extractor = make_feature_extractor(config, **statistics, sampling_rate=SAMPLING_RATE)
    except ValueError as error:
        raise ConversionError(f"{checkpoint.path}: {error}; --mean and --std replace its args") from error
    return extractor, [
        f"ASiT takes audio at {SAMPLING_RATE} Hz: the feature extractor refuses other rates, so resample first"
    ]


FAMILY = Family(
    name="asit",
    source="a .pth file of the ASiT repository, with student and teacher, or ASIT_*.pt of PretrainedSED",
    convert=convert,
    options={
        **task(
            "pretraining",
            "encoder",
            *pretrained_sed.HEADS,
            text="what to make; default: what the file holds; encoder: one network alone, to be fine-tuned; "
            "classification and frame-classification: the weak and the strong head of PretrainedSED",
        ),
        "weights": {"choices": NETWORKS, "help": "the network to take; default: both, or teacher"},
        **grid("resize to it"),
        **LABELS,
        **statistics("the file's, else AudioSet's"),
    },
)
