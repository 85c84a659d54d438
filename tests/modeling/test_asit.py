"""
Tests ASiT: the original's losses, centres, gradients and training step (fixtures/README.md), and further properties.
States, heads and features are in test_golden_asit.py.
"""

import copy
import types

import numpy as np
import pytest
import torch
from golden import FIXTURES, arrays, assert_close, assert_gradients_close
from golden_asit import COLUMNS, ROWS, converted, time_major
from tiny_pretrainings import HEADS, SIZES

from conversion import asit as conversion
from conversion.options import Options
from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForAudioClassification,
    ASiTForPreTraining,
    DualSSASTForAudioClassification,
    DualSSASTModel,
)
from training.pretraining import asit

TINY = SIZES | HEADS | {"num_mel_bins": 32, "max_length": 96}
EPOCH = 3  # at which the golden losses and step were made
D = 128


def tiny(**settings) -> ASiTForPreTraining:
    torch.manual_seed(0)
    return ASiTForPreTraining(ASiTConfig(**TINY | settings))


def golden_batch() -> dict[str, torch.Tensor]:
    """The two crops of the two clips: (batch, 2, frames, mel) each."""
    stored = arrays("asit")
    names = {"input_values": "clean_crop", "corrupted_values": "corrupted_crop", "corruption_mask": "mask_crop"}
    return {
        name: torch.from_numpy(np.concatenate([stored[f"{array}_{crop}"] for crop in range(2)], axis=1))
        for name, array in names.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("asit"))


@pytest.fixture
def model(folder):
    model = ASiTForPreTraining.from_pretrained(folder)
    model.set_epoch(EPOCH)
    return model.train()  # drop_path_rate is 0 in this checkpoint


