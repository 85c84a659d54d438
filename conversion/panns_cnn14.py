"""Converts PANNs' CNN14 of 16 and 32 kHz (Kong et al., 2020; github.com/qiuqiangkong/audioset_tagging_cnn)."""

from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast import (
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    PannsCnn14Model,
)
from modeling_dual_ssast.configuration_panns_cnn14 import CNN14_BLOCKS
from modeling_dual_ssast.feature_extraction_panns_cnn14 import VARIANTS, slaney_mel_filters

from .checkpoint import ConversionError, Tensors, open_checkpoint
from .labels import label_notes, label_settings
from .options import LABELS, Family, Options, task
from .result import ComposedConverted, build_model, dtype_notes

FRONT_END = ("spectrogram_extractor.", "logmel_extractor.")
FILTERS = "logmel_extractor.melW"
TRANSFORMS = ("spectrogram_extractor.stft.conv_real.weight", "spectrogram_extractor.stft.conv_imag.weight")
HEAD = ("fc1.", "fc_audioset.")
# The published 16 kHz file contains a sampler's state beside the weights: NumPy arrays, which cannot run code.
ARRAYS = (
    *((np.zeros(0).__reduce__()[0], f"{package}.multiarray._reconstruct") for package in ("numpy.core", "numpy._core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.uint32, np.bool_)),
)
DROPOUT = 0.5  # of the original's training, before fc1


def convert(source: Path, options: Options) -> ComposedConverted:
    """Converts a checkpoint of CNN14; raises `ConversionError` if the file or the options are wrong."""
    tensors = open_checkpoint(source, "a checkpoint of PANNs' CNN14", ARRAYS)
    tensors.require("bn0.weight", *(f"conv_block{block}.conv1.weight" for block in CNN14_BLOCKS))
    sizes = {
        "num_mel_bins": tensors.shape("bn0.weight", 1)[0],
        "channels": [tensors.shape(f"conv_block{block}.conv1.weight", 4)[0] for block in CNN14_BLOCKS],
    }
    has_head = bool(tensors.names("fc_audioset."))
    if options.task == "classification" and not has_head:
        raise ConversionError(f"{source} has no fc_audioset, so it cannot become a classifier: leave --task out")
    extractor = _make_extractor(tensors, sizes["num_mel_bins"], options)
    is_encoder = options.task == "encoder" or not has_head
    model, title, notes = (_convert_encoder if is_encoder else _convert_classifier)(tensors, sizes, options)
    return ComposedConverted(
        model=model,
        feature_extractor=extractor,
        title=title,
        notes=notes + dtype_notes(tensors),
        dropped=tensors.dropped,
        new=[],
    )


def _convert_encoder(tensors: Tensors, sizes: dict, options: Options) -> tuple[PannsCnn14Model, str, list[str]]:
    """Returns the model, its title and its notes."""
    if options.labels is not None:
        raise ConversionError(f"--labels {options.labels} names no outputs of an encoder, which {tensors.path} becomes")
    config = _make_config(tensors.path, **sizes)
    weights = _map_network(tensors, config)
    tensors.drop([n for part in HEAD for n in tensors.names(part)], "head, which only --task classification keeps")
    tensors.finish()
    notes = ["AutoModelForAudioClassification loads the folder too, with a new classifier (num_labels=...)"]
    return build_model(PannsCnn14Model, config, weights), "PANNs' CNN14, without its classifier", notes


def _convert_classifier(
    tensors: Tensors, sizes: dict, options: Options
) -> tuple[PannsCnn14ForAudioClassification, str, list[str]]:
    """Returns the model with the original's embedding and classifier, its title and its notes."""
    tensors.require("fc1.weight", "fc_audioset.weight")
    num_labels = tensors.shape("fc_audioset.weight", 2)[0]
    config = _make_config(
        tensors.path,
        **sizes,
        **label_settings(tensors.path, num_labels, options.labels),
        readout="panns",
        embedding_size=tensors.shape("fc1.weight", 2)[0],
        classifier_dropout=DROPOUT,
    )
    weights = {f"panns_cnn14.{name}": tensor for name, tensor in _map_network(tensors, config).items()}
    weights |= _map_head(tensors, config)
    tensors.finish()
    notes = [
        *label_notes(num_labels, are_named=options.labels is not None),
        "from_pretrained(..., readout='composed') gives Niizumi's composed features instead of PANNs' embedding",
    ]
    return build_model(PannsCnn14ForAudioClassification, config, weights), "PANNs' CNN14, with its classifier", notes


def _make_config(source: Path, **settings) -> PannsCnn14Config:
    try:
        return PannsCnn14Config(**settings)
    except ValueError as error:
        raise ConversionError(f"{source} cannot be converted: {error}") from error


def _make_extractor(tensors: Tensors, num_mel_bins: int, options: Options) -> PannsCnn14FeatureExtractor:
    """Makes the extractor of the file's front end (one of the published ones), or for `options.sampling_rate`."""
    held = [name for part in FRONT_END for name in tensors.names(part)]
    if not held:
        if options.sampling_rate is None:
            raise ConversionError(
                f"{tensors.path} holds no front end, so its sampling rate is unknown: give --sampling-rate "
                f"{' or '.join(map(str, VARIANTS))}"
            )
        return PannsCnn14FeatureExtractor(sampling_rate=options.sampling_rate, num_mel_bins=num_mel_bins)
    tensors.require(FILTERS, *TRANSFORMS)
    window_size = tensors.shape(TRANSFORMS[0], 3)[2]
    rates = {variant["window_size"]: rate for rate, variant in VARIANTS.items()}
    if window_size not in rates:
        raise ConversionError(
            f"{tensors.path} has a front end with windows of {window_size} samples, expected "
            f"{' or '.join(f'{size} ({rate} Hz)' for size, rate in rates.items())}"
        )
    if options.sampling_rate not in (None, rates[window_size]):
        raise ConversionError(
            f"{tensors.path} takes {rates[window_size]} Hz (windows of {window_size} samples), but --sampling-rate is "
            f"{options.sampling_rate}: leave it out"
        )
    extractor = PannsCnn14FeatureExtractor(sampling_rate=rates[window_size], num_mel_bins=num_mel_bins)
    _check_front_end(tensors, extractor)
    tensors.drop(held, "front end, with the same window and mel filters as the feature extractor")
    return extractor


def _check_front_end(tensors: Tensors, extractor: PannsCnn14FeatureExtractor):
    """Raises `ConversionError` unless the file's window and mel filters are the extractor's, to float32 rounding."""
    window = torch.hann_window(extractor.window_size, periodic=True, dtype=torch.float64)
    spectrum = torch.fft.rfft(torch.diag(window)).T.unsqueeze(1)  # (bins, 1, window): an impulse at each sample
    settings = (extractor.window_size, extractor.sampling_rate, extractor.fmin, extractor.fmax)
    filters = slaney_mel_filters(extractor.num_mel_bins, *settings, torch.device("cpu"))
    for name, expected in zip((*TRANSFORMS, FILTERS), (spectrum.real, spectrum.imag, filters)):
        held = tensors.state[name]
        difference = (held.double() - expected).abs().max() if held.shape == expected.shape else float("inf")
        if not difference <= 1e-3 * expected.abs().max():  # also refuses NaN
            raise ConversionError(
                f"{tensors.path} was trained with another front end than the published one of "
                f"{extractor.sampling_rate} Hz: {name} is not that of windows of {extractor.window_size} samples and "
                f"{extractor.num_mel_bins} mel bins from {extractor.fmin:g} to {extractor.fmax:g} Hz"
            )


def _map_norm(tensors: Tensors, original: str, name: str, size: int) -> dict[str, torch.Tensor]:
    """Maps a batch normalisation: own name -> tensor (size,)."""
    state = {
        f"{name}.{part}": tensors.take(f"{original}.{part}", size)
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    counter = f"{original}.num_batches_tracked"  # absent from files of PyTorch before 0.4.1
    state[f"{name}.num_batches_tracked"] = torch.tensor(tensors.take_integer(counter) if counter in tensors else 0)
    return state


def _map_network(tensors: Tensors, config: PannsCnn14Config) -> dict[str, torch.Tensor]:
    """Maps the convolutional network: own name -> tensor."""
    state = _map_norm(tensors, "bn0", "bn0", config.num_mel_bins)
    channels = (1, *config.channels)
    for block in CNN14_BLOCKS:
        inputs, outputs = channels[block - 1], channels[block]
        original, name = f"conv_block{block}", f"blocks.{block - 1}"
        for layer, size in ((1, inputs), (2, outputs)):
            state[f"{name}.conv{layer}.weight"] = tensors.take(f"{original}.conv{layer}.weight", outputs, size, 3, 3)
            state |= _map_norm(tensors, f"{original}.bn{layer}", f"{name}.bn{layer}", outputs)
    return state


def _map_head(tensors: Tensors, config: PannsCnn14Config) -> dict[str, torch.Tensor]:
    """Maps the embedding layer and the classifier: own name -> tensor."""
    size, labels = config.embedding_size, config.num_labels
    return {
        "panns_cnn14.embedding.fc1.weight": tensors.take("fc1.weight", size, config.channels[-1]),
        "panns_cnn14.embedding.fc1.bias": tensors.take("fc1.bias", size),
        "audioset_classifier.weight": tensors.take("fc_audioset.weight", labels, size),
        "audioset_classifier.bias": tensors.take("fc_audioset.bias", labels),
    }


FAMILY = Family(
    name="panns-cnn14",
    source="a .pth file of PANNs' CNN14, for 16 or 32 kHz",
    convert=convert,
    options={
        **task("classification", "encoder", text="what to make; default: classification, if the file can"),
        "sampling_rate": {"type": int, "choices": tuple(VARIANTS), "help": "in Hz; for files without a front end"},
        **LABELS,
    },
)
