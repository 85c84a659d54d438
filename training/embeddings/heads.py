"""
Defines the heads that a probe trains on frozen features. Each is a configuration of the model: its own classifier,
poolings and fusion, trained on stored arrays, so that saving one is copying its weights into a classifier of clips.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForAudioClassification, PretrainedConfig, PreTrainedModel

from modeling_dual_ssast.configuration_composed import ComposedConfig

from ..data.labels import LabelSet
from ..errors import InputError, one_line
from ..inference.shards import TOKENS

EMBEDDING = "embedding"
POOLED = "pooled."
MLP_SIZE = 512  # hidden layer, unless the recipe sets classifier_hidden_sizes
COMPOSED_TOKENS = f"{TOKENS}composed"  # the layers of a convolutional network are always side by side


@dataclass(frozen=True)
class Method:
    """
    Describes a trained head.

    Args:
        title: in words, for the model card
        reads: `EMBEDDING`, the fused vector of a clip; `POOLED`, a vector per layer; or `TOKENS`, the tokens of layers
        all_layers: reads all layers of the encoder, not those of the recipe
        standardises: its inputs have mean 0 and deviation 1 over the training clips; other heads begin with a LayerNorm
    """

    name: str
    title: str
    reads: str
    all_layers: bool = False
    standardises: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("linear", "a linear layer", EMBEDDING, standardises=True),
        Method("mlp", "a layer between two linear ones", EMBEDDING, standardises=True),
        Method("gated", "gates on all layers", POOLED, all_layers=True),
        Method("attentive", "attention over the tokens", TOKENS),
        Method("multilayer_attentive", "attention over the tokens of all layers", TOKENS, all_layers=True),
        Method("prototypes", "prototypes of the classes", TOKENS),
    )
}


def pooling_of(config) -> tuple[str, list]:
    """Returns name and value of the configuration's field for the poolings."""
    name = "temporal_pooling" if isinstance(config, ComposedConfig) else "pooling"
    return name, getattr(config, name)


def has_attention(config) -> bool:
    return "attention" in str(pooling_of(config)[1])  # a list, or a list of lists


def changes_of(method: Method, config) -> dict:
    """
    Returns the fields of an encoder's configuration that make it a classifier with this head.

    Raises:
        InputError: this encoder cannot have the head.
    """
    is_composed = isinstance(config, ComposedConfig)
    if is_composed and method.all_layers:
        raise InputError(
            f"methods: {method.name} weighs layers, and those of a {config.model_type} model are always side by side; "
            "leave it out, or take attentive with more fusion_layers"
        )
    if method.name == "mlp" and getattr(config, "readout", None) == "panns":
        raise InputError("methods: mlp has no place after readout panns, whose classifier is one layer; leave it out")
    changes = {"classifier": "linear", "classifier_hidden_sizes": []}
    # A head on standardised inputs has no norm: the standardisation becomes a part of its first layer.
    eps = config.classifier_layer_norm_eps
    changes["classifier_layer_norm_eps"] = None if method.standardises else 1e-5 if eps is None else eps
    pooling = pooling_of(config)[0]
    if method.name == "mlp":
        changes["classifier_hidden_sizes"] = config.classifier_hidden_sizes or [MLP_SIZE]
        changes["classifier_activation"] = config.classifier_activation or "gelu"
    elif method.name == "prototypes":
        changes["classifier"] = "prototypes"
        changes |= {pooling: ["mean"]} if has_attention(config) else {}  # prototypes do not pool
    elif method.reads == TOKENS:
        changes[pooling] = ["attention"]
    if method.all_layers:
        changes["fusion_layers"] = list(config.layers)
        changes["fusion"] = "gated" if method.name == "gated" else "weighted"
    if method.name == "gated" and has_attention(config):
        raise InputError(
            "methods: gated weighs layers that are pooled before the training, got pooling attention; take "
            "multilayer_attentive, or pool by mean, max, min or std"
        )
    return changes


def config_of(method: Method, config, label_set: LabelSet) -> PretrainedConfig:
    """
    Returns the configuration of a classifier: that of an encoder, with the head and the labels.

    Raises:
        InputError: this encoder cannot have the head.
    """
    changes = changes_of(method, config) | {
        "id2label": label_set.id2label,
        "label2id": label_set.label2id,
        "problem_type": label_set.problem_type,
        "calibration_temperature": 1.0,
        "decision_thresholds": None,
        "event_detection": None,
    }
    try:
        return type(config).from_dict(config.to_dict() | changes)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"methods: {method.name} does not fit this encoder ({one_line(error)}); leave it out"
        ) from None


def names_of(method: Method, config) -> tuple[str, ...]:
    """Returns the names of the stored arrays that a head reads, in the order of the configuration's layers."""
    if method.reads == EMBEDDING:
        return (EMBEDDING,)
    if isinstance(config, ComposedConfig):
        return (COMPOSED_TOKENS,)
    return tuple(f"{method.reads}{layer}" for layer in config.fused_layers)