def sampled(encoder, heads, of=lambda parameter: parameter) -> dict[str, torch.Tensor]:
    """The tensors that the golden data samples, in the original's names and layout."""
    layers = encoder.layers
    prefix, grid = of(encoder.embeddings.position_embeddings).split((1, ROWS * COLUMNS), dim=1)
    attention = layers[0].attention
    return {
        "backbone.cls_token": of(encoder.embeddings.prefix_tokens),
        "backbone.pos_embed": torch.cat((prefix, time_major(grid)), dim=1),
        "backbone.patch_embed.proj.weight": of(encoder.embeddings.projection.weight).transpose(2, 3),
        "backbone.patch_embed.proj.bias": of(encoder.embeddings.projection.bias),
        "backbone.blocks.0.attn.qkv.bias": torch.cat(
            [of(projection.bias) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
        ),
        "backbone.blocks.2.norm1.weight": of(layers[2].layernorm_before.weight),
        "backbone.blocks.3.mlp.fc2.bias": of(layers[3].mlp.fc2.bias),
        "backbone.norm.weight": of(encoder.layernorm.weight),
        "head_cls.mlp.4.bias": of(heads.mlp[4].bias),
        "head_cls.cls_layer.weight_g": of(heads.class_layer.scale),
        "head_cls.cls_layer.weight_v": of(heads.class_layer.direction),
        "head_cls.data_layer.weight_v": of(heads.data_layer.direction),
        "head_recons.mlp.0.bias": of(heads.reconstruction.mlp[0].bias),
        "head_recons.convTrans.weight": of(heads.reconstruction.unpatch.weight).transpose(2, 3),
        "head_recons.convTrans.bias": of(heads.reconstruction.unpatch.bias),
    }


def without_keys(name: str, tensor: np.ndarray) -> np.ndarray:
    """The gradient of a key's bias is zero in theory, so what is stored of it is rounding noise."""
    return np.concatenate((tensor[:D], tensor[2 * D :])) if name.endswith("qkv.bias") else tensor


@pytest.mark.golden
def test_losses_and_centres(model):
    expected = arrays("asit")
    assert_close(model.class_center, expected["center_cls_before"])
    assert_close(model.data_center, expected["center_data_before"])
    output = model(**golden_batch())
    assert_close(output.class_loss, expected["loss_cls"])
    assert_close(output.data_loss, expected["loss_data"])
    assert_close(output.reconstruction_loss, expected["loss_recons"])
    assert_close(output.loss, expected["loss_total"])
    assert_close(model.class_center, expected["center_cls_after"])
    assert_close(model.data_center, expected["center_data_after"])
    first = np.concatenate([expected["student_recons"][:2], expected["student_recons"][2:]], axis=1)
    assert_close(output.reconstruction, first)


@pytest.mark.golden
def test_gradients_and_their_clipping(model):
    expected = arrays("asit")
    model(**golden_batch()).loss.backward()
    none = torch.zeros(())
    gradients = sampled(model.student, model.student_heads, lambda p: none if p.grad is None else p.grad)
    for name, gradient in gradients.items():
        if f"grad/{name}" in expected:
            stored = expected[f"grad/{name}"]
            assert_gradients_close(without_keys(name, gradient.numpy()), without_keys(name, stored))
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    assert max(norms) == pytest.approx(expected["grad_norms"].max(), rel=1e-4)
    asit.clip_each(model.parameters(), 3.0)
    for norm, parameter in zip(norms, (p for p in model.parameters() if p.grad is not None)):
        assert float(parameter.grad.norm()) == pytest.approx(min(float(norm), 3.0), rel=1e-4, abs=1e-9)


def moments(tmp_path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    """
    AdamW's two moments and its step count, in this project's names: converted as if they were networks. The fixture
    holds them for the sampled parameters only.
    """
    content = torch.load(FIXTURES / "asit_pretrain.pth", weights_only=False)
    state = content["optimizer"]["state"]
    named = {name: tensor for name, tensor in content["student"].items() if "weight_g" not in name}
    decayed = [name for name, tensor in named.items() if tensor.ndim > 1 and not name.endswith(".bias")]
    order = [*decayed, *(name for name in named if name not in decayed)]
    assert max(state) < len(order) == sum(len(group["params"]) for group in content["optimizer"]["param_groups"])
    networks = []
    for moment in ("exp_avg", "exp_avg_sq"):
        network = {name: torch.zeros_like(tensor) for name, tensor in content["student"].items()}
        networks.append(network | {order[index]: entry[moment] for index, entry in state.items()})
    torch.save({**content, "teacher": networks[0], "student": networks[1]}, tmp_path / "moments.pth")
    model = conversion.convert(tmp_path / "moments.pth", Options()).model
    first = {f"student.{name}": value for name, value in model.dual_ssast.state_dict().items()}
    first |= {f"student_heads.{name}": value for name, value in model.teacher_heads.state_dict().items()}
    return first, model.state_dict(), float(state[0]["step"])


@pytest.mark.golden
def test_a_training_step(model, tmp_path):
    """AdamW with its stored moments, clipping per parameter, and the teacher's moving average after the step."""
    expected = arrays("asit")
    trainer = types.SimpleNamespace(
        optimizer=None,
        model=model,
        highest_learning_rate=float(expected["step_lr"]),
        args=types.SimpleNamespace(
            weight_decay=float(expected["step_wd"]), adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8
        ),
    )
    optimizer = asit.AsitTrainer.create_optimizer(trainer)
    first, second, step = moments(tmp_path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            optimizer.state[parameter] = {
                "step": torch.tensor(step),
                "exp_avg": first[name].clone(),
                "exp_avg_sq": second[name].clone(),
            }
    model(**golden_batch()).loss.backward()
    asit.clip_each(model.parameters(), 3.0)
    optimizer.step()
    model.update_teacher(0.996)
    networks = {
        "student": (model.student, model.student_heads),
        "teacher": (model.dual_ssast, model.teacher_heads),
    }
    for network, parts in networks.items():
        for name, tensor in sampled(*parts).items():
            stored = without_keys(name, expected[f"{network}_after_step/{name}"])
            assert_close(without_keys(name, tensor.detach().numpy()), stored)


def test_schedules():
    expected = arrays("asit")
    temperatures = [ASiTConfig(**TINY).teacher_temperature_at(epoch) for epoch in range(100)]
    np.testing.assert_allclose(temperatures, expected["teacher_temp_schedule"], rtol=1e-12)
    highest = 0.1 * 2 / 256
    for name, arguments in {
        "schedule_lr_3it": (highest, 1e-6, 30),
        "schedule_wd_3it": (0.04, 0.4, 0),
        "schedule_momentum_3it": (0.996, 1.0, 0),
    }.items():
        values = [asit.cosine_schedule(step, 300, *arguments) for step in range(300)]
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-15)
    assert asit.cosine_schedule(10, 5, 1.0, 0.0) == 0.0  # beyond the end it stays
    one = ASiTConfig(**TINY, warmup_teacher_temperature_epochs=1)
    assert [one.teacher_temperature_at(epoch) for epoch in (0, 1, 9)] == [0.04, 0.07, 0.07]


def test_the_teacher_begins_as_the_student_and_follows_it():
    model = tiny()
    pairs = [
        *zip(model.dual_ssast.parameters(), model.student.parameters()),
        *zip(model.teacher_heads.parameters(), model.student_heads.parameters()),
    ]
    assert len(pairs) * 2 == len(list(model.parameters()))
    assert all(torch.equal(teacher, student) for teacher, student in pairs)
    assert not any(teacher.requires_grad for teacher, _ in pairs)
    before = [teacher.clone() for teacher, _ in pairs]
    with torch.no_grad():
        for _, student in pairs:
            student.add_(1.0)
    model.update_teacher(0.75)
    for (teacher, student), old in zip(pairs, before):
        torch.testing.assert_close(teacher, 0.75 * old + 0.25 * student)


def test_only_the_student_learns_and_only_it_skips_branches():
    model = tiny(drop_path_rate=0.9).train()
    assert model.student.training and not model.dual_ssast.training and not model.teacher_heads.training
    batch = torch.randn(3, 2, 96, 32)
    torch.manual_seed(1)
    first = model(batch)
    torch.manual_seed(2)
    assert not torch.equal(first.loss, model(batch).loss)
    first.loss.backward()
    for name, parameter in model.named_parameters():
        is_students = name.startswith("student") and not name.endswith("scale")
        assert (parameter.grad is not None) == is_students, name


def test_centres_move_in_training_only():
    model = tiny().eval()
    batch = torch.randn(3, 2, 96, 32)
    model(batch)
    assert not model.class_center.any() and not model.data_center.any()
    model.train()(batch)
    assert model.class_center.any() and model.data_center.any()
    half = tiny().bfloat16().train()
    assert half(batch.bfloat16()).loss.isfinite() and half.class_center.any()


def test_the_student_returns_what_the_configuration_asks_for():
    model = tiny().eval()
    model.config.output_hidden_states = True
    assert len(model(torch.randn(1, 2, 96, 32)).hidden_states) == model.config.num_hidden_layers + 1


def test_a_clip_counts_the_same_in_any_company():
    """Padding changes nothing: the loss of two clips of different length is what they give alone, taken together."""
    model = tiny(reconstruction_weight=0.0).eval()
    short, long = torch.randn(1, 2, 40, 32), torch.randn(1, 2, 90, 32)
    masks = [torch.zeros_like(clip, dtype=torch.bool) for clip in (short, long)]
    alone = [model(clip, clip.flip(2), mask) for clip, mask in zip((short, long), masks)]
    padded = [torch.nn.functional.pad(clip, (0, 0, 0, 50), value=7.0) for clip in (short, short.flip(2), masks[0])]
    together = [torch.cat((a, b)) for a, b in zip(padded, (long, long.flip(2), masks[1]))]
    attention_mask = torch.tensor([[1] * 40 + [0] * 50, [1] * 90])
    output = model(*together, attention_mask)
    for name in ("class_loss", "data_loss"):
        torch.testing.assert_close(output[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-5, atol=1e-6)


def test_reconstruction_counts_corrupted_audio_only():
    model = tiny().eval()
    clean = torch.randn(1, 2, 48, 32)
    mask = torch.zeros_like(clean, dtype=torch.bool)
    mask[:, :, 5:20, 3:9] = True
    output = model(clean, torch.where(mask, 0.0, clean), mask)
    expected = (output.reconstruction - clean).abs()[mask].mean()
    torch.testing.assert_close(output.reconstruction_loss, expected)
    assert model(clean, clean, torch.zeros_like(mask)).reconstruction_loss == 0


@pytest.mark.parametrize("patch", [{}, {"patch_size": [32, 2], "frequency_stride": 32, "time_stride": 2}])
@pytest.mark.parametrize("corruption", ["zeros", "noise", "time", "freq"])
def test_it_corrupts_by_itself_where_nobody_did(patch, corruption):
    model = tiny(**patch, corruption=corruption)
    batch = torch.randn(2, 2, 96, 32)
    torch.manual_seed(3)
    corrupted, mask = model.corrupt_crops(batch)
    assert corrupted.shape == mask.shape == batch.shape and mask.any(dim=(2, 3)).all()
    assert torch.equal(corrupted[~mask], batch[~mask])
    torch.manual_seed(3)
    output = model(batch)
    torch.manual_seed(3)
    assert torch.equal(output.loss, model.train()(batch).loss) or model.config.drop_path_rate
    assert output.reconstruction.shape == batch.shape


@pytest.mark.parametrize("corruption", ["zeros", "noise"])
def test_it_corrupts_the_audio_of_clips_that_are_padded_on_the_left(corruption):
    model = tiny(corruption=corruption).eval()
    batch, mask = torch.randn(2, 2, 96, 32), torch.ones(2, 96)
    mask[0, 64:] = 0
    torch.manual_seed(3)
    right = model(batch, attention_mask=mask)
    moved, moved_mask = batch.clone(), mask.clone()
    moved[0], moved_mask[0] = batch[0].roll(32, dims=1), mask[0].roll(32)
    torch.manual_seed(3)
    left = model(moved, attention_mask=moved_mask)
    assert right.reconstruction_loss > 0
    for name in ("loss", "reconstruction_loss", "reconstruction"):
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0)


def test_short_clips_are_padded_to_the_whole_grid_where_the_encoder_reads_padding():
    """Padding takes part in the attention, but not in the losses."""
    model = tiny(attention_over_padding=True).eval()
    batch = torch.randn(2, 2, 60, 32)
    torch.manual_seed(3)
    alone = model(batch)
    padded = torch.nn.functional.pad(batch, (0, 0, 0, 20), value=model.config.padding_value)
    torch.manual_seed(3)
    masked = model(padded, attention_mask=(torch.arange(80) < 60).expand(2, -1))
    assert alone.reconstruction.shape == (2, 2, 96, 32)
    for name in ("class_loss", "data_loss"):
        torch.testing.assert_close(masked[name], alone[name])
    whole = torch.nn.functional.pad(batch, (0, 0, 0, 36), value=model.config.padding_value)
    assert not torch.allclose(model(whole).data_loss, alone.data_loss)


def test_mel_bins_that_no_whole_patch_covers_are_no_target():
    model = tiny(num_mel_bins=40).eval()
    batch = torch.randn(2, 2, 96, 40)
    where = torch.zeros_like(batch, dtype=torch.bool)
    where[..., 20:] = True
    output = model(batch, torch.where(where, 0.0, batch), where)
    assert output.reconstruction.shape == (2, 2, 96, 32)
    expected = (output.reconstruction - batch[..., :32]).abs()[..., 20:].mean()
    torch.testing.assert_close(output.reconstruction_loss, expected)


def test_a_folder_gives_the_teachers_encoder_to_every_class(tmp_path):
    model = tiny()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.save_pretrained(tmp_path)
    back, report = ASiTForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    for model_class in (ASiTForAudioClassification, DualSSASTForAudioClassification):
        classifier, report = model_class.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
        assert {key.split(".")[0] for key in report["missing_keys"]} == {"classifier"}
        assert not report["unexpected_keys"]
        state = classifier.dual_ssast.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.dual_ssast.state_dict().items())


def test_an_encoder_can_be_trained_further(tmp_path):
    encoder = tiny().dual_ssast
    DualSSASTModel(copy.deepcopy(encoder.config)).save_pretrained(tmp_path)
    stored = DualSSASTModel.from_pretrained(tmp_path)
    model = ASiTForPreTraining.from_pretrained(tmp_path, config=ASiTConfig(**TINY))
    for network in (model.dual_ssast, model.student):
        torch.testing.assert_close(network.embeddings.projection.weight, stored.embeddings.projection.weight)
    assert torch.equal(model.student_heads.mlp[0].weight, model.teacher_heads.mlp[0].weight)


def test_positions_of_both_networks_are_resized(tmp_path):
    tiny().save_pretrained(tmp_path)
    model = ASiTForPreTraining.from_pretrained(tmp_path, max_length=64)
    assert model.student.config.max_length == model.config.max_length == 64
    assert model.student.embeddings.position_embeddings.shape == model.dual_ssast.embeddings.position_embeddings.shape
    assert torch.isfinite(model(torch.randn(2, 2, 64, 32)).loss)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"class_dim": 0}, "class_dim must be a positive integer, got 0"),
        ({"teacher_momentum": 1.5}, "teacher_momentum must be a number above 0 and at most 1, got 1.5"),
        ({"student_temperature": 0}, "student_temperature must be a positive number, got 0"),
        ({"corruption": "rain"}, "corruption must be one of zeros, noise, time, freq, got 'rain'"),
        ({"replacement_fraction": -0.1}, "replacement_fraction must be a number from 0 to 1, got -0.1"),
        ({"hidden_size": 15}, "multiple of num_attention_heads"),
    ],
)
def test_wrong_settings_are_told(settings, pattern):
    with pytest.raises(ValueError, match=pattern):
        ASiTConfig(**TINY | settings)


def test_wrong_input_is_told():
    model = tiny()
    with pytest.raises(TypeError, match="did you mean 'class_dim'"):
        ASiTConfig(clas_dim=3)
    with pytest.raises(ValueError, match=r"expected input_values \(batch, 2 crops, frames, mel\), got \(2, 96, 32\)"):
        model(torch.randn(2, 96, 32))
    with pytest.raises(ValueError, match="belong together"):
        model(torch.randn(2, 2, 96, 32), torch.randn(2, 2, 96, 32))
    crops = torch.randn(2, 2, 96, 32)
    for wrong in (crops[..., :1], crops[:1], crops[:, :1], crops[0]):
        with pytest.raises(ValueError, match=r"corruption_mask has shape .*, expected that of input_values, \(2, 2, "):
            model(crops, crops, wrong > 0)
        with pytest.raises(ValueError, match="corrupted_values has shape"):
            model(crops, wrong, crops > 0)
