"""Builds the result of a conversion: the model, its feature extractor and what is printed about them."""

import dataclasses

import torch
from transformers import PreTrainedModel

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor
from modeling_dual_ssast.feature_extraction_dual_ssast import SpectrogramFeatureExtractor

from .checkpoint import ConversionError, Tensors
from .options import Options


@dataclasses.dataclass
class Converted:
    """
    Holds the result of a conversion.

    model, feature_extractor: ready to be saved
    title: family and kind, "SSAST patch model, pretrained"
    notes: assumptions that the file does not confirm, and changes by the options
    dropped: unused names in the file, and the reason
    new: weights that the file does not contain
    """

    model: PreTrainedModel
    feature_extractor: SpectrogramFeatureExtractor
    title: str
    notes: list[str]
    dropped: list[tuple[str, str]]
    new: list[str]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Describes the model: (word, rest of its line)."""
        return [("sizes", self._sizes()), ("grid", self._grid()), ("features", self._features())]

    @property
    def millions(self) -> str:
        return f"{self.model.num_parameters() / 1e6:.1f} M parameters"

    def _sizes(self) -> str:
        config = self.model.config
        return (
            f"{config.hidden_size} wide, {config.num_hidden_layers} blocks, {config.num_attention_heads} heads, "
            f"{config.intermediate_size} intermediate; {self.millions}"
        )

    def _grid(self) -> str:
        config = self.model.config
        rows, columns = config.grid_shape
        mels, frames = config.patch_shape
        return (
            f"{rows} rows x {columns} columns of {mels} x {frames} patches, strides {config.frequency_stride} x "
            f"{config.time_stride} (mel bins x frames); max_length {config.max_length} frames, {config.num_mel_bins} "
            "mel bins"
        )

    def _features(self) -> str:
        extractor = self.feature_extractor
        if extractor.do_normalize:
            return f"{extractor.sampling_rate} Hz, (log-mel - {extractor.mean:g}) / (2 * {extractor.std:g})"
        return f"{extractor.sampling_rate} Hz, log-mel without normalisation"


@dataclasses.dataclass
class ComposedConverted(Converted):
    """Holds the result for a convolutional network with composed features."""

    @property
    def facts(self) -> list[tuple[str, str]]:
        config = self.model.config
        extractor = self.feature_extractor
        return [
            ("sizes", f"{', '.join(map(str, config.channels))} channels; {self.millions}"),
            ("vector", f"pooler_output of {config.fused_size} numbers per clip"),
            (
                "features",
                f"{extractor.sampling_rate} Hz, log-mel, {config.num_mel_bins} mel bins every {extractor.hop_s:g} s",
            ),
        ]


def build_model(model_class, config: DualSSASTConfig, state: dict, new: tuple[str, ...] = ()) -> PreTrainedModel:
    """
    Builds a model in evaluation mode with the weights of `state`. Only names that begin with one of `new` may be
    missing: they are initialised, in every run with the same values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    outcome = model.load_state_dict(state, strict=False)
    missing = [name for name in outcome.missing_keys if not name.startswith(new)] if new else outcome.missing_keys
    if missing or outcome.unexpected_keys:  # an error in the mapping, not in the user's file
        raise RuntimeError(f"the mapping leaves out {missing} and invents {outcome.unexpected_keys}")
    return model.eval()


def make_feature_extractor(config: DualSSASTConfig, **settings) -> DualSSASTFeatureExtractor:
    """
    Makes the feature extractor, with AudioSet's statistics unless `settings` hold others, and sets the configuration's
    padding value to match.
    """
    extractor = DualSSASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length, **settings)
    config.padding_value = extractor.padding_value
    return extractor


def resize(model: PreTrainedModel, options: Options) -> list[str]:
    """Resizes the positions to the grid of the options, if it differs; returns the note to print."""
    wanted = {name: value for name, value in options.grid.items() if value not in (None, getattr(model.config, name))}
    if not wanted:
        return []
    old = model.config.grid_shape
    try:
        model.resize_position_embeddings(**wanted)
    except ValueError as error:
        raise ConversionError(f"the positions cannot be resized: {error}") from error
    new = model.config.grid_shape
    return [f"positions resized from {old[0]} x {old[1]} to {new[0]} x {new[1]} by SSAST's rule, as asked"]


def padding_notes(config: DualSSASTConfig) -> list[str]:
    """Explains the cost of attention over padding, and how to avoid it."""
    if not config.attention_over_padding:
        return []
    return [
        f"every clip is padded to max_length ({config.max_length} frames), as in the original; "
        "from_pretrained(..., attention_over_padding=False) makes the cost follow the clip's length (the numbers of "
        "short clips then differ from the original's)"
    ]


def dtype_notes(tensors: Tensors) -> list[str]:
    others = sorted(str(dtype).removeprefix("torch.") for dtype in tensors.dtypes - {torch.float32})
    return [f"weights stored as {', '.join(others)} are saved as float32"] if others else []
