"""Tests DualSSASTForPreTraining beyond the golden numbers: objectives, passes, the decoder, memory and padding."""

import math

import pytest
import torch

from modeling_dual_ssast import ASiTConfig, ASiTForPreTraining, DualSSASTConfig, DualSSASTForPreTraining, DualSSASTModel
from modeling_dual_ssast.modeling_dual_ssast import contrast_clips

TINY = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_mel_bins=32, max_length=128
)
FRAME = {"patch_size": [32, 2], "frequency_stride": 32, "time_stride": 2}
FORMS = [{}, FRAME, {"num_decoder_layers": 1}, {**FRAME, "num_decoder_layers": 2}]
NAMES = ["patch", "frame", "patch-decoder", "frame-decoder"]


def tiny(**settings) -> DualSSASTForPreTraining:
    torch.manual_seed(0)
    return DualSSASTForPreTraining(DualSSASTConfig(**{**TINY, "initializer_range": 0.2, **settings})).eval()


def draw(model, frames: int = 128, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(batch, frames, 32, generator=generator)
    return values, model.sample_mask(values)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_objectives_one_by_one(form):
    joint = tiny(**form)
    values, mask = draw(joint)
    both = joint(values, bool_masked_pos=mask)
    torch.testing.assert_close(both.loss, both.discriminative_loss + 10 * both.generative_loss)
    one = tiny(**form, pretraining_objective="discriminative")(values, bool_masked_pos=mask)
    assert one.generative_loss is None and one.reconstruction is None
    torch.testing.assert_close(one.loss, both.discriminative_loss)
    torch.testing.assert_close(one.discriminative_accuracy, both.discriminative_accuracy)
    one = tiny(**form, pretraining_objective="generative")(values, bool_masked_pos=mask)
    assert one.discriminative_loss is None and one.discriminative_accuracy is None
    torch.testing.assert_close(one.loss, both.generative_loss)


@pytest.mark.parametrize("objective", ["joint", "discriminative", "generative"])
@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_every_parameter_that_learns_gets_a_gradient(form, objective):
    model = tiny(**form, pretraining_objective=objective).train()
    model(*draw(model)[:1]).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    unused = {"discriminative": {"generative_head"}, "generative": {"discriminative_head"}, "joint": set()}[objective]
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == unused


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_the_published_form_takes_a_mask_and_a_pass_for_each_objective(form):
    shared, separate = tiny(**form), tiny(**form, shared_mask=False)
    passes = []
    separate.dual_ssast.layers[0].register_forward_hook(lambda *_: passes.append(1))
    values, mask = draw(shared)
    masks = separate.sample_mask(values)
    assert masks.shape == (2, 2, mask.shape[1]) and not torch.equal(masks[:, 0], masks[:, 1])
    output = separate(values, bool_masked_pos=masks)
    assert len(passes) == 2
    first, second = (shared(values, bool_masked_pos=masks[:, index]) for index in range(2))
    torch.testing.assert_close(output.discriminative_loss, first.discriminative_loss)
    torch.testing.assert_close(output.generative_loss, second.generative_loss)
    torch.testing.assert_close(separate(values, bool_masked_pos=mask).loss, shared(values, bool_masked_pos=mask).loss)
    with pytest.raises(ValueError, match="a mask for each objective, but config.shared_mask is true"):
        shared(values, bool_masked_pos=masks)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_what_is_masked_is_not_seen(form):
    """Other audio under the mask changes the targets, never what the model makes of them."""
    model = tiny(**form)
    values, mask = draw(model)
    patches = torch.nn.functional.unfold(
        values.mT.unsqueeze(1), model.config.patch_shape, stride=model.config.patch_shape
    )
    noisy = torch.where(mask.unsqueeze(1), torch.randn_like(patches), patches)
    noisy = torch.nn.functional.fold(noisy, (32, 128), model.config.patch_shape, stride=model.config.patch_shape)
    before, after = model(values, bool_masked_pos=mask), model(noisy.squeeze(1).mT, bool_masked_pos=mask)
    torch.testing.assert_close(after.reconstruction, before.reconstruction)
    assert not torch.isclose(after.generative_loss, before.generative_loss)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_a_clip_counts_the_same_in_any_company(form):
    model = tiny(**form).double()
    clips = [torch.randn(1, frames, 32, dtype=torch.float64) for frames in (128, 50)]
    masks = [model.sample_mask(clip) for clip in clips]
    alone = [model(clip, bool_masked_pos=mask) for clip, mask in zip(clips, masks)]
    padded = torch.nn.functional.pad(clips[1], (0, 0, 0, 78), value=9.0)
    attention_mask = torch.tensor([[1] * 128, [1] * 50 + [0] * 78])
    rows, columns = model.config.grid_shape
    wide = torch.zeros(1, rows, columns, dtype=torch.bool)
    wide[:, :, : masks[1].shape[1] // rows] = masks[1].unflatten(1, (rows, -1))
    together = model(torch.cat((clips[0], padded)), attention_mask, torch.cat((masks[0], wide.flatten(1))))
    assert together.num_masked.tolist() == [int(mask.sum()) for mask in masks]
    for name in ("loss", "discriminative_loss", "discriminative_accuracy", "generative_loss"):
        torch.testing.assert_close(together[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-6, atol=1e-6)


def test_the_encoder_reads_only_what_is_visible():
    model = tiny(num_decoder_layers=1, mask_ratio=0.75)
    seen = []
    model.dual_ssast.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    model.decoder.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    values, mask = draw(model)
    model(values, bool_masked_pos=mask)
    assert mask.shape[1] == 16 and seen == [2 + 4, 2 + 16]


def test_contrast_is_the_cross_entropy_of_cosines():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(6, 5, generator=generator, requires_grad=True)
    found, accuracy = contrast_clips(vectors, 0.5, gather=True)
    losses, right = [], []
    for crop in range(6):
        partner = crop + 1 if crop % 2 == 0 else crop - 1
        cosines = torch.stack([torch.cosine_similarity(vectors[crop], other, dim=0) for other in vectors]) / 0.5
        others = [place for place in range(6) if place != crop]
        losses.append(cosines[others].logsumexp(0) - cosines[partner])
        right.append(max(others, key=lambda place: cosines[place]) == partner)
    torch.testing.assert_close(found, torch.stack(losses).mean())
    assert accuracy.item() == pytest.approx(sum(right) / 6)
    (by_hand,) = torch.autograd.grad(torch.stack(losses).mean(), vectors)
    torch.testing.assert_close(torch.autograd.grad(found, vectors)[0], by_hand)
    same, accuracy = contrast_clips(torch.eye(4).repeat_interleave(2, 0), 1e-3, gather=True)
    assert same < 1e-6 and accuracy == 1


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_two_crops_add_a_contrast(form):
    """The other losses are those of all crops; the contrast reads visible patches alone, and no padding."""
    contrasting, plain = tiny(**form, clip_contrast_weight=0.5), tiny(**form)
    assert plain.contrast_head is None
    plain.load_state_dict({name: value for name, value in contrasting.state_dict().items() if "contrast" not in name})
    values = torch.randn(3, 2, 128, 32, generator=torch.Generator().manual_seed(1))
    masks = contrasting.sample_mask(values)
    assert masks.shape[:2] == (3, 2) and not torch.equal(masks[:, 0], masks[:, 1])
    lengths = torch.tensor([128, 128, 64])
    attention_mask = (torch.arange(128) < lengths.unsqueeze(1)).long()
    masks[2] = False  # padding is never masked
    output = contrasting(values, attention_mask, masks)
    rows = values.flatten(0, 1), attention_mask.repeat_interleave(2, 0), masks.flatten(0, 1)
    without = plain(*rows)
    torch.testing.assert_close(output.discriminative_loss, without.discriminative_loss)
    torch.testing.assert_close(output.generative_loss, without.generative_loss)
    torch.testing.assert_close(output.loss, without.loss + 0.5 * output.clip_contrast_loss)
    other = values.clone()
    other[2, :, 64:] = 9.0
    torch.testing.assert_close(contrasting(other, attention_mask, masks).clip_contrast_loss, output.clip_contrast_loss)
    contrasting.train()(values, attention_mask, masks).loss.backward()
    assert all(parameter.grad is not None for parameter in contrasting.parameters())
    assert contrasting.bfloat16()(values.bfloat16(), attention_mask, masks).clip_contrast_loss.isfinite()


@pytest.mark.parametrize("form", [FRAME, {**FRAME, "num_decoder_layers": 1}], ids=["frame", "frame-decoder"])
def test_a_clip_of_one_patch_has_nothing_visible_to_contrast(form):
    """Its only patch is masked: the loss stays finite, and so do the gradients."""
    model = tiny(**form, clip_contrast_weight=1.0).train()
    output = model(torch.randn(2, 2, 2, 32, generator=torch.Generator().manual_seed(1)))
    assert output.num_masked.tolist() == [1, 1, 1, 1]
    output.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters()) and output.loss.isfinite()


@pytest.mark.parametrize(
    ("shape", "masks", "pattern"),
    [
        ((2, 128, 32), None, r"expected input_values \(batch, 2 crops, frames, mel\).* got \(2, 128, 32\)"),
        ((2, 3, 128, 32), None, r"expected input_values \(batch, 2 crops, frames, mel\)"),
        ((2, 2, 128, 32), (2, 16), r"expected bool_masked_pos \(batch, 2 crops, patches\).* got \(2, 16\)"),
    ],
)
def test_a_contrast_needs_two_crops(shape, masks, pattern):
    model = tiny(clip_contrast_weight=1.0)
    with pytest.raises(ValueError, match=pattern):
        model(torch.zeros(shape), bool_masked_pos=None if masks is None else torch.zeros(masks, dtype=torch.bool))


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_masks_of_any_dtype_are_read_and_other_shapes_refused(form):
    model = tiny(**form)
    values, mask = draw(model)
    expected = model(values, bool_masked_pos=mask).loss
    for dtype in (torch.long, torch.uint8, torch.float32):
        assert torch.equal(model(values, bool_masked_pos=mask.to(dtype)).loss, expected)
    for wrong in (mask[:, :3], mask[:1], mask.repeat(2, 1), mask[0]):
        with pytest.raises(ValueError, match=r"bool_masked_pos has shape .*, expected \(batch, patches\) = \(2, "):
            model(values, bool_masked_pos=wrong)
    model.config.shared_mask = False
    for wrong in (torch.stack([mask] * 3, dim=1), torch.stack([mask[:, :3]] * 2, dim=1)):
        with pytest.raises(ValueError, match="bool_masked_pos has shape"):
            model(values, bool_masked_pos=wrong)


def test_a_checkpoint_gains_and_loses_the_decoder(tmp_path):
    tiny().save_pretrained(tmp_path / "without")
    model, report = DualSSASTForPreTraining.from_pretrained(
        tmp_path / "without", num_decoder_layers=1, output_loading_info=True
    )
    assert {key.split(".")[0] for key in report["missing_keys"]} == {"decoder"}
    model.save_pretrained(tmp_path / "with")
    plain, report = DualSSASTForPreTraining.from_pretrained(
        tmp_path / "with", num_decoder_layers=0, output_loading_info=True
    )
    assert not report["missing_keys"] and plain.decoder is None


@pytest.mark.parametrize("kind", [(DualSSASTConfig, DualSSASTForPreTraining), (ASiTConfig, ASiTForPreTraining)])
def test_an_encoder_with_overlapping_patches_is_pretrained_further_side_by_side(kind, tmp_path):
    """As of AST and of fine-tuned SSAST, whose strides of 10 hide nothing: each part is in two patches."""
    config_class, model_class = kind
    overlapping = {"frequency_stride": 8, "time_stride": 8}
    message = "side by side, got strides 8 x 8 for patches of 16 x 16: set frequency_stride=16 and time_stride=16"
    with pytest.raises(ValueError, match=message):
        model_class(config_class(**TINY, **overlapping))
    DualSSASTModel(DualSSASTConfig(**TINY, num_prefix_tokens=1, **overlapping)).save_pretrained(tmp_path)
    own = config_class(**TINY, num_prefix_tokens=1)
    for wanted in ({}, {"max_length": 96}, {"time_stride": 16}):
        with pytest.raises(ValueError, match="pretraining needs patches side by side, got strides 8 x"):
            model_class.from_pretrained(tmp_path, **wanted)
    side_by_side = {"frequency_stride": 16, "time_stride": 16}
    for keywords in (side_by_side, {"config": own}):
        model = model_class.from_pretrained(tmp_path, **keywords)
        encoder = DualSSASTModel.from_pretrained(tmp_path, **side_by_side)
        for name, value in encoder.state_dict().items():
            torch.testing.assert_close(model.dual_ssast.state_dict()[name], value, rtol=0, atol=0)
        crops = torch.randn(2, model.config.num_pretraining_crops, 128, 32)
        assert torch.isfinite(model(crops if crops.shape[1] == 2 else crops[:, 0]).loss)
        with pytest.raises(ValueError, match=message):
            model.resize_position_embeddings(frequency_stride=8, time_stride=8)
    with pytest.raises(ValueError, match=message):  # the check is on again after loading
        model_class(config_class(**TINY, **overlapping))


def saved_bytes(model, frames: int, ratio: float) -> int:
    """Counts the bytes that the backward pass of one clip keeps, each storage once."""
    model.config.mask_ratio = ratio
    torch.manual_seed(0)
    values = torch.randn(1, frames, model.config.num_mel_bins)
    mask = model.sample_mask(values)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.train()(values, bool_masked_pos=mask).loss
    del loss
    return sum(kept.values())


def test_memory_does_not_grow_with_the_masked_patches():
    config = DualSSASTConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=1, intermediate_size=256)
    model = DualSSASTForPreTraining(config)
    few, many = (saved_bytes(model, 1024, count / 512) for count in (100, 400))
    assert abs(many - few) < 0.01 * few


def test_memory_follows_the_length_of_the_clip():
    config = DualSSASTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    model = DualSSASTForPreTraining(config)
    short, long = (saved_bytes(model, frames, 400 / 512) for frames in (205, 1024))
    assert long / short == pytest.approx(512 / 104, rel=0.1)


def test_no_part_of_the_step_waits_for_numbers():
    """The forward pass with given masks is one graph: nothing depends on the values of a tensor."""
    model = tiny()
    values, mask = draw(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(values, bool_masked_pos=mask).loss, model(values, bool_masked_pos=mask).loss)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"pretraining_objective": "both"}, "pretraining_objective must be one of joint, discriminative, generative"),
        ({"num_decoder_layers": -1}, "num_decoder_layers must be an integer from 0, got -1"),
        ({"clustered_mask": 1}, "clustered_mask must be true or false, got 1"),
        ({"shared_mask": "no"}, "shared_mask must be true or false, got 'no'"),
        ({"clip_contrast_weight": -1}, "clip_contrast_weight must be a number from 0, got -1"),
        ({"clip_contrast_weight": 1.0, "shared_mask": False}, "clip_contrast_weight=1.0 needs one mask per crop"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be a number from 0 to below 1, got 1.0"),
    ],
)
def test_wrong_settings_are_told(settings, pattern):
    with pytest.raises(ValueError, match=pattern):
        DualSSASTConfig(**TINY | settings)


