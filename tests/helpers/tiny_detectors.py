"""Saves tiny classifiers of time frames, whose events have settings of their own, and makes what they find them in."""

from pathlib import Path

import numpy as np
import torch
from audio_files import tone
from tiny_models import TINY

from modeling_dual_ssast import (
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioFrameClassification,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishForAudioFrameClassification,
)

RATE = 16000
LABELS = {"id2label": {0: "owl", 1: "wren"}, "label2id": {"owl": 0, "wren": 1}}
DETECTION = {"high": [0.5, 0.55], "low": 0.45, "median_steps": [1, 3], "min_duration_s": [0.0, 0.1]}


def save_tiny_detector(folder: Path, family: str = "dual_ssast", scale: float = 2.0, **changes) -> Path:
    """
    Saves a classifier of time frames, its extractor and how its events are found.

    Args:
        scale: of the weights of its last layer
        changes: of the configuration
    """
    changes = {"event_detection": DETECTION, **LABELS, **changes}
    torch.manual_seed(0)
    if family == "vggish":
        config = VGGishConfig(channels=[3, 4, 5, 6], fc_size=8, embedding_size=5, **changes)
        model, extractor = VGGishForAudioFrameClassification(config), VGGishFeatureExtractor()
    else:
        config = DualSSASTConfig(**TINY | {"time_stride": 4, "initializer_range": 0.3} | changes)
        extractor = DualSSASTFeatureExtractor(max_length=config.max_length)
        model = DualSSASTForAudioFrameClassification(config)
    torch.nn.init.normal_(model.classifier.dense.weight, std=scale)
    with torch.no_grad():  # no label is there all the time
        waveform = torch.from_numpy(long_tones()[: RATE // 2])
        features = extractor([waveform], extractor.sampling_rate, return_attention_mask=True, return_tensors="pt")
        model.classifier.dense.bias -= model.eval()(**features).logits.mean(dim=(0, 1))
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def long_tones() -> np.ndarray:
    """Makes 5.2 s of four tones: (samples,)"""
    return np.concatenate([tone(1.3, hz=150 * 3**index, seed=index) * 0.3**index for index in range(4)])
