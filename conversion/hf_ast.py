"""Converts folders of Transformers' `ASTForAudioClassification`, with the key names of Transformers 4 and 5."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import ASTConfig

from hub.scan import scan_settings
from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification
from training.files import read_json

from .ast_original import AST_READOUT
from .checkpoint import ConversionError, Tensors, find_state_dict, numbered_blocks, read_checkpoint
from .labels import label_notes, label_settings
from .options import LABELS, Family, Options, grid, statistics
from .result import Converted, build_model, dtype_notes, padding_notes, resize
from .ssast import SSAST_READOUT

BASE = "audio_spectrogram_transformer."
# Settings with the same name in both configurations.
SAME_NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "qkv_bias",
    "patch_size",
    "frequency_stride",
    "time_stride",
    "max_length",
    "num_mel_bins",
)
# Linear layers of a block: this project's name -> the names in Transformers 4 (also in saved files of 5) and in 5.
LINEARS = {
    "attention.q_proj": ("attention.attention.query", "attention.q_proj"),
    "attention.k_proj": ("attention.attention.key", "attention.k_proj"),
    "attention.v_proj": ("attention.attention.value", "attention.v_proj"),
    "attention.o_proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
READOUTS = {"prefix": AST_READOUT, "patches": SSAST_READOUT}
REMEDY = "use an unchanged file"
EXTRACTOR_NAMES = ("mean", "std", "sampling_rate", "do_normalize")


def convert(source: Path, options: Options) -> Converted:
    """
    Converts a saved folder.

    Args:
        source: the folder, with config.json, the weights and, if it has one, preprocessor_config.json

    Raises:
        InputError: a file of settings cannot be read.
        ConversionError: the folder or the options are wrong.
    """
    original = _read_config(source)
    tensors = Tensors(_read_weights(source), source, "a folder of ASTForAudioClassification")
    tensors.require("classifier.dense.weight", f"{BASE}embeddings.patch_embeddings.projection.weight")
    config = _map_config(source, original, options)
    weights = _map_weights(tensors, config)
    tensors.finish()
    model = build_model(DualSSASTForAudioClassification, config, weights)
    extractor, notes = _map_extractor(source, config, options)
    notes += resize(model, options)
    if options.readout == "patches":
        notes.append("the mean over the patches takes the place of AST's class tokens: the classifier needs training")
    extractor.max_length = config.max_length
    config.padding_value = extractor.padding_value
    if config.problem_type == "multi_label_classification" and original.problem_type is None:
        notes += label_notes(config.num_labels, are_named=True)
    return Converted(
        model=model,
        feature_extractor=extractor,
        title="AST patch model of Transformers, fine-tuned",
        notes=notes + padding_notes(config) + dtype_notes(tensors),
        dropped=tensors.dropped,
        new=[],
    )


def _read_config(source: Path) -> ASTConfig:
    if not source.is_dir():
        raise ConversionError(f"{source} is no folder: hf-ast needs the folder that save_pretrained has written")
    scan_settings(source)
    config = read_json(source / "config.json", REMEDY)
    if config.get("model_type") != ASTConfig.model_type:
        raise ConversionError(
            f"{source} is no folder of Transformers' AST: model_type in config.json is {config.get('model_type')!r}, "
            f"expected {ASTConfig.model_type!r}"
        )
    return _checked(source / "config.json", lambda: ASTConfig.from_pretrained(source))


def _checked(path: Path, make: Callable):
    """Calls `make`; its complaints about the types of settings, which are of several kinds, name their file."""
    try:
        return make()
    except Exception as error:
        raise ConversionError(f"{path} has a setting that is wrong ({error}): {REMEDY}") from error


def _read_weights(source: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of the folder: one file or shards with an index, of safetensors or torch.save."""
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_bin)):
        if (source / name).exists():
            return read(source / name)
        if (source / f"{name}.index.json").exists():
            weight_map = read_json(source / f"{name}.index.json", REMEDY).get("weight_map", {})
            shards = [source / Path(shard).name for shard in sorted(set(weight_map.values()))]
            return {key: tensor for shard in shards for key, tensor in read(shard).items()}
    raise ConversionError(f"{source} holds no weights: expected model.safetensors or pytorch_model.bin")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} cannot be read as safetensors ({error}): download it again") from error


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    return find_state_dict(read_checkpoint(path), path)[0]


def _map_config(source: Path, original: ASTConfig, options: Options) -> DualSSASTConfig:
    settings = {name: getattr(original, name) for name in SAME_NAMES}
    settings["classifier_layer_norm_eps"] = original.layer_norm_eps  # the same for all norms
    settings |= label_settings(source, original.num_labels, options.labels)
    if options.labels is None:
        # Transformers 5 leaves label2id empty if only id2label was given.
        settings |= {
            "id2label": dict(original.id2label),
            "label2id": {label: index for index, label in original.id2label.items()},
        }
    if original.problem_type is not None:  # overrides the guess from the number of labels
        settings["problem_type"] = original.problem_type
    try:
        return DualSSASTConfig(**settings, **READOUTS[options.readout or "prefix"])
    except ValueError as error:
        raise ConversionError(f"{source} cannot be converted: {error}") from error


