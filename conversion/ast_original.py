"""Checkpoints of AST (Gong, Chung, Glass, Interspeech 2021; github.com/YuanGongND/ast)."""

from pathlib import Path

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification

from . import deit
from .checkpoint import Tensors, find_state_dict, read_checkpoint
from .grids import read_grid
from .labels import label_notes, label_settings
from .result import Converted, build_model, dtype_notes, make_feature_extractor

NUM_MEL_BINS = 128
# The mean of class and distillation token; clips are padded and the padding is attended to.
AST_CLASSIFIER = {"fusion_layers": [-1], "pooling": ["mean"], "readout": "prefix", "attention_over_padding": True}


def convert(
    source: Path,
    max_length: int | None = None,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    labels: Path | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> Converted:
    """
    Args:
        source: the .pth file
        max_length, frequency_stride, time_stride: frames, mel bins, frames; describe the file, which does not tell
        labels: a label file
        mean, std: of the feature extractor; AudioSet's by default

    Raises:
        ConversionError: in one line, what is wrong with the file or the options.
    """
    state, beside = find_state_dict(read_checkpoint(source), source)
    tensors = Tensors(state, source, "an AST checkpoint")
    sizes = deit.read_sizes(tensors)
    if beside:
        tensors.dropped.append((", ".join(beside), "stored beside the weights"))
    num_labels = deit.count_labels(tensors)
    patch = sizes["patch_size"]
    grid, notes = read_grid(
        source,
        deit.count_patches(tensors),
        (patch, patch) if isinstance(patch, int) else tuple(patch),
        NUM_MEL_BINS,
        recipe_strides=(10, 10),
        frequency_stride=frequency_stride,
        time_stride=time_stride,
        max_length=max_length,
    )
    config = DualSSASTConfig(
        **sizes,
        **AST_CLASSIFIER,
        **label_settings(source, num_labels, labels),
        num_mel_bins=NUM_MEL_BINS,
        max_length=grid.max_length,
        frequency_stride=grid.frequency_stride,
        time_stride=grid.time_stride,
    )
    weights = deit.map_encoder(tensors, config) | deit.map_classifier(tensors, config)
    tensors.finish()
    notes.append(f"the file does not tell its mel bins: {NUM_MEL_BINS}")
    model = build_model(DualSSASTForAudioClassification, config, weights)
    return Converted(
        model=model,
        feature_extractor=make_feature_extractor(config, mean, std),
        title="AST patch model, fine-tuned",
        notes=notes + label_notes(num_labels, are_named=labels is not None) + dtype_notes(tensors),
        dropped=tensors.dropped,
        new=[],
    )