class Head(nn.Module):
    """
    Classifies stored arrays by the trained parts of a classifier of clips, equal to the classifier itself on the audio.

    The encoder has no weights here. What is trained is everything after it: `classifier`, and for heads that read
    layers or tokens `attentions` and `fusion`.

    Args:
        method: one of `METHODS`
        config: as `config_of` returns it
    """

    def __init__(self, method: Method, config: PretrainedConfig):
        super().__init__()
        self.method, self.config = method, config
        self.names = names_of(method, config)
        with torch.device("meta"):
            model = AutoModelForAudioClassification.from_config(config)
        self._model = (model,)  # not a submodule
        self._init_weights = model._init_weights
        encoder = model.base_model
        is_composed, reads_vector = isinstance(config, ComposedConfig), method.reads == EMBEDDING
        self.classifier = model.classifier
        self.fusion = None if reads_vector or is_composed else encoder.fusion.fusion
        attentions = [] if reads_vector else [encoder.attention] if is_composed else encoder.fusion.attention
        self.attentions = nn.ModuleList(module for module in attentions if module is not None)

    def start(self, seed: int, device: torch.device | str = "cpu") -> "Head":
        """Gives all weights the initial values of a seed."""
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            parameter._is_hf_initialized = False  # else Transformers 5 would keep them
            parameter.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.apply(self._init_weights)
        return self.to(device)

    @property
    def fusion_of_encoder(self) -> nn.Module:
        """Returns the whole fusion of the classifier, whose poolings have no weights unless they are `attentions`."""
        return self._model[0].base_model.fusion

    @property
    def num_weights(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Computes logits.

        Args:
            inputs: name -> vectors (batch, size), or tokens (batch, time frames, tokens of a frame, size)
            mask: boolean (batch, time frames), true for the frames of each window

        Returns:
            (batch, labels)
        """
        arrays = [inputs[name] for name in self.names]
        if self.method.reads == TOKENS and self.config.classifier != "prototypes":
            arrays = [
                attention(array.flatten(1, 2), mask.repeat_interleave(array.shape[2], dim=1))
                for attention, array in zip(self.attentions, arrays)
            ]
        (fused,) = arrays if self.fusion is None else (self.fusion(arrays),)
        return self.classifier(fused, mask) if self.config.classifier == "prototypes" else self.classifier(fused)

    @property
    def first_layer(self) -> nn.Linear:
        """Returns the layer that reads the vector of a linear or MLP head."""
        if isinstance(self.classifier, nn.Linear):
            return self.classifier
        return self.classifier.hidden[0] if len(self.classifier.hidden) else self.classifier.dense

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns copies of the trained weights, under the names that they have in the classifier of clips."""
        # `to_empty` replaced the parameters in the modules, which the model shares.
        names = {id(parameter): name for name, parameter in self._model[0].named_parameters()}
        return {names[id(parameter)]: parameter.detach().cpu().clone() for parameter in self.parameters()}

    def without_standardisation(self, weights: Mapping[str, torch.Tensor], scaler) -> dict[str, torch.Tensor]:
        """
        Returns weights for inputs as they are, from those for standardised ones: W ((x - mean) / scale) + b is
        (W / scale) x + (b - (W / scale) mean). Computed in float64, stored in float32.

        Args:
            weights: as `weights` returns them
            scaler: the `StandardScaler` of the inputs
        """
        first = {id(parameter) for parameter in self.first_layer.parameters()}
        names = [name for name, parameter in self._model[0].named_parameters() if id(parameter) in first]
        weight, bias = (next(name for name in names if name.endswith(kind)) for kind in ("weight", "bias"))
        scaled = weights[weight].double() / torch.from_numpy(scaler.scale_)
        shift = weights[bias].double() - scaled @ torch.from_numpy(scaler.mean_)
        return {**weights, weight: scaled.float(), bias: shift.float()}


def assemble(encoder: PreTrainedModel, head: Head, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """
    Returns a classifier of clips: the weights of an encoder, and those of a head.

    Args:
        encoder: that the head was trained on
        head: gives the configuration
        weights: of the head, for inputs as they are
    """
    model = AutoModelForAudioClassification.from_config(copy.deepcopy(head.config)).eval()
    own = model.base_model
    trained = () if head.method.reads == EMBEDDING else ("fusion.", "attention.")
    state = {name: value for name, value in encoder.state_dict().items() if not name.startswith(trained)}
    missing, unexpected = own.load_state_dict(state, strict=False)
    if foreign := [name for name in (*missing, *unexpected) if not name.startswith(trained)]:
        raise ValueError(f"expected the weights of the encoder, got others for {foreign}")
    if trained and getattr(head.config, "fusion_norm", None) == "separate":
        norms = dict(zip(encoder.config.fused_layers, encoder.fusion.layernorms))
        for layer, norm in zip(head.config.fused_layers, own.fusion.layernorms):
            if layer in norms:  # another layer's is a new one, see `normalised`
                norm.load_state_dict(norms[layer].state_dict())
    _, unexpected = model.load_state_dict(dict(weights), strict=False)
    if unexpected:
        raise ValueError(f"expected weights of the head, got {unexpected}")
    return model
