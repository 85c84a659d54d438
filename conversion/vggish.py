"""Converts checkpoints of VGGish (Hershey et al., ICASSP 2017) in PyTorch: audioset-vggish and torchvggish."""

from pathlib import Path

from modeling_dual_ssast import VGGishConfig, VGGishFeatureExtractor, VGGishModel
from modeling_dual_ssast.configuration_vggish import VGGISH_TIME_STRIDE

from .checkpoint import open_checkpoint
from .options import Family, Options
from .result import ComposedConverted, build_model, dtype_notes

CONVOLUTIONS = (0, 3, 6, 8, 11, 13)  # in `features`
WIDTHS = (0, 3, 6, 11)  # the first of each stage: its shape shows the stage's channels
LINEARS = (0, 2, 4)  # in `fc`; `embeddings` in torchvggish


def convert(source: Path, options: Options) -> ComposedConverted:
    """Converts a checkpoint of VGGish; raises `ConversionError` if the file is wrong."""
    tensors = open_checkpoint(source, "a VGGish checkpoint")
    fc = "embeddings" if tensors.names("embeddings.") else "fc"
    widths = [f"features.{layer}.weight" for layer in WIDTHS]
    tensors.require(*widths, f"{fc}.0.weight", f"{fc}.4.weight")
    config = VGGishConfig(
        channels=[tensors.shape(name, 4)[0] for name in widths],
        fc_size=tensors.shape(f"{fc}.0.weight", 2)[0],
        embedding_size=tensors.shape(f"{fc}.4.weight", 2)[0],
    )
    first, second, third, fourth = config.channels
    weights = {}
    channels = (1, first, second, third, third, fourth, fourth)
    for layer, inputs, outputs in zip(CONVOLUTIONS, channels, channels[1:]):
        name = f"features.{layer}"
        weights[f"{name}.weight"] = tensors.take(f"{name}.weight", outputs, inputs, 3, 3)
        weights[f"{name}.bias"] = tensors.take(f"{name}.bias", outputs)
    values = fourth * config.frames_per_example * (config.num_mel_bins // VGGISH_TIME_STRIDE)
    sizes = (values, config.fc_size, config.fc_size, config.embedding_size)
    for layer, inputs, outputs in zip(LINEARS, sizes, sizes[1:]):
        weights[f"fc.{layer}.weight"] = tensors.take(f"{fc}.{layer}.weight", outputs, inputs)
        weights[f"fc.{layer}.bias"] = tensors.take(f"{fc}.{layer}.bias", outputs)
    tensors.drop(tensors.names("pproc."), "PCA and quantisation of AudioSet's released embeddings, not of the network")
    tensors.finish()
    layers = ", ".join(map(str, config.fusion_layers))
    return ComposedConverted(
        model=build_model(VGGishModel, config, weights),
        feature_extractor=VGGishFeatureExtractor(num_mel_bins=config.num_mel_bins),
        title="VGGish, without a classifier",
        notes=[
            f"composed of layers {layers}; from_pretrained(..., fusion_layers=[21], temporal_pooling=['mean']) gives "
            f"VGGish's own {config.embedding_size} numbers",
            "AutoModelForAudioClassification loads the folder too, with a new classifier (num_labels=...)",
            *dtype_notes(tensors),
        ],
        dropped=tensors.dropped,
        new=[],
    )


FAMILY = Family(name="vggish", source="a .pth file of VGGish in PyTorch", convert=convert, options={})
