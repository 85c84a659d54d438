"""Chooses the trained parameters of a classifier: frozen blocks, learning rates by depth, and LoRA."""

import dataclasses
import os
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from modeling_dual_ssast import PannsCnn14Model, VGGishModel

from ..errors import InputError
from ..files import check_same, read_json, write_json
from .arguments import TrainedWeightsArguments
from .resumption import REMEDY, check_same_clips, check_same_run

ADAPTER = "adapter"
LORA_TARGETS = ("q_proj", "v_proj")  # as in the paper (Hu et al., ICLR 2022)
TUNING_NAME = "tuning.json"


def encoder_stages(encoder: PreTrainedModel) -> list[nn.Module]:
    """Returns the patch embedding (empty for networks without one) and the blocks in use, from input to output."""
    if isinstance(encoder, PannsCnn14Model):
        return [encoder.bn0, *encoder.blocks[: encoder.used_blocks[-1]]]
    if isinstance(encoder, VGGishModel):
        layers = [*encoder.features, *encoder.fc][: encoder.config.fused_layers[-1] + 1]
        return [nn.Sequential(), *(layer for layer in layers if list(layer.parameters()))]
    return [encoder.embeddings, *encoder.layers[: max(encoder.config.fused_layers)]]


def head_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the modules that are always trained: the classifier, and a fusion or pooling with learned weights."""
    found = [getattr(model.base_model, name, None) for name in ("fusion", "attention")]
    return [model.classifier, *(module for module in found if module is not None and list(module.parameters()))]


def prepare(model: PreTrainedModel, tuning: TrainedWeightsArguments) -> nn.Module:
    """
    Freezes the blocks of the recipe, or adds its adapter; returns the model, or a `PeftModel` around it.

    Raises:
        InputError: more frozen blocks than the model has, or an impossible adapter.
    """
    stages = encoder_stages(model.base_model)
    if tuning.freeze_layers >= len(stages):
        raise InputError(
            f"freeze_layers: {tuning.freeze_layers} are more than the {len(stages) - 1} blocks in use; set fewer, or "
            "freeze_encoder"
        )
    num_frozen = tuning.freeze_layers + 1 if tuning.freeze_layers else 0  # includes the embedding
    if tuning.lora_rank:
        return add_lora(model, stages[num_frozen:], tuning)
    for module in [model.base_model] if tuning.freeze_encoder else stages[:num_frozen]:
        module.requires_grad_(False)
    for module in head_modules(model):
        module.requires_grad_(True)
    return model


def add_lora(model: PreTrainedModel, stages: list[nn.Module], tuning: TrainedWeightsArguments) -> nn.Module:
    """
    Returns PEFT's model with trainable low-rank updates (LoRA) in some blocks; the rest is frozen, except for the head.

    Raises:
        InputError: PEFT is missing, the encoder has random weights, or no layer has a name that the recipe lists.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("lora_rank: needs the package peft, which is not installed; pip install peft") from None
    if not model.name_or_path:
        raise InputError("lora_rank: an adapter needs the checkpoint that it adapts; set model_name_or_path")
    heads = head_modules(model)
    config = LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=lora_targets(model, stages, tuning.lora_target_modules),
        modules_to_save=[name for name, module in model.named_modules() if any(module is head for head in heads)],
    )
    adapted = get_peft_model(model, config)
    config.base_model_name_or_path = portable_name(model.name_or_path)
    config.target_modules = sorted(config.target_modules)  # the order of a set differs between processes
    return adapted


def lora_targets(model: PreTrainedModel, stages: list[nn.Module], wanted: list[str] | None) -> list[str]:
    """Returns the full names of the layers to adapt."""
    inside = {id(module) for stage in stages for module in stage.modules()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, (nn.Linear, nn.Conv2d))
    }
    if wanted is None and isinstance(model.base_model, (PannsCnn14Model, VGGishModel)):
        return [name for name, module in layers.items() if isinstance(module, nn.Conv2d)]
    chosen = [name for name in layers if any(f".{name}".endswith(f".{target}") for target in (wanted or LORA_TARGETS))]
    if not chosen:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
        raise InputError(f"lora_target_modules: no trainable block has a layer called {wanted}; they have {known}")
    return chosen


def portable_name(name: str) -> str:
    """Returns a Hub name or a relative path as it is, and an absolute path without this machine's folders."""
    if not os.path.isabs(name):
        return name
    relative = os.path.relpath(name)
    return os.path.basename(os.path.normpath(name)) if relative.startswith("..") else relative


def rate_scales(model: PreTrainedModel, layer_decay: float | None) -> dict[int, float]:
    """
    Returns id of a parameter -> factor of its learning rate, for the encoder's embedding and blocks (BEiT; Bao et al.,
    ICLR 2022): the highest block has `layer_decay`, each block below has `layer_decay` times the factor above, and the
    embedding has the lowest. Other parameters, such as the last norm's, are left out: their factor is 1.
    """
    if layer_decay is None:
        return {}
    stages = encoder_stages(model.base_model)
    return {
        id(parameter): layer_decay ** (len(stages) - number)
        for number, stage in enumerate(stages)
        for parameter in stage.parameters()
    }


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Counts the parameters of the saved model, and the trained ones with low-rank updates."""
    own = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if ".original_module." not in name and ".lora_" not in name
    }
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"parameters": sum(own.values()), "trainable_parameters": trained}


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the modules whose parameters are all frozen."""
    found = []
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            found.append(module)
    return found


def save_tuning(tuning: TrainedWeightsArguments, folder: Path):
    """Stores the settings that `check_same_tuning` compares."""
    write_json(folder / TUNING_NAME, dataclasses.asdict(tuning))


def check_resumption(
    checkpoint: str | None, data: dict, order: dict, model: PreTrainedModel, extractor, tuning: TrainedWeightsArguments
) -> dict:
    """
    Checks the checkpoint to resume from, if there is one, by `check_same_clips`, `check_same_run`, and its tuning.

    Returns:
        what the checkpoints of this run keep of its clips and their order

    Raises:
        InputError: a part is missing, or the clips or a setting differ.
    """
    if checkpoint is not None:
        check_same_clips(checkpoint, data, order)
        check_same_run(checkpoint, model.config, extractor)
        check_same_tuning(checkpoint, tuning)
    return data | order


def check_same_tuning(checkpoint: str, tuning: TrainedWeightsArguments):
    """Compares the recipe with the settings of the checkpoint to resume from; raises `InputError` if one differs."""
    path = Path(checkpoint) / TUNING_NAME
    stored = dataclasses.asdict(type(tuning)())
    stored |= read_json(path, REMEDY) if path.exists() else {}
    check_same(
        checkpoint, stored, dataclasses.asdict(tuning), "resume with the same, or begin anew with --overwrite true"
    )
