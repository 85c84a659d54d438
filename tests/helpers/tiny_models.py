"""Makes tiny models with random weights and inputs for them, and saves them as folders."""

from pathlib import Path

import torch
from torch import nn

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
# Large weights: with the usual 0.02 the logits of a fresh model hardly depend on its input.
THREE_BLOCKS = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_mel_bins": MELS,
    "max_length": 128,
    "initializer_range": 0.3,
    "num_labels": 3,
}


def make_three_blocks(model_class=DualSSASTForAudioClassification, config_class=DualSSASTConfig, seed=0, **options):
    """Makes a model of `THREE_BLOCKS`; its biases, norms and queries are not ones and zeros, which hide mistakes."""
    torch.manual_seed(seed)
    model = model_class(config_class(**{**THREE_BLOCKS, **options})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "pooling_query")) or "layernorm" in name or "layer_weights" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


class Logits(nn.Module):
    """Returns the logits of a model alone: graphs have tensors as outputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_values, attention_mask):
        return self.model(input_values, attention_mask).logits


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
        nn.init.normal_(model.classifier.dense.weight, std=0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("pooling_query"):  # zeros are a mean
            nn.init.normal_(parameter)
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
