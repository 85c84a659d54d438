"""
Runs several classifiers on one encoder in one pass: probes and fine-tuned heads that differ after the encoder alone.
Their scores are those of runs one by one, bit by bit: the encoder computes the same numbers in the same batches.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_dual_ssast.configuration_composed import ComposedConfig

from ..base.finite import OVERFLOW
from ..base.inference import VOLATILE_KEYS
from ..errors import InputError
from .engine import Network
from .plan import Stretch
from .scores import Classifier
from .shards import Part, Shards, weights_fingerprint

# Fields of a configuration that do not change what the encoder computes in inference: labels, classifier, pretraining.
AFTER_ENCODER = VOLATILE_KEYS | {
    "classifier", "classifier_activation", "classifier_hidden_sizes", "classifier_dropout", "classifier_layer_norm_eps",
    "prototypes_per_class", "binary_prototypes", "label_smoothing", "id2label", "label2id", "num_labels",
    "problem_type", "calibration_temperature", "decision_thresholds", "frame_hop_s", "event_detection", "mask_ratio",
    "pretraining_objective", "clustered_mask", "shared_mask", "num_decoder_layers", "clip_contrast_weight",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range",
}  # fmt: skip
# Of a transformer each model fuses and pools by itself; a convolutional network's layers are fused within it.
FUSION = {
    "fusion_layers", "fusion_norm", "readout", "num_token_frames", "pooling", "pooling_combination", "fusion",
    "num_pooling_heads",
}  # fmt: skip
ENCODER_PARTS = ("embeddings", "layers", "layernorm")


def encoder_key(network: Classifier) -> str:
    """
    Returns a text that two classifiers share if one pass of the encoder serves both: the same kind of model,
    configuration and weights up to the fusion, feature extractor, and windows.
    """
    model, extractor = network.model, network.extractor
    is_composed = isinstance(model.config, ComposedConfig)
    left = AFTER_ENCODER if is_composed else AFTER_ENCODER | FUSION
    config = {name: value for name, value in model.config.to_dict().items() if name not in left}
    parts = [model.base_model] if is_composed else [getattr(model.base_model, name) for name in ENCODER_PARTS]
    facts = {
        "kind": type(model).__name__,
        "config": config,
        "weights": [weights_fingerprint(part) for part in parts],
        "features": extractor.to_dict(),
        "windows": (network.window, network.hop, network.of_frames),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def use_encoder_of(network: Classifier, lead: Classifier):
    """Lets a classifier use the modules of another one with the same `encoder_key`, which saves their memory."""
    model, own = network.model, lead.model.base_model
    if isinstance(model.config, ComposedConfig):
        setattr(model, model.base_model_prefix, own)
    else:
        for name in ENCODER_PARTS:
            setattr(model.base_model, name, getattr(own, name))


class SharedClassifier(Network):
    """
    Gives the arrays of several classifiers of clips, `PLACE.NAME`, in one pass of their encoder.

    Args:
        networks: with one `encoder_key`
    """

    keeps_windows = True

    def __init__(self, networks: Sequence[Classifier]):
        super().__init__(networks[0].model, networks[0].extractor)
        self.networks = list(networks)

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        return self.networks[0].layout(num_samples)

    def places(self, stretch: Stretch, counts: list[int]) -> dict[str, np.ndarray]:
        return self.networks[0].places(stretch, counts)

    def are_finite(self, arrays: dict[str, np.ndarray]) -> bool:
        return True  # a clip that overflows in one model has scores of the others, see `of_model`

    def run(self, features):
        mask, found = features.get("attention_mask"), {}
        for place, (network, outputs) in enumerate(zip(self.networks, self._outputs(features))):
            arrays = network.arrays(network.model.logits_of(outputs, mask))
            found |= {f"{place}.{name}": array for name, array in arrays.items()}
        return found, None

    def _outputs(self, features) -> Iterator[BaseModelOutputWithPooling]:
        """Yields the output of the encoder as each classifier would compute it."""
        encoder = self.model.base_model
        if isinstance(self.model.config, ComposedConfig):
            outputs = encoder(**features, return_dict=True)
            yield from [outputs] * len(self.networks)
            return
        state, patch_mask, _ = encoder.embeddings(features["input_values"], features.get("attention_mask"))
        last = max(network.model.last_layer for network in self.networks)
        states = encoder.encode(state, patch_mask, output_hidden_states=True, last_layer=last).hidden_states
        for own in (network.model.base_model for network in self.networks):
            pooled = own.fusion(own.fused_states(states), patch_mask)
            yield BaseModelOutputWithPooling(pooler_output=pooled, hidden_states=states)


def of_model(part: Part, place: int) -> Part:
    """Returns what a run of one model would have stored."""
    prefix, segments, kept = f"{place}.", [], []
    for segment, arrays in part.split():
        own = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix) or "." not in name
        }
        if segment.rows and not all(np.isfinite(array).all() for array in own.values()):
            segment = dataclasses.replace(segment, rows=0, windows=0, error=OVERFLOW)
        if segment.rows:
            kept.append(own)
        segments.append(segment)
    return Part(segments, {name: np.concatenate([own[name] for own in kept]) for name in (kept[0] if kept else ())})


class ModelShards(Shards):
    """
    Gives one model's part of what a shared pass has stored, like the shards of a run of this model alone.

    Args:
        shards: of the shared pass
        place: of the model among its classifiers
        description, remarks: of a run of this model alone
    """

    def __init__(self, shards: Shards, place: int, description: dict, remarks: dict):
        super().__init__(shards.folder, shards.num_clips, shards.shard_size, description, remarks)
        self.place = place

    @property
    def marker(self) -> Path:
        return self.folder / f"kept-{self.place}"

    def parts(self, names=None) -> Iterator[Part]:
        for part in super().parts(names):
            yield of_model(part, self.place)

    def segments(self):
        for part in self.parts():
            yield from part.segments


def names_of_models(models: Sequence[str]) -> list[str]:
    """
    Returns a short name of each folder or Hub name, for the names of tables: its last word, with as many of those
    before as tell it from the others.

    Raises:
        InputError: a model is named twice, or two names cannot be told apart.
    """
    paths = [os.path.abspath(model) if os.path.exists(model) else model for model in models]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise InputError(f"models: {models[place]} is named twice; name each once")
    words = [list(filter(None, Path(path).as_posix().split("/"))) for path in paths]
    for count in range(1, max(map(len, words)) + 1):
        names = ["-".join(own[-count:]) for own in words]
        if len({name.casefold() for name in names}) == len(names):
            return names
    raise same_names(models)


def same_names(models: Sequence[str]) -> InputError:
    """Returns the error of models whose tables would have one name."""
    return InputError(f"models: {', '.join(models)} would give tables of the same name; name other folders")