def _map_weights(tensors: Tensors, config: DualSSASTConfig) -> dict[str, torch.Tensor]:
    """Maps the weights of a `DualSSASTForAudioClassification`: own name -> tensor."""
    size, labels = config.hidden_size, config.num_labels
    embeddings = f"{BASE}embeddings."
    prefix = [tensors.take(f"{embeddings}{name}", 1, 1, size) for name in ("cls_token", "distillation_token")]
    state = {
        "dual_ssast.embeddings.prefix_tokens": torch.cat(prefix, dim=1),
        "dual_ssast.embeddings.position_embeddings": tensors.take(
            f"{embeddings}position_embeddings", 1, 2 + config.num_patches, size
        ),
    }
    projection = f"{embeddings}patch_embeddings.projection"
    state["dual_ssast.embeddings.projection.weight"] = tensors.take(
        f"{projection}.weight", size, 1, *config.patch_shape
    )
    state["dual_ssast.embeddings.projection.bias"] = tensors.take(f"{projection}.bias", size)
    for kind in ("weight", "bias"):
        state[f"dual_ssast.layernorm.{kind}"] = tensors.take(f"{BASE}layernorm.{kind}", size)
        state[f"classifier.layernorm.{kind}"] = tensors.take(f"classifier.layernorm.{kind}", size)
    state["classifier.dense.weight"] = tensors.take("classifier.dense.weight", labels, size)
    state["classifier.dense.bias"] = tensors.take("classifier.dense.bias", labels)
    blocks, version = f"{BASE}encoder.layer.", 0
    if not tensors.names(blocks):
        blocks, version = f"{BASE}layers.", 1
    depth = numbered_blocks(tensors, rf"{blocks}(\d+)\.") if tensors.names(blocks) else 0
    if depth != config.num_hidden_layers:
        raise ConversionError(
            f"{tensors.path} contradicts itself: config.json says {config.num_hidden_layers} blocks, the weights hold "
            f"{depth}"
        )
    for index in range(depth):
        block = _map_block(tensors, config, f"{blocks}{index}.", version)
        state |= {f"dual_ssast.layers.{index}.{name}": tensor for name, tensor in block.items()}
    return state


def _map_block(tensors: Tensors, config: DualSSASTConfig, source: str, version: int) -> dict[str, torch.Tensor]:
    """Maps one block: name within the block -> tensor; `version` is the column of `LINEARS`."""
    size, wide = config.hidden_size, config.intermediate_size
    shapes = {"mlp.fc1": (wide, size), "mlp.fc2": (size, wide)}
    state = {}
    for name, originals in LINEARS.items():
        rows, columns = shapes.get(name, (size, size))
        state[f"{name}.weight"] = tensors.take(f"{source}{originals[version]}.weight", rows, columns)
        if config.qkv_bias or name in ("attention.o_proj", "mlp.fc1", "mlp.fc2"):
            state[f"{name}.bias"] = tensors.take(f"{source}{originals[version]}.bias", rows)
    for norm in ("layernorm_before", "layernorm_after"):
        for kind in ("weight", "bias"):
            state[f"{norm}.{kind}"] = tensors.take(f"{source}{norm}.{kind}", size)
    return state


def _map_extractor(source: Path, config: DualSSASTConfig, options: Options):
    """Makes the feature extractor of the folder's settings; returns it with notes on what was assumed."""
    path = source / "preprocessor_config.json"
    if not path.exists():
        stored, notes = {}, [f"{path.name} is missing: AudioSet's mean and standard deviation, 16 kHz"]
    else:
        stored, notes = read_json(path, REMEDY), []
    settings = {name: stored[name] for name in EXTRACTOR_NAMES if name in stored} | options.statistics
    for name in ("num_mel_bins", "max_length"):
        if stored.get(name, getattr(config, name)) != getattr(config, name):
            raise ConversionError(
                f"{source} contradicts itself: {name} is {stored[name]} in {path.name}, but {getattr(config, name)} "
                "in config.json"
            )
    return _checked(path, lambda: DualSSASTFeatureExtractor(num_mel_bins=config.num_mel_bins, **settings)), notes


FAMILY = Family(
    name="hf-ast",
    source="a folder of Transformers' ASTForAudioClassification",
    convert=convert,
    options={
        "readout": {
            "choices": tuple(READOUTS),
            "help": "prefix: AST's class tokens, the default; patches: SSAST's mean, for the ports of SSAST on the Hub",
        }
    }
    | grid("resize to it")
    | LABELS
    | statistics("the folder's, else AudioSet's"),
)
