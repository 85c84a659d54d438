"""Tests the shared style of figures: axes in kHz and seconds."""

import numpy as np
import pytest
import torch

from modeling_dual_ssast import DualSSASTFeatureExtractor, PannsCnn14FeatureExtractor, VGGishFeatureExtractor
from training.base.figures import draw_spectrogram, mel_centres, new_figure

EXTRACTORS = {
    "dual_ssast": DualSSASTFeatureExtractor(),
    "32 kHz": DualSSASTFeatureExtractor(sampling_rate=32000, num_mel_bins=64),
    "vggish": VGGishFeatureExtractor(),
    "panns_cnn14": PannsCnn14FeatureExtractor(),
}


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("hz", [440.0, 3000.0])
def test_the_loudest_bin_of_a_tone_has_the_centre_nearest_to_it(name, hz):
    extractor = EXTRACTORS[name]
    rate = extractor.sampling_rate
    tone = torch.sin(2 * torch.pi * hz * torch.arange(rate) / rate)
    spectrogram = extractor.log_mel([tone])[0]  # (frames, mel)
    centres = mel_centres(extractor)
    assert centres.shape == (extractor.num_mel_bins,) and (np.diff(centres) > 0).all()
    loudest = int(spectrogram[len(spectrogram) // 2].argmax())
    assert abs(loudest - int(np.abs(centres - hz).argmin())) <= 1


def test_a_spectrogram_has_seconds_and_kilohertz():
    extractor = EXTRACTORS["dual_ssast"]
    _, axes = new_figure()
    draw_spectrogram(axes, np.random.default_rng(0).normal(size=(128, 250)), extractor)
    assert axes.get_xlabel() == "time (s)" and axes.get_ylabel() == "frequency (kHz)"
    assert axes.get_xlim() == (0, 2.5) and axes.get_ylim() == (0, 128)
    ticks = {label.get_text(): place for label, place in zip(axes.get_yticklabels(), axes.get_yticks())}
    assert {"0.5", "1", "2", "4"} <= set(ticks)
    assert np.interp(ticks["1"] - 0.5, np.arange(128), mel_centres(extractor)) == pytest.approx(1000)