def test_stochastic_depth_grows_with_the_block_and_spares_evaluation():
    model = tiny(num_hidden_layers=3, drop_path_rate=0.5)
    assert [layer.drop_path.rate for layer in model.dual_ssast.layers] == [0.0, 0.25, 0.5]
    values, mask = draw(model, batch=8)
    reference = tiny(num_hidden_layers=3)(values, bool_masked_pos=mask)
    torch.testing.assert_close(model(values, bool_masked_pos=mask).loss, reference.loss)
    branch = torch.ones(4000, 2, 3)
    dropped = model.dual_ssast.layers[1].drop_path.train()(branch)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all() and dropped.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_patchify_and_the_reconstruction_have_one_layout(form):
    """That of torch's `unfold`: patches of the lowest mel first, in each the frames of a mel side by side."""
    model = tiny(**form)
    values, mask = draw(model)
    patches, shape = model.patchify(values), model.config.patch_shape
    mel, frames = shape
    count = math.prod((32, 128)) // math.prod(shape)
    assert patches.shape == model(values, bool_masked_pos=mask).reconstruction.shape == (2, count, math.prod(shape))
    torch.testing.assert_close(patches[:, 3], values[:, 3 * frames : 4 * frames, :mel].mT.flatten(1))
    torch.testing.assert_close(patches, torch.nn.functional.unfold(values.mT.unsqueeze(1), shape, stride=shape).mT)
