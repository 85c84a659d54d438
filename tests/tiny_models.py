"""Tiny models with random weights, saved as folders."""

from pathlib import Path

import torch

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 64}


def save_tiny_classifier(folder: Path, labels: tuple[str, ...] = ("high", "low", "mid"), **settings) -> Path:
    """A classifier and its feature extractor; classifier weights large enough for clips to differ."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    model = DualSSASTForAudioClassification(DualSSASTConfig(**{**TINY, **names, **settings}))
    torch.nn.init.normal_(model.classifier.dense.weight, std=0.5)
    model.save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=model.config.max_length).save_pretrained(folder)
    return folder
