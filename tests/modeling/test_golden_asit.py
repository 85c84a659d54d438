"""
Tests ASiT's numbers (fixtures/README.md), through the conversion command and from_pretrained: states, heads, features.
Losses, centres and the training step are in test_asit.py; golden.py derives the tolerances.
"""

import numpy as np
import pytest
import torch
from golden import arrays, assert_close, assert_filter_bank_close
from golden_asit import COLUMNS, ROWS, converted, time_major
from transformers import AutoFeatureExtractor, AutoModel

from modeling_dual_ssast import ASiTForPreTraining, DualSSASTModel

pytestmark = pytest.mark.golden


def tokens(states: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """The same with the class token before the patches."""
    prefix, patches = states.split((1, ROWS * COLUMNS), dim=dim)
    return torch.cat((prefix, time_major(patches, dim)), dim=dim)


def crops(kind: str) -> torch.Tensor:
    """The items of crop 0, then those of crop 1: (2 * batch, frames, mel)."""
    stored = arrays("asit")
    return torch.from_numpy(np.concatenate([stored[f"{kind}_crop_{index}"][:, 0] for index in range(2)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("asit"))


@pytest.fixture(scope="module")
def model(folder):
    return ASiTForPreTraining.from_pretrained(folder).eval()


@torch.no_grad()
def test_student_states_and_attention(model):
    expected = arrays("asit")
    output = model.student(crops("corrupted"), output_hidden_states=True, output_attentions=True)
    states = torch.stack([tokens(state) for state in output.hidden_states])
    assert_close(states, expected["student_hidden_states"])
    assert_close(tokens(output.last_hidden_state), expected["student_last_normed"])
    assert_close(output.last_hidden_state[:, 0], expected["student_backbone_classify"])
    assert_close(tokens(tokens(output.attentions[0], 2), 3), expected["student_attention_block0"])


@torch.no_grad()
def test_student_heads(model):
    expected = arrays("asit")
    states = model.student(crops("corrupted")).last_hidden_state
    class_outputs, data_outputs = model.student_heads(states)
    assert_close(class_outputs, expected["student_cls"])
    assert_close(time_major(data_outputs).flatten(0, 1), expected["student_data"])
    painted = model.student_heads.reconstruction(states[:, 1:])  # (2 * batch, frames, mel)
    assert_close(painted.unsqueeze(1), expected["student_recons"])


@torch.no_grad()
def test_teacher(model):
    expected = arrays("asit")
    states = model.dual_ssast(crops("clean")).last_hidden_state
    assert_close(tokens(states), expected["teacher_last_normed"])
    assert_close(states[:, 0], expected["teacher_backbone_classify"])
    class_outputs, data_outputs = model.teacher_heads(states)
    assert_close(class_outputs, expected["teacher_cls"])
    assert_close(time_major(data_outputs).flatten(0, 1), expected["teacher_data"])


def test_centers_and_temperature(model):
    expected = arrays("asit")
    assert_close(model.class_center, expected["center_cls_before"], atol=0, share=0)
    assert_close(model.data_center, expected["center_data_before"], atol=0, share=0)
    assert model.teacher_temperature.item() == pytest.approx(expected["teacher_temp_schedule"][3])


@torch.no_grad()
@pytest.mark.parametrize(("weights", "kind"), [("teacher", "clean"), ("student", "corrupted")])
def test_encoders_alone(tmp_path, weights, kind):
    folder = converted(tmp_path, "--task", "encoder", "--weights", weights)
    model = AutoModel.from_pretrained(folder)
    assert type(model) is DualSSASTModel
    states = model(crops(kind)).last_hidden_state
    assert_close(tokens(states), arrays("asit")[f"{weights}_last_normed"])


@pytest.mark.parametrize("length", ["long", "short"])
def test_features(folder, length):
    """A clip of more than 96 frames is cut, and a shorter one padded with what zeros become."""
    stored = arrays("asit")
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert (extractor.sampling_rate, extractor.max_length) == (32000, 96)
    waveform = torch.from_numpy(stored[f"fbank_wave_{length}"])  # (1, samples)
    features = extractor(waveform, sampling_rate=32000, padding="max_length", return_tensors="pt").input_values
    assert_filter_bank_close(features[0], stored[f"fbank_norm_{length}"], num_fft=1024, nats=2 * extractor.std)
