"""Tests VGGish and CNN14 beyond their golden numbers: batches, short clips, training, readouts, settings, saving."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import MELS, batch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
from warnings_of import warnings_of

from modeling_dual_ssast import (
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    PannsCnn14Model,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishForAudioClassification,
    VGGishModel,
)
from modeling_dual_ssast.feature_extraction_panns_cnn14 import panns_power
from modeling_dual_ssast.modeling_panns_cnn14 import MaskedBatchNorm2d

TINY_VGGISH = dict(channels=[3, 4, 5, 6], fc_size=8, embedding_size=5, num_mel_bins=MELS, example_length=32)
TINY_CNN14 = dict(channels=[2, 3, 4, 5, 6, 7], embedding_size=5, num_mel_bins=MELS)
FAMILIES = {
    "vggish": (VGGishConfig, VGGishModel, VGGishForAudioClassification, VGGishFeatureExtractor, TINY_VGGISH),
    "cnn14": (
        PannsCnn14Config,
        PannsCnn14Model,
        PannsCnn14ForAudioClassification,
        PannsCnn14FeatureExtractor,
        TINY_CNN14,
    ),
}
ALL_VGGISH = [1, 4, 7, 9, 12, 14, 17, 19, 21]
ALL_CNN14 = [1, 2, 3, 4, 5, 6]
CASES = [
    ("vggish", {"fusion_layers": ALL_VGGISH}),
    ("vggish", {"fusion_layers": [7]}),
    ("vggish", {"fusion_layers": ALL_VGGISH, "drop_partial_example": False}),
    ("cnn14", {"fusion_layers": ALL_CNN14}),
    ("cnn14", {"fusion_layers": [1, 4]}),
    ("cnn14", {"readout": "panns"}),
]
both = pytest.mark.parametrize("family", FAMILIES)
pytestmark = pytest.mark.usefixtures("one_thread")


def randomise(model, seed=0):
    """Biases, norms and their statistics that are not zeros and ones, which hide mistakes."""
    torch.manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor += 0.3 * torch.randn_like(tensor)
    return model


def tiny(family, part="model", **options):
    config, model, classifier, _, sizes = FAMILIES[family]
    torch.manual_seed(0)
    made = {"model": model, "classifier": classifier}[part](config(**{**sizes, "num_labels": 3, **options}))
    return randomise(made.eval())


# ---- clips in batches ----


@torch.no_grad()
@pytest.mark.parametrize(("family", "options"), CASES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("lengths", [(1, 20, 31, 32, 33, 63, 64, 65, 100, 150), (1, 20)])
def test_a_clip_does_not_depend_on_its_batch(family, options, dtype, atol, lengths):
    model = tiny(family, **options).to(dtype)
    input_values, mask = batch(*lengths)
    together = model(input_values, mask)
    for index, length in enumerate(lengths):
        alone = model(input_values[index : index + 1, :length])
        torch.testing.assert_close(together.pooler_output[index], alone.pooler_output[0], atol=atol, rtol=0)
        frames = alone.last_hidden_state[0]
        torch.testing.assert_close(together.last_hidden_state[index, : len(frames)], frames, atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("family", "options"), CASES)
@pytest.mark.parametrize("length", [1, 31])
def test_a_short_clip_is_filled_up_with_silence(family, options, length):
    model = tiny(family, **options)
    clip = batch(length)[0]
    filled = torch.cat((clip, torch.full((1, 32 - length, MELS), model.config.padding_value)), dim=1)
    short, full = model(clip), model(filled)
    assert torch.equal(short.pooler_output, full.pooler_output)
    assert not torch.equal(short.pooler_output, model(torch.full_like(filled, -1.0)).pooler_output)


@torch.no_grad()
def test_a_partial_example_is_dropped_or_filled_up():
    drops, keeps = tiny("vggish"), tiny("vggish", drop_partial_example=False)
    clip = batch(80)[0]  # two examples of 32 and half of one
    torch.testing.assert_close(drops(clip).pooler_output, drops(clip[:, :64]).pooler_output)
    filled = torch.cat((clip, torch.full((1, 16, MELS), keeps.config.padding_value)), dim=1)
    torch.testing.assert_close(keeps(clip).pooler_output, drops(filled).pooler_output)
    assert keeps(clip).last_hidden_state.shape[1] == 6 and drops(clip).last_hidden_state.shape[1] == 4
    torch.testing.assert_close(keeps(clip[:, :64]).pooler_output, drops(clip[:, :64]).pooler_output)


@torch.no_grad()
@pytest.mark.parametrize(("family", "options"), CASES)
def test_a_row_without_audio_counts_as_one_frame(family, options):
    model = tiny(family, **options)
    input_values, _ = batch(70, 70)
    mask = torch.zeros(2, 70).long()
    mask[1] = 1
    empty = model(input_values, mask).pooler_output[0]
    silence = model(torch.full((1, 32, MELS), model.config.padding_value)).pooler_output[0]
    torch.testing.assert_close(empty, silence)


@both
def test_inputs_that_do_not_fit_raise_with_both_sides(family):
    model = tiny(family)
    with pytest.raises(ValueError, match=r"\(batch, frames, 32 mel bins\), got \(2, 40, 31\)"):
        model(torch.zeros(2, 40, 31))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 39\), expected .* \(2, 40\)"):
        model(torch.zeros(2, 40, MELS), torch.ones(2, 39))


def test_a_setting_without_effect_is_refused():
    with pytest.raises(ValueError, match="readout='panns' has a classifier of one Linear, got classifier_hidden_sizes"):
        PannsCnn14Config(**TINY_CNN14, readout="panns", classifier_hidden_sizes=[8])
    with pytest.raises(TypeError, match="unexpected keyword 'hidden_act'"):
        VGGishConfig(**TINY_VGGISH, hidden_act="relu")
    earlier = VGGishConfig(**TINY_VGGISH, classifier_hidden_sizes=[8]).to_dict()
    del earlier["classifier_activation"]  # whose name was hidden_act
    assert VGGishConfig.from_dict({**earlier, "hidden_act": "tanh"}).classifier_activation == "tanh"
    stored = PannsCnn14Config(**TINY_CNN14, readout="panns").to_dict() | {"classifier_hidden_sizes": [8]}
    assert PannsCnn14Config.from_dict(stored).classifier_hidden_sizes == []  # an earlier version ignored them
    with pytest.raises(ValueError, match="has a classifier of one Linear"):
        PannsCnn14Config.from_dict(stored, classifier_hidden_sizes=[8])
    with pytest.raises(ValueError, match="window_size must be even, got 511"):
        PannsCnn14FeatureExtractor(window_size=511)


# ---- representations ----


@torch.no_grad()
@pytest.mark.parametrize("poolings", [["mean"], ["max"], ["mean", "max"], ["min"]])
@both
def test_the_vector_is_the_sum_of_the_poolings_over_time(family, poolings):
    model = tiny(family, temporal_pooling=poolings)
    frames = model(batch(100)[0]).last_hidden_state
    parts = {"mean": frames.mean(dim=1), "max": frames.amax(dim=1), "min": frames.amin(dim=1)}
    pooled = model(batch(100)[0]).pooler_output
    torch.testing.assert_close(pooled, sum(parts[name] for name in poolings))
    assert pooled.shape[1] == model.config.fused_size


@torch.no_grad()
def test_each_layer_adds_its_channels_times_rows_in_the_networks_order():
    maps = tiny("cnn14")(batch(70)[0], output_hidden_states=True).hidden_states
    whole = tiny("cnn14", fusion_layers=[6, 1, 3])
    frames = whole(batch(70)[0]).last_hidden_state
    sizes = [whole.config.layer_size(block) for block in (1, 3, 6)]
    assert sizes == [2 * 16, 4 * 4, 7 * 1] and frames.shape == (1, 2, sum(sizes))
    first, third, sixth = frames[0, 0].split(sizes)
    assert torch.equal(first, maps[0][0, :, :16].amax(dim=1).flatten())  # 16 columns of 2 frames, channel-major
    assert torch.equal(third, maps[2][0, :, :4].amax(dim=1).flatten())
    assert torch.equal(sixth, maps[5][0, :, 0].flatten())


@torch.no_grad()
@both
def test_optional_outputs(family):
    model = tiny(family)
    input_values, mask = batch(100, 40)
    output = model(input_values, mask)
    assert output.hidden_states is None
    maps = model(input_values, mask, output_hidden_states=True).hidden_states
    convolutions = [(2, 3, 3, 32, 32), (2, 3, 4, 16, 16), (2, 3, 5, 8, 8), (2, 3, 5, 8, 8)]  # (batch, examples, ...)
    expected = {
        "vggish": [*convolutions, (2, 3, 6, 4, 4), (2, 3, 6, 4, 4), (2, 3, 8), (2, 3, 8), (2, 3, 5)],
        "cnn14": [(2, 2, 50, 16), (2, 3, 25, 8), (2, 4, 12, 4), (2, 5, 6, 2), (2, 6, 3, 1), (2, 7, 3, 1)],
    }[family]
    assert [tuple(m.shape) for m in maps] == expected
    columns = 1 if family == "vggish" else 20
    behind = maps[0][1, columns:] if family == "vggish" else maps[0][1, :, columns:]
    assert not behind.any() and maps[0][1].any()
    as_tuple = model(input_values, mask, return_dict=False)
    assert torch.equal(as_tuple[1], output.pooler_output)
    model.config.output_hidden_states = True
    assert len(model(input_values).hidden_states) == len(maps)


@torch.no_grad()
def test_layers_above_the_highest_in_use_are_not_computed():
    vggish, cnn14 = tiny("vggish", fusion_layers=[4, 9]), tiny("cnn14", fusion_layers=[1, 3])
    calls = []
    for module in (*vggish.features, *vggish.fc, *cnn14.blocks):
        module.register_forward_hook(lambda *_: calls.append(1))
    vggish(batch(64)[0])
    assert len(calls) == 10
    cnn14(batch(64)[0])
    assert len(calls) == 13


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), CASES)
@pytest.mark.parametrize("length", [150, 20])
def test_without_padding_the_network_is_one_graph(family, options, length):
    model = tiny(family, **options)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(batch(length)[0]).pooler_output, model(batch(length)[0]).pooler_output)


# ---- training ----


TRAINED = [
    ("vggish", {"fusion_layers": ALL_VGGISH}, ()),
    ("vggish", {"fusion_layers": [4, 9]}, ("vggish.features.11.", "vggish.features.13.", "vggish.fc.")),
    ("cnn14", {"fusion_layers": ALL_CNN14}, ()),
    ("cnn14", {"fusion_layers": [1, 4]}, ("panns_cnn14.blocks.4.", "panns_cnn14.blocks.5.")),
    ("cnn14", {"readout": "panns"}, ()),
]


@pytest.mark.parametrize(("family", "options", "unreached"), TRAINED)
@pytest.mark.parametrize("loaded", [False, True])
def test_unreached_parameters_are_frozen_and_all_others_get_a_gradient(tmp_path, family, options, unreached, loaded):
    model = tiny(family, "classifier", **options)
    if loaded:
        model.save_pretrained(tmp_path)
        model = type(model).from_pretrained(tmp_path)
    model.train()
    input_values, mask = batch(100, 140, 70, 90)
    model(input_values, mask, labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    names = {name for name, _ in model.named_parameters()}
    expected = {name for name in names if unreached and name.startswith(unreached)}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == expected
    assert {name for name, p in model.named_parameters() if p.grad is None} == expected
    assert all(p.grad.isfinite().all() for _, p in model.named_parameters() if p.grad is not None)


def test_batch_statistics_leave_padding_out():
    maps = torch.randn(3, 4, 10, 5, requires_grad=True)  # (batch, channels, time, rows)
    mask = torch.arange(10) < torch.tensor([10, 4, 7]).unsqueeze(1)
    norm, reference = MaskedBatchNorm2d(4), torch.nn.BatchNorm1d(4)
    normed = norm(maps, mask)
    true_columns = maps.transpose(1, 2)[mask]  # (21, channels, rows)
    torch.testing.assert_close(normed.transpose(1, 2)[mask], reference(true_columns))
    assert not normed.transpose(1, 2)[~mask].any()
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)
    normed.square().sum().backward()
    assert not maps.grad.transpose(1, 2)[~mask].any() and maps.grad.isfinite().all()
    norm.eval(), reference.eval()
    torch.testing.assert_close(norm(maps, mask).transpose(1, 2)[mask], reference(true_columns))
    assert torch.equal(norm(maps, None), torch.nn.BatchNorm2d.forward(norm, maps))


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (torch.tensor([0, 2]), "single_label_classification"),
        (torch.eye(2, 3), "multi_label_classification"),
    ],
)
@pytest.mark.parametrize(("family", "options"), [("vggish", {}), ("cnn14", {}), ("cnn14", {"readout": "panns"})])
def test_losses(family, options, labels, problem_type):
    model = tiny(family, "classifier", **options)
    input_values, mask = batch(100, 40)
    output = model(input_values, mask, labels=labels)
    assert output.logits.shape == (2, 3) and model.config.problem_type == problem_type
    functions = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
    }
    torch.testing.assert_close(output.loss, functions[problem_type](output.logits, labels))
    assert not type(model).accepts_loss_kwargs


@torch.no_grad()
@both
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.2), (torch.float16, 0.05)])
def test_half_precision_stays_close(family, dtype, atol):
    model = tiny(family, "classifier")
    input_values, mask = batch(100, 40)
    expected = model(input_values, mask).logits
    logits = model.to(dtype)(input_values, mask).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, atol=atol, rtol=0.1)


# ---- initialisation, saving, loading ----


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []


@both
@pytest.mark.parametrize("part", ["model", "classifier"])
def test_saved_and_loaded_models_are_bit_equal(tmp_path, family, part):
    model = tiny(family, part)
    model.save_pretrained(tmp_path)
    auto_class = {"model": AutoModel, "classifier": AutoModelForAudioClassification}[part]
    for loader in (type(model), auto_class):  # imported: no trust_remote_code
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is type(model) and not loaded.training
        assert_same_weights(loaded, model)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@both
def test_a_network_in_a_classifier_lacks_only_the_head(tmp_path, family):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    loaded, info = FAMILIES[family][2].from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    head = {"vggish": "classifier", "cnn14": "composed_classifier"}[family]
    assert set(info["missing_keys"]) == {f"{head}.{name}" for name, _ in loaded.classifier.named_parameters()}
    assert not info["unexpected_keys"]
    assert_same_weights(loaded.base_model, model)
    assert (loaded.classifier.layernorm.weight == 1).all() and not loaded.classifier.dense.bias.any()
    assert loaded.classifier.dense.weight.std() > 0


@torch.no_grad()
def test_a_folder_with_the_originals_head_loads_with_composed_features_and_back(tmp_path):
    original = tiny("cnn14", "classifier", readout="panns")
    original.save_pretrained(tmp_path / "original")
    composed, info = PannsCnn14ForAudioClassification.from_pretrained(
        tmp_path / "original", readout="composed", fusion_layers=[2, 5], num_labels=4, output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"composed_classifier"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert composed(batch(64)[0]).logits.shape == (1, 4)
    assert_same_weights(composed.panns_cnn14.blocks, original.panns_cnn14.blocks)
    # Its folder has lost the original's head, and says so.
    composed.save_pretrained(tmp_path / "composed")
    _, info = PannsCnn14ForAudioClassification.from_pretrained(
        tmp_path / "composed", readout="panns", output_loading_info=True
    )
    assert {name.rsplit(".", 1)[0] for name in info["missing_keys"]} == {
        "panns_cnn14.embedding.fc1",
        "audioset_classifier",
    }
    network, info = PannsCnn14Model.from_pretrained(tmp_path / "original", readout="composed", output_loading_info=True)
    assert network.embedding is None and not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize(("family", "options"), [("vggish", {}), ("cnn14", {}), ("cnn14", {"readout": "panns"})])
def test_initialisation_follows_the_seed_and_leaves_nothing_out(tmp_path, family, options):
    config, _, classifier, _, sizes = FAMILIES[family]

    def fresh(seed):
        torch.manual_seed(seed)
        return classifier(config(**sizes, **options))

    assert_same_weights(fresh(0), fresh(0))
    # Transformers 5 makes models on the meta device and fills in what a file lacks: here everything.
    fresh(0).config.save_pretrained(tmp_path)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for made in (fresh(1), classifier.from_pretrained(tmp_path)):
        for name, tensor in made.state_dict().items():
            if name.endswith(("running_mean", "bias", "num_batches_tracked")):
                assert not tensor.any(), name
            elif tensor.ndim == 1:  # norms
                assert (tensor == 1).all(), name
            else:
                assert 0.01 < tensor.std() < 1, name


@both
def test_device_maps_work(tmp_path, family):
    model = tiny(family, "classifier")
    model.save_pretrained(tmp_path)
    assert_same_weights(type(model).from_pretrained(tmp_path, device_map="auto"), model)


@both
def test_models_can_be_made_on_the_meta_device(family):
    with torch.device("meta"):
        model = FAMILIES[family][2](FAMILIES[family][0](**FAMILIES[family][4]))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


# ---- configurations ----


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("vggish", {"fusion_layers": [2]}, r"one or more of 1, 4, 7, 9, 12, 14, 17, 19, 21, .* got \[2\]"),
        ("vggish", {"fusion_layers": [9, 9]}, r"each at most once, got \[9, 9\]"),
        ("vggish", {"fusion_layers": []}, r"got \[\]"),
        ("vggish", {"fusion_layers": 21}, "must be a list of one or more .* got 21"),
        ("vggish", {"channels": [1, 2, 3]}, r"channels must be a list of 4 integers, got \[1, 2, 3\]"),
        ("vggish", {"num_mel_bins": 40}, "num_mel_bins must be a multiple of 16.* got 40"),
        ("vggish", {"example_length": 100}, "example_length must be a multiple of 16.* got 100"),
        ("vggish", {"drop_partial_example": 1}, "drop_partial_example must be true or false, got 1"),
        ("cnn14", {"fusion_layers": [0, 6]}, r"one or more of 1, 2, 3, 4, 5, 6, .* got \[0, 6\]"),
        ("cnn14", {"fusion_layers": [True]}, r"got \[True\]"),
        ("cnn14", {"readout": "frames"}, "readout must be one of composed, panns, got 'frames'"),
        ("cnn14", {"num_mel_bins": 48}, "num_mel_bins must be a multiple of 32.* got 48"),
        ("cnn14", {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be a number from 0 to below 1, got 1.0"),
        (
            "cnn14",
            {"temporal_pooling": ["mean", "median"]},
            r"hold each of mean, max, min, std, attention at most once, got \['mean', ",
        ),
        ("cnn14", {"temporal_pooling": []}, r"temporal_pooling must hold"),
        ("cnn14", {"padding_value": math.nan}, "padding_value must be a finite number, got nan"),
        ("cnn14", {"readout": "panns", "temporal_pooling": ["attention"]}, "readout='panns' does not pool"),
        ("cnn14", {"readout": "panns", "classifier": "prototypes"}, "has a classifier of its own, not 'prototypes'"),
        ("cnn14", {"classifier_hidden_sizes": [0]}, "classifier_hidden_sizes must be a positive integer, got 0"),
    ],
)
def test_wrong_values_fail_and_name_both_sides(tmp_path, family, options, message):
    config, model, _, _, sizes = FAMILIES[family]
    with pytest.raises(ValueError, match=message):
        config(**{**sizes, **options})
    tiny(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        model.from_pretrained(tmp_path, **options)


def test_unknown_keywords_name_the_nearest():
    with pytest.raises(
        TypeError, match=r"VGGishConfig got an unexpected keyword 'fusion_layer'; did you mean 'fusion_l"
    ):
        VGGishConfig(fusion_layer=[21])
    with pytest.raises(TypeError, match=r"PannsCnn14Config .*'pooling'; did you mean 'temporal_pooling'"):
        PannsCnn14Config(pooling=["mean"])


@both
def test_configurations_are_saved_and_loaded(tmp_path, family):
    options = {"fusion_layers": (9, 1) if family == "vggish" else (6, 2), "temporal_pooling": "max", "num_labels": 4}
    config = FAMILIES[family][0](**FAMILIES[family][4], **options)
    assert config.temporal_pooling == ["max"] and config.fusion_layers == list(options["fusion_layers"])
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert AutoConfig.from_pretrained(tmp_path, temporal_pooling=["min"]).temporal_pooling == ["min"]


# ---- features ----


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


EXTRACTORS = [
    (VGGishFeatureExtractor, {}, 16000, lambda n: 1 + max(n - 400, 0) // 160),
    (PannsCnn14FeatureExtractor, {}, 16000, lambda n: 1 + max(n, 512) // 160),
    (PannsCnn14FeatureExtractor, {"sampling_rate": 32000}, 32000, lambda n: 1 + max(n, 1024) // 320),
]
each = pytest.mark.parametrize(("extractor_class", "options", "rate", "frames"), EXTRACTORS)


@each
@pytest.mark.parametrize("num_samples", [1, 240, 399, 400, 513, 15599, 16000, 100000])
def test_frames_of_clips_of_any_length(extractor_class, options, rate, frames, num_samples):
    extractor = extractor_class(**options)
    output = extractor([noise(num_samples), noise(20000)], sampling_rate=rate, return_tensors="pt")
    wanted = frames(num_samples)
    assert output.attention_mask.sum(dim=1).tolist() == [wanted, frames(20000)]
    assert output.input_values.dtype == torch.float32 and output.input_values.isfinite().all()
    assert (output.input_values[0, wanted:] == np.float32(extractor.padding_value)).all()
    alone = extractor(noise(num_samples), sampling_rate=rate, return_tensors="pt").input_values[0]
    assert torch.equal(output.input_values[0, :wanted], alone)


@each
def test_silence_is_the_padding_value(extractor_class, options, rate, frames):
    extractor = extractor_class(**options)
    features = extractor(np.zeros(5000, np.float32), sampling_rate=rate, return_tensors="pt").input_values
    torch.testing.assert_close(features, torch.full_like(features, extractor.padding_value))
    config = VGGishConfig() if extractor_class is VGGishFeatureExtractor else PannsCnn14Config()
    assert config.padding_value == pytest.approx(extractor.padding_value)


@each
def test_long_clips_are_whole_unless_there_is_a_limit(extractor_class, options, rate, frames):
    extractor = extractor_class(**options)
    assert extractor.max_length is extractor.max_samples is extractor.max_seconds is None
    clip = noise(3 * rate)
    assert extractor(clip, sampling_rate=rate, return_tensors="pt").input_values.shape[1] == frames(3 * rate)
    assert extractor(clip, sampling_rate=rate, max_length=50, return_tensors="pt").input_values.shape[1] == 50
    with pytest.raises(ValueError, match="padding='max_length' needs a max_length in frames"):
        extractor(clip, sampling_rate=rate, padding="max_length")
    limited = extractor_class(max_length=50, **options)
    assert limited.max_seconds == pytest.approx(0.5, abs=0.03)
    for more, wanted in ((0, 50), (-1, 49)):
        cut = limited(noise(limited.max_samples + more), sampling_rate=rate, truncation=False, return_tensors="pt")
        assert cut.input_values.shape[1] == wanted
    padded = limited(noise(2000), sampling_rate=rate, padding="max_length", return_tensors="pt")
    assert padded.input_values.shape[1] == 50 and padded.attention_mask.sum() < 50


def test_the_limit_is_warned_of_once():
    with warnings_of("modeling_dual_ssast.feature_extraction_dual_ssast") as messages:
        for _ in range(2):
            VGGishFeatureExtractor(max_length=37)(noise(16000), sampling_rate=16000)
    assert messages == [
        "Clips longer than max_length=37 frames (0.37 s) are cut there. Pass truncation=False to keep whole clips."
    ]


@each
def test_extractors_are_saved_and_loaded(tmp_path, extractor_class, options, rate, frames):
    extractor = extractor_class(max_length=300, padding="max_length", **options)
    extractor.save_pretrained(tmp_path)
    for loader in (extractor_class, AutoFeatureExtractor):
        if loader is AutoFeatureExtractor:
            (VGGishConfig if extractor_class is VGGishFeatureExtractor else PannsCnn14Config)().save_pretrained(
                tmp_path
            )
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is extractor_class and loaded.to_dict() == extractor.to_dict()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: VGGishFeatureExtractor(sampling_rate=32000),
            ValueError,
            "VGGish needs audio at 16000 Hz, got sampling_rate=32",
        ),
        (lambda: VGGishFeatureExtractor(window_size=512), TypeError, "unexpected keyword 'window_size'"),
        (lambda: VGGishFeatureExtractor()(noise(9), sampling_rate=44100), ValueError, "44100 Hz.* needs 16000 Hz"),
        (
            lambda: PannsCnn14FeatureExtractor(sampling_rate=44100),
            ValueError,
            "for 16000 and 32000 Hz; sampling_rate=44100 needs window_size, hop_size, fmin, fmax too",
        ),
        (
            lambda: PannsCnn14FeatureExtractor(fmax=9000.0),
            ValueError,
            "fmin=50.0 and fmax=9000.0 .* sampling_rate=16000",
        ),
        (lambda: PannsCnn14FeatureExtractor(hop_size=0), ValueError, "hop_size must be a positive integer, got 0"),
        (lambda: PannsCnn14FeatureExtractor(fmaxx=1.0), TypeError, "keyword 'fmaxx'; did you mean 'fmax'"),
        (
            lambda: PannsCnn14FeatureExtractor(num_mel_bins=0),
            ValueError,
            "num_mel_bins must be a positive integer, got 0",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_power_spectrogram_is_centred_and_mirrored():
    clip = torch.from_numpy(noise(40000))
    window = torch.hann_window(512)
    expected = torch.stft(clip, 512, 160, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = torch.cat(list(panns_power(clip, 512, 160)))
    torch.testing.assert_close(power, expected.abs().square().T, atol=1e-4, rtol=1e-4)
