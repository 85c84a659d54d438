"""
Converts ASiT as PretrainedSED publishes it (Schmid et al., ICASSP 2025; github.com/fschmid56/PretrainedSED): the
encoder alone, with a classifier of clips (weak) or of frames (strong).
"""

from pathlib import Path

import torch
from torch import nn

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTForAudioClassification,
    DualSSASTForAudioFrameClassification,
    DualSSASTModel,
)

from . import deit
from .checkpoint import ConversionError, Tensors
from .labels import label_notes, label_settings
from .options import Options
from .result import Converted, build_model, dtype_notes, make_feature_extractor

KIND = "an ASiT checkpoint of PretrainedSED"
PREFIX = ("cls_token",)
SAMPLING_RATE, CLIP_S = 16000, 10
NUM_FRAMES = 998  # of 10 s
STORED_ROWS, STORED_COLUMNS = 8, 37  # as the original reads its positions
NUM_LABEL_FRAMES, LABEL_HOP_S = 250, 0.04  # of the heads; the original rounds the hop
MEDIAN_FRAMES = 9  # of the filter of the strong head's scores
HEADS = {"classification": "weak_head", "frame-classification": "strong_head"}
CLASSES = {"weak_head": 527, "strong_head": 447}
# All tokens attend to the padding, which is samples of zeros.
READOUT = {
    "readout": "tokens",
    "num_token_frames": NUM_LABEL_FRAMES,
    "fusion_layers": [-1],
    "attention_over_padding": True,
    "classifier_layer_norm_eps": None,
    "problem_type": "multi_label_classification",
}


def is_pretrained_sed(state: dict) -> bool:
    """Returns whether a state dict has the names of PretrainedSED's files, or of a training with its code."""
    return any(str(name) in ("model.pos_embed", "model.model.asit.pos_embed") for name in state)


def convert(source: Path, state: dict, options: Options) -> Converted:
    """Converts a state dict; raises `ConversionError` if it or the options are wrong."""
    if any(str(name).startswith("model.model.") for name in state):
        raise ConversionError(
            f"{source} is a Lightning file of a training with PretrainedSED: save its model.model.asit.* as model.* "
            "and its heads in a file of their own with torch.save, and convert that"
        )
    tensors = Tensors({str(name).removeprefix("model."): tensor for name, tensor in state.items()}, source, KIND)
    if tensors.names("seq_model."):
        raise ConversionError(
            f"{source} has a recurrent head (seq_model), which no model here has; name a file without"
        )
    task = options.task or _find_task(tensors)
    if task == "pretraining":
        raise ConversionError(f"{source} holds one encoder without pretext heads: --task encoder takes it")
    if task not in HEADS and options.labels is not None:
        raise ConversionError(f"--labels {options.labels} names no outputs of an encoder; leave it out")
    sizes = deit.read_sizes(tensors, "", PREFIX)
    grid, notes = _place_positions(tensors, options)
    kernels = tensors.state["patch_embed.proj.weight"]
    tensors.state["patch_embed.proj.weight"] = kernels.transpose(2, 3).contiguous()  # (time, mel) -> (mel, time)
    head = HEADS.get(task)
    if head is None:
        config = DualSSASTConfig(**sizes, **grid, attention_over_padding=True)
        weights, model_class = deit.map_encoder(tensors, config, "", PREFIX), DualSSASTModel
    else:
        tensors.require(f"{head}.weight", f"{head}.bias")
        num_labels = tensors.shape(f"{head}.weight", 2)[0]
        labels = label_settings(source, num_labels, options.labels)
        is_strong = head == "strong_head"
        hop_s = LABEL_HOP_S if is_strong else None
        own = {"frame_hop_s": hop_s, "event_detection": {"median_steps": MEDIAN_FRAMES} if is_strong else None}
        config = DualSSASTConfig(**{**sizes, **grid, **labels, **READOUT, **own})
        encoder = deit.map_encoder(tensors, config, "", PREFIX)
        weights = {f"dual_ssast.{name}": tensor for name, tensor in encoder.items()} | {
            "classifier.dense.weight": tensors.take(f"{head}.weight", num_labels, config.hidden_size),
            "classifier.dense.bias": tensors.take(f"{head}.bias", num_labels),
        }
        notes += label_notes(num_labels, are_named=options.labels is not None)
        if not is_strong:
            notes.append(
                "the file does not store the order of its classes: that of AudioSet's class_labels_indices.csv is "
                "likely. A clip of speech shows it: class 0 is Speech there"
            )
        model_class = DualSSASTForAudioFrameClassification if is_strong else DualSSASTForAudioClassification
    spare = [name for other in CLASSES if other != head for name in tensors.names(f"{other}.")]
    tensors.drop(spare, "a head that the task does not use")
    tensors.finish()
    extractor = make_feature_extractor(
        config, **options.statistics, sampling_rate=SAMPLING_RATE, min_samples=CLIP_S * SAMPLING_RATE
    )
    if options.max_length not in (None, NUM_FRAMES):
        extractor.min_samples = extractor.num_samples(options.max_length)
    return Converted(
        model=build_model(model_class, config, weights),
        feature_extractor=extractor,
        title=f"ASiT of PretrainedSED, {'encoder alone' if head is None else head.replace('_', ' ')}",
        notes=[*notes, "clips are padded with zero samples, as in the original", *dtype_notes(tensors)],
        dropped=tensors.dropped,
        new=[],
    )


