"""
Tests the numbers of ASiT as PretrainedSED publishes it (Schmid et al., ICASSP 2025): encoder, weak and strong
classifier, through the conversion command and from_pretrained.
"""

import numpy as np
import pytest
import torch
from golden import arrays, assert_close, assert_filter_bank_close, convert, settings
from transformers import AutoModelForAudioFrameClassification

from modeling_dual_ssast import DualSSASTFeatureExtractor, DualSSASTForAudioClassification, DualSSASTModel
from modeling_dual_ssast.fusion_dual_ssast import token_frames

pytestmark = pytest.mark.golden

DESCRIPTION = settings("asit_psed")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Returns a function: ssl, weak or strong, options -> the converted folder; each is made once."""
    folders = {}

    def folder(kind: str, *options: str):
        if (kind, options) not in folders:
            place = tmp_path_factory.mktemp(kind)
            folders[kind, options] = convert("asit", DESCRIPTION["recipes"][kind], place, *options)
        return folders[kind, options]

    return folder


def inputs(num_frames: int = 998) -> torch.Tensor:
    """Returns spectrograms (2, frames, mel), or (1, frames, mel) of both in a row."""
    stored = torch.from_numpy(arrays("asit_psed")["input"].astype(np.float32))
    return stored if num_frames == 998 else stored.flatten(0, 1)[None, :num_frames]


def in_original_order(states: torch.Tensor, rows: int = 8) -> torch.Tensor:
    """Orders tokens by time, as the original does: (..., 1 + rows * columns, size)."""
    patches = states[..., 1:, :].unflatten(-2, (rows, -1)).transpose(-3, -2).flatten(-3, -2)
    return torch.cat((states[..., :1, :], patches), dim=-2)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "options"), [("ssl", ()), ("weak", ("--task", "encoder")), ("strong", ())])
def test_positions(converted, kind, options):
    model = DualSSASTModel.from_pretrained(converted(kind, *options))
    positions = in_original_order(model.embeddings.position_embeddings)[..., ::4]
    assert_close(positions, arrays("asit_psed")[f"{kind}_pos_embed_every4thdim"], atol=5e-6)


@torch.no_grad()
def test_states(converted):
    expected = arrays("asit_psed")
    output = DualSSASTModel.from_pretrained(converted("ssl"))(inputs()[:1], output_hidden_states=True)
    states = in_original_order(torch.stack(output.hidden_states))[:, :, ::7]
    assert_close(states, expected["ssl_hidden_states_every7thtoken"], atol=2e-5)
    assert_close(
        in_original_order(output.last_hidden_state)[:, ::7], expected["ssl_last_normed_every7thtoken"], atol=2e-5
    )


@torch.no_grad()
def test_592_frames_take_the_positions_as_stored(converted):
    expected = arrays("asit_psed")
    model = DualSSASTModel.from_pretrained(converted("ssl", "--max-length", "592"))
    output = model(inputs()[:1, :592], output_hidden_states=True)
    states = in_original_order(torch.stack(output.hidden_states))[:, :, ::11]
    assert_close(states, expected["ssl_592_hidden_states_every11thtoken"], atol=2e-5)
    last = in_original_order(output.last_hidden_state)[:, ::11]
    assert_close(last, expected["ssl_592_last_normed_every11thtoken"], atol=2e-5)


@torch.no_grad()
def test_weak(converted):
    expected = arrays("asit_psed")
    model = DualSSASTForAudioClassification.from_pretrained(converted("weak"))
    output = model.dual_ssast(inputs())
    assert_close(in_original_order(output.last_hidden_state)[:, ::7], expected["weak_last_normed_every7thtoken"], 2e-5)
    assert_close(output.pooler_output, expected["weak_embedding"], atol=2e-5)
    assert_close(model(inputs()).logits, expected["weak_logits"], atol=2e-5)
    assert model.config.problem_type == "multi_label_classification" and model.config.num_labels == 527


@torch.no_grad()
def test_strong(converted):
    expected = arrays("asit_psed")
    model = AutoModelForAudioFrameClassification.from_pretrained(converted("strong"))
    output = model.dual_ssast(inputs(), output_hidden_states=True)
    assert_close(
        in_original_order(output.last_hidden_state)[:, ::7], expected["strong_last_normed_every7thtoken"], 2e-5
    )
    assert_close(model.dual_ssast.label_frames(output)[:, ::10], expected["strong_frames_every10th"], atol=2e-5)
    logits = model(inputs()).logits
    assert_close(logits.transpose(1, 2), expected["strong_logits"], atol=3e-5)
    assert logits.shape == (2, DESCRIPTION["output_frames"], DESCRIPTION["num_classes_strong"])
    assert model.config.frame_hop_s == DESCRIPTION["output_frame_seconds"]


@torch.no_grad()
@pytest.mark.parametrize("num_frames", DESCRIPTION["lengths"])
def test_other_lengths(converted, num_frames):
    """By the original's rule, if the conversion is told the length."""
    expected, name = arrays("asit_psed"), f"strong_{num_frames}"
    model = AutoModelForAudioFrameClassification.from_pretrained(converted("strong", "--max-length", str(num_frames)))
    positions = in_original_order(model.dual_ssast.embeddings.position_embeddings)[..., ::16]
    assert_close(positions, expected[f"{name}_pos_embed_every16thdim"], atol=5e-6)
    last = model.dual_ssast(inputs(num_frames)).last_hidden_state
    assert_close(in_original_order(last)[:, ::13], expected[f"{name}_last_normed_every13thtoken"], atol=5e-5)
    logits = model(inputs(num_frames)).logits.transpose(1, 2)[:, ::32]
    assert_close(logits, expected[f"{name}_logits_every32ndclass"], atol=5e-5)


@pytest.mark.parametrize("count", [497, 297, 250, 249, 161, 545])
def test_pooling_of_tokens(count):
    tokens = torch.from_numpy(arrays("asit_psed")[f"pool_{count}_tokens"])
    prefix = count % 8 or 8
    grid = tokens[:, prefix:].unflatten(1, (-1, 8)).transpose(1, 2).flatten(1, 2)  # frequency-major, as here
    frames = token_frames(torch.cat((tokens[:, :prefix], grid), dim=1), prefix, rows=8, num_frames=250)
    assert_close(frames, arrays("asit_psed")[f"pool_{count}_frames"], atol=1e-6)


def test_features(converted):
    extractor = DualSSASTFeatureExtractor.from_pretrained(converted("strong"))
    waveforms = arrays("asit_psed")["waveform_int16"].astype(np.float32) / 32768
    clips = [waveforms[0], waveforms[1, : DESCRIPTION["second_clip_samples"]]]  # the second is padded
    features = extractor(clips, sampling_rate=16000, return_tensors="np")["input_values"]
    assert features.shape == (2, DESCRIPTION["num_frames"], 128)
    expected = arrays("asit_psed")["fbank_every8thframe"]
    assert_filter_bank_close(features[:, ::8], expected, num_fft=512, nats=2 * extractor.std)
