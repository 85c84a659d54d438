"""Saves tiny models with random weights as folders, and makes inputs for tiny models."""

from pathlib import Path

import torch

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishForAudioClassification,
)

MELS = 32
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 64}


def batch(*lengths: int, seed: int = 0, mels: int = MELS) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes random spectrograms of these lengths, padded with rubbish, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    input_values = torch.randn(len(lengths), max(lengths), mels, generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()  # (batch, frames)
    return input_values, mask


def save_tiny_classifier(folder: Path, labels: tuple[str, ...] = ("high", "low", "mid"), **settings) -> Path:
    """Saves a classifier with its feature extractor; its weights are large enough for clips to differ."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    model = DualSSASTForAudioClassification(DualSSASTConfig(**{**TINY, **names, **settings}))
    if model.config.classifier == "linear":
        torch.nn.init.normal_(model.classifier.dense.weight, std=0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("pooling_query"):  # zeros are a mean
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=model.config.max_length).save_pretrained(folder)
    return folder


def save_tiny_cnn(folder: Path, family: str, **settings) -> Path:
    """Saves VGGish or CNN14 with few channels and its feature extractor; its batch norms let clips differ."""
    torch.manual_seed(0)
    if family == "vggish":
        extractor = VGGishFeatureExtractor()
        config = VGGishConfig(channels=[3, 4, 5, 6], fc_size=8, embedding_size=5, **settings)
        model = VGGishForAudioClassification(config)
    else:
        extractor = PannsCnn14FeatureExtractor()
        config = PannsCnn14Config(channels=[2, 3, 4, 5, 6, 7], embedding_size=5, **settings)
        model = PannsCnn14ForAudioClassification(config)
        model.panns_cnn14.bn0.running_mean.fill_(-40.0)
        model.panns_cnn14.bn0.running_var.fill_(400.0)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
