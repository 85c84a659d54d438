"""Checkpoints of SSAST (Gong et al., AAAI 2022; github.com/YuanGongND/ssast): patch and frame models."""

from pathlib import Path

from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification, DualSSASTForPreTraining

from . import deit
from .checkpoint import ConversionError, Tensors, find_state_dict, read_checkpoint
from .grids import read_grid
from .labels import label_notes, label_settings, name_settings, read_labels
from .result import Converted, build_model, dtype_notes, make_feature_extractor, resize

NUM_MEL_BINS = 128  # of all published checkpoints; fine-tuned files do not tell
PRETEXT_NAMES = ("cpredlayer.", "gpredlayer.", "mask_embed")
# The original's `ft_avgtok`, which pads every clip and attends to the padding.
ORIGINAL_CLASSIFIER = {
    "fusion_layers": [-1],
    "pooling": ["mean"],
    "readout": "patches",
    "attention_over_padding": True,
}


def convert(
    source: Path,
    task: str | None = None,
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
        task: `pretraining` or `classification`; by default what the file holds
        max_length, frequency_stride, time_stride: frames, mel bins, frames. Of a pretrained file, whose own grid is
            known, they are what it is resized to; of a fine-tuned file they describe the file.
        labels: a label file, needed for `classification` from a pretrained file
        mean, std: of the feature extractor; AudioSet's by default

    Raises:
        ConversionError: in one line, what is wrong with the file or the options.
    """
    state, beside = find_state_dict(read_checkpoint(source), source)
    tensors = Tensors(state, source, "an SSAST checkpoint")
    sizes = deit.read_sizes(tensors)
    if beside:
        tensors.dropped.append((", ".join(beside), "stored beside the weights"))
    is_fine_tuned = bool(tensors.names("mlp_head."))
    if not is_fine_tuned:
        missing = [name for name in ("p_input_fdim", "p_input_tdim") if name not in tensors]
        if missing:
            raise ConversionError(
                f"{source} is not an SSAST checkpoint: missing {' and '.join(missing)} of a pretrained file and "
                "mlp_head.1.weight of a fine-tuned one"
            )
        return _convert_pretrained(tensors, sizes, task, max_length, frequency_stride, time_stride, labels, mean, std)
    if task == "pretraining":
        raise ConversionError(
            f"{source} is fine-tuned: it has a classifier (mlp_head) and no pretext heads, so it cannot become a "
            "pretraining model; leave --task out"
        )
    return _convert_fine_tuned(tensors, sizes, max_length, frequency_stride, time_stride, labels, mean, std)


def _convert_pretrained(tensors, sizes, task, max_length, frequency_stride, time_stride, labels, mean, std):
    num_mel_bins, num_frames = tensors.take_integer("p_input_fdim"), tensors.take_integer("p_input_tdim")
    tensors.dropped.append(("p_input_fdim, p_input_tdim", "became num_mel_bins and max_length"))
    wants_classifier = task == "classification"
    config = _pretrained_config(tensors, sizes, num_mel_bins, num_frames)
    if wants_classifier:
        if labels is None:
            raise ConversionError(
                f"{tensors.path} is pretrained and has no classifier: --task classification needs --labels FILE to "
                "make a new one"
            )
        config = DualSSASTConfig(**_grid_settings(config), **sizes, **name_settings(read_labels(labels)))
    elif labels is not None:
        raise ConversionError(f"--labels {labels} names no outputs of a pretraining model: add --task classification")
    weights = deit.map_encoder(tensors, config)
    if wants_classifier:
        pretext = [name for prefix in PRETEXT_NAMES for name in tensors.names(prefix)]
        tensors.drop(pretext, "pretext heads, which only --task pretraining keeps")
    else:
        weights |= _map_pretext(tensors, config)
    tensors.finish()
    model_class = DualSSASTForAudioClassification if wants_classifier else DualSSASTForPreTraining
    model = build_model(model_class, config, weights, new=("classifier.",) if wants_classifier else ())
    notes = resize(model, max_length, frequency_stride, time_stride)
    new = []
    if wants_classifier:
        new.append(f"classifier for {model.config.num_labels} labels: random, and to be trained before it is of use")
    else:
        notes.append("AutoModelForAudioClassification loads the folder too, with a new classifier (num_labels=...)")
    return Converted(
        model=model,
        feature_extractor=make_feature_extractor(model.config, mean, std),
        title=f"SSAST {_kind(config)} model, pretrained",
        notes=notes + dtype_notes(tensors),
        dropped=tensors.dropped,
        new=new,
    )


def _pretrained_config(tensors: Tensors, sizes: dict, num_mel_bins: int, num_frames: int) -> DualSSASTConfig:
    patch = sizes["patch_size"]
    patch = (patch, patch) if isinstance(patch, int) else patch
    grid = {
        "num_mel_bins": num_mel_bins,
        "max_length": num_frames,
        "frequency_stride": patch[0],  # SSAST pretrains on patches side by side
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


def _grid_settings(config: DualSSASTConfig) -> dict:
    return {name: getattr(config, name) for name in ("num_mel_bins", "max_length", "frequency_stride", "time_stride")}


def _map_pretext(tensors: Tensors, config: DualSSASTConfig) -> dict:
    size, values = config.hidden_size, config.patch_shape[0] * config.patch_shape[1]
    state = {"mask_token": tensors.take("mask_embed", 1, 1, size).flatten()}
    for original, name in (("cpredlayer", "discriminative_head"), ("gpredlayer", "generative_head")):
        for layer, outputs in ((0, size), (2, values)):
            state[f"{name}.{layer}.weight"] = tensors.take(f"{original}.{layer}.weight", outputs, size)
            state[f"{name}.{layer}.bias"] = tensors.take(f"{original}.{layer}.bias", outputs)
    return state


def _convert_fine_tuned(tensors, sizes, max_length, frequency_stride, time_stride, labels, mean, std):
    patch = sizes["patch_size"]
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    is_frame = patch[0] == NUM_MEL_BINS
    grid, notes = read_grid(
        tensors.path,
        deit.count_patches(tensors),
        patch,
        NUM_MEL_BINS,
        recipe_strides=(NUM_MEL_BINS, 1) if is_frame else (min(10, patch[0]), min(10, patch[1])),
        frequency_stride=frequency_stride,
        time_stride=time_stride,
        max_length=max_length,
    )
    num_labels = deit.count_labels(tensors)
    config = DualSSASTConfig(
        **sizes,
        **ORIGINAL_CLASSIFIER,
        **label_settings(tensors.path, num_labels, labels),
        num_mel_bins=NUM_MEL_BINS,
        max_length=grid.max_length,
        frequency_stride=grid.frequency_stride,
        time_stride=grid.time_stride,
    )
    weights = deit.map_encoder(tensors, config) | deit.map_classifier(tensors, config)
    tensors.finish()
    notes += [
        f"the file does not tell its mel bins: {NUM_MEL_BINS}",
        "the file does not tell its readout: the mean over the patches (ft_avgtok); for ft_cls load it with "
        "readout='prefix'. Files of the AST repository look the same: their family is ast",
    ]
    model = build_model(DualSSASTForAudioClassification, config, weights)
    return Converted(
        model=model,
        feature_extractor=make_feature_extractor(config, mean, std),
        title=f"SSAST {_kind(config)} model, fine-tuned",
        notes=notes + label_notes(num_labels, are_named=labels is not None) + dtype_notes(tensors),
        dropped=tensors.dropped,
        new=[],
    )


def _kind(config: DualSSASTConfig) -> str:
    return "frame" if config.patch_shape[0] == config.num_mel_bins else "patch"