def _find_task(tensors: Tensors) -> str:
    """Returns the task of the head whose number of classes is the published one; `encoder` without a head."""
    held = [head for head in CLASSES if tensors.names(f"{head}.")]
    tensors.require(*(f"{head}.weight" for head in held))
    published = [head for head in held if tensors.shape(f"{head}.weight", 2)[0] == CLASSES[head]]
    if not held:
        return "encoder"
    if len(published) != 1:
        raise ConversionError(
            f"{tensors.path} holds {' and '.join(held)}, and the number of classes leaves open which one was trained: "
            "give --task classification (weak) or --task frame-classification (strong)"
        )
    return next(task for task, head in HEADS.items() if head == published[0])


def _place_positions(tensors: Tensors, options: Options) -> tuple[dict, list[str]]:
    """
    Places the positions in `tensors` on a frequency-major grid, and returns the grid with notes.

    The original declares a grid of 8 x 37 in (frequency, time), but its tokens are time-major: it stretches the 8 rows
    along time and the 37 columns along frequency. Its classifiers were trained so. At exactly 592 frames it takes the
    positions as they are stored, 37 along time and 8 along frequency.
    """
    num_patches = tensors.shape("pos_embed", 3)[1] - len(PREFIX)
    if num_patches != STORED_ROWS * STORED_COLUMNS:
        raise ConversionError(
            f"{tensors.path} is not {KIND}: pos_embed holds {num_patches} patches, expected "
            f"{STORED_ROWS * STORED_COLUMNS}"
        )
    num_frames = options.max_length or NUM_FRAMES
    columns, rows = num_frames // 16, deit.NUM_MEL_BINS // 16
    if not columns:
        raise ConversionError(f"{tensors.path}: --max-length {num_frames} is shorter than a patch; give 16 or more")
    for name, stride in (("frequency", options.frequency_stride), ("time", options.time_stride)):
        if stride not in (None, 16):
            raise ConversionError(
                f"{tensors.path}: --{name}-stride {stride} is not 16, the stride of ASiT; leave it out"
            )
    prefix, stored = tensors.state["pos_embed"].float().split((len(PREFIX), num_patches), dim=1)
    if num_frames == STORED_COLUMNS * 16:
        placed = stored.unflatten(1, (columns, rows))  # (1, time, frequency, size)
        note = f"positions as stored, {columns} columns x {rows} rows"
    else:
        placed = stored.unflatten(1, (STORED_ROWS, STORED_COLUMNS)).permute(0, 3, 1, 2)  # (1, size, 8, 37)
        scale = (columns / STORED_ROWS, rows / STORED_COLUMNS)
        placed = nn.functional.interpolate(placed, scale_factor=scale, mode="bicubic", align_corners=False)
        if placed.shape[2:] != (columns, rows):
            raise ConversionError(f"{tensors.path}: --max-length {options.max_length} does not fit; leave it out")
        placed = placed.permute(0, 2, 3, 1)  # (1, time, frequency, size)
        note = (
            f"positions read as {STORED_ROWS} along time x {STORED_COLUMNS} along frequency and stretched to {columns} "
            f"x {rows}, as the original does except at 592 frames (--max-length 592)"
        )
    tensors.state["pos_embed"] = torch.cat((prefix, placed.transpose(1, 2).flatten(1, 2)), dim=1)
    grid = {"num_mel_bins": deit.NUM_MEL_BINS, "max_length": num_frames, "frequency_stride": 16, "time_stride": 16}
    return grid, [note]
