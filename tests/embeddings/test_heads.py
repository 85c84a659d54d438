"""Tests the heads of a probe: equal to the model's own, the same budget for each, and what each can learn."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import write_class_folders
from tiny_models import MELS, TINY, batch, save_tiny_classifier, save_tiny_cnn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
)

import predict_hf
from hub import push
from modeling_dual_ssast import ASiTConfig, DualSSASTConfig, PannsCnn14Config, VGGishConfig
from training import tasks
from training.data.labels import LabelSet
from training.embeddings import head_training, probe, stored_features
from training.embeddings.arguments import HEADS, ProbeArguments
from training.embeddings.head_training import head_rows, logits_of
from training.embeddings.heads import EMBEDDING, METHODS, POOLED, Head, assemble, config_of
from training.embeddings.stored_features import FeatureNetwork, Stored
from training.errors import InputError
from training.export import __main__ as export
from training.inference.shards import NUM_TOKENS, TOKENS

LABELS = LabelSet(("a", "b", "c"), "single_label_classification")
PAIR = LabelSet(("a", "b"), "single_label_classification")
DUAL = {**TINY, "num_mel_bins": MELS, "patch_size": 16, "initializer_range": 0.3}
NO_CLIPS = SimpleNamespace(feature_extractor=None, windows=None)
CNN_METHODS = ("linear", "mlp", "attentive", "prototypes")
ENCODERS = {
    "patches": DualSSASTConfig(**DUAL, fusion_layers=[1, 2]),
    "one layer": DualSSASTConfig(**DUAL, fusion_layers=[-2], pooling=["mean", "std"], pooling_combination="concat"),
    "frames": DualSSASTConfig(**DUAL, readout="frames", fusion_norm="shared_twice"),
    "gated": DualSSASTConfig(**DUAL, fusion_layers=[0, 2], fusion="gated", num_pooling_heads=4),
    "separate norms": DualSSASTConfig(**DUAL, fusion_layers=[0, 2], fusion_norm="separate"),
    "no norm": DualSSASTConfig(**DUAL, fusion_norm="none"),
    "whole": DualSSASTConfig(**DUAL, attention_over_padding=True),
    "asit": ASiTConfig(**{**DUAL, "fusion_layers": [1, 2]}),
    "vggish": VGGishConfig(channels=[3, 4, 5, 6], fc_size=8, embedding_size=5),
    "cnn14": PannsCnn14Config(channels=[2, 3, 4, 5, 6, 7], embedding_size=5, num_mel_bins=64),
}


def random_weights(module: torch.nn.Module):
    """Gives weights that no initial value hides: zeros would make attention a mean, and all gates equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def stored(network: FeatureNetwork, features: dict) -> Stored:
    """The arrays of a batch as they are computed, without the rounding of shards."""
    arrays, counts = network.run(features)
    arrays = {name: value.numpy() for name, value in arrays.items()}
    num_clips = len(features["input_values"])
    tokens = {
        name: torch.from_numpy(np.concatenate([own[:count] for own, count in zip(value, counts)]))
        for name, value in arrays.items()
        if name.startswith(TOKENS)
    }
    frames = np.cumsum([0, *counts]) if counts else None
    vectors = {name: value for name, value in arrays.items() if name not in (*tokens, NUM_TOKENS)}
    return Stored(np.arange(num_clips + 1), vectors, frames, tokens)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_head_on_stored_arrays_is_the_model_on_audio(name, monkeypatch):
    """In float64, so that nothing but a wrong formula can make a difference of more than 1e-9."""
    config = ENCODERS[name]
    torch.manual_seed(0)
    encoder = AutoModel.from_config(config).double().eval()
    if hasattr(encoder, "bn0"):
        encoder.bn0.running_var.fill_(4.0)
    if getattr(config, "fusion_norm", None) == "separate":
        random_weights(encoder.fusion.layernorms)
    is_cnn = not hasattr(config, "patch_size")
    mels, lengths = config.num_mel_bins, (200, 330, 97) if is_cnn else (64, 40, 17)
    values, mask = batch(*lengths, mels=mels)
    features = {"input_values": values.double(), "attention_mask": mask}
    heads = [Head(METHODS[m], config_of(METHODS[m], config, LABELS)) for m in (CNN_METHODS if is_cnn else HEADS)]
    network = FeatureNetwork(encoder, NO_CLIPS, heads)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())  # a batch of tokens is float32 otherwise
    with torch.no_grad():
        found = stored(network, features)
        for head in heads:
            head.start(0).double().eval()
            random_weights(head)
            own = Stored(
                found.windows,
                {key: value for key, value in found.vectors.items() if key in head.names},
                found.frames,
                {key: value for key, value in found.tokens.items() if key in head.names},
            )
            logits = logits_of(head, own, np.arange(len(lengths)), "cpu")
            model = assemble(encoder, head, head.weights()).double()
            expected = model(**features).logits
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9, msg=head.method.name)
            assert expected.std(dim=0).min() > 1e-6  # the clips differ


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), initializer_range=0.2, fusion_layers=[1, 2])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 12)


def run(folder, encoder, clips, **values):
    """Runs a probe in this process; returns its output folder."""
    recipe = {
        "task": "probe", "model_name_or_path": str(encoder), "dataset_name": str(clips), "num_epochs": 10,
        "learning_rates": [0.01], "num_seeds": 1, "validation_fraction": 0.25, "test_fraction": 0.25,
        "output_dir": str(folder / "out"), **values,
    }  # fmt: skip
    path = folder / "probe.json"
    path.write_text(json.dumps(recipe))
    _, *parts = tasks.parse([str(path)])
    probe.run(*parts)
    return folder / "out"


def compare_with_folder(output, most: float, *words: str):
    """Compares the scores of the test clips with those that predict_hf.py gives with the saved folder."""
    expected = pandas.read_csv(output / "predictions.csv").set_index("file")
    table = output / "scores.csv"
    assert predict_hf.main([str(output / "model"), *expected.index, "--output", str(table), *words]) == 0
    found = pandas.read_csv(table).set_index("file").loc[expected.index]
    columns = ["probability_high", "probability_low"]
    np.testing.assert_allclose(found[columns], expected[columns], rtol=0, atol=most)
    assert expected[columns].std().min() > 10 * most


@pytest.mark.parametrize("method", HEADS)
def test_the_saved_folder_gives_the_scores_of_the_probe(tmp_path, encoder, clips, method, monkeypatch):
    """
    With tokens in float32. A logit is a sum of fewer than 1000 products of moderate size: their rounding, 2^-24 each,
    and that of the folded standardisation stay below 1000 x 2^-24 = 6e-5 of it; a probability moves by less.
    """
    monkeypatch.setattr(stored_features, "TOKEN_DTYPE", "float32")
    output = run(tmp_path, encoder, clips, methods=[method])
    compare_with_folder(output, 1e-4)
    model = AutoModelForAudioClassification.from_pretrained(output / "model", trust_remote_code=True)
    assert list(model.config.id2label.values()) == ["high", "low"]
    results = json.loads((output / "model" / "results.json").read_text())
    assert results["head"]["method"] == method
    head = METHODS[method]
    own = Head(head, config_of(head, AutoModel.from_pretrained(encoder).config, PAIR))
    assert results["head"]["weights"] == own.num_weights == len_of_trained(model, encoder, own)


def test_the_saved_folder_is_exported_pushed_and_opened_by_every_class(tmp_path, encoder, clips):
    output = run(tmp_path, encoder, clips, methods=["linear", "prototypes"], num_epochs=3)
    folder = output / "model"
    files, _ = push.choose_files(folder, "user/name")
    assert {"README.md", "model.safetensors", "results.json", "modeling_dual_ssast.py", "handler.py"} <= set(files)
    assert "validation score" in files["README.md"].decode() and str(tmp_path) not in files["README.md"].decode()
    assert export.main([str(folder), str(tmp_path / "half"), "--format", "safetensors-fp16"]) == 0
    for name in (folder, tmp_path / "half"):
        assert AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True).sampling_rate == 16000
        assert AutoConfig.from_pretrained(name, trust_remote_code=True).num_labels == 2
    assert AutoModel.from_pretrained(folder, trust_remote_code=True).config.fused_layers == [1, 2]
    frames = AutoModelForAudioFrameClassification.from_pretrained(folder, trust_remote_code=True)
    assert frames(torch.zeros(1, 64, 128)).logits.shape == (1, 4, 2)
    run(tmp_path, encoder, clips, methods=["neighbours"], neighbours=[1], overwrite=True)
    assert not folder.exists()  # no head was trained, and the earlier one is not this run's


def len_of_trained(model, encoder, head: Head) -> int:
    """Counts the weights of a saved model that are not those of its encoder."""
    weights = AutoModel.from_pretrained(encoder).state_dict()
    own = {name.removeprefix("dual_ssast."): value for name, value in model.state_dict().items()}
    kept = {name for name in own if name in weights and not name.startswith("fusion.")}
    assert all(torch.equal(own[name], weights[name]) for name in kept)
    return sum(value.numel() for name, value in own.items() if name not in kept)


@pytest.mark.parametrize("method", ["attentive", "multilayer_attentive", "prototypes"])
def test_tokens_in_float16_move_the_logits_as_their_rounding_says(tmp_path, encoder, clips, method):
    """A logit moves by at most sum |gradient x token| x 2^-11 to first order; twice that for higher orders."""
    output = run(tmp_path, encoder, clips, methods=[method])
    model = AutoModelForAudioClassification.from_pretrained(output / "model").eval()
    expected = pandas.read_csv(output / "predictions.csv")
    extractor = AutoModel.from_pretrained(output / "model").own_feature_extractor()
    for row in expected.itertuples():
        audio, rate = soundfile.read(row.file, dtype="float32")
        features = extractor(audio, sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
        method_ = METHODS[method]
        head = Head(method_, config_of(method_, model.config, PAIR))
        head.start(0)
        head.load_state_dict({**head.state_dict(), **_of_head(head, model)})
        network = FeatureNetwork(model.base_model, NO_CLIPS, [head])
        with torch.no_grad():
            data = stored(network, dict(features))
        data.tokens = {name: value.requires_grad_() for name, value in data.tokens.items()}
        logits = logits_of(head, data, np.arange(1), "cpu")[0]
        bounds = []
        for logit in logits:
            gradients = torch.autograd.grad(logit, list(data.tokens.values()), retain_graph=True)
            bounds.append(sum(float((g * x.detach()).abs().sum()) for g, x in zip(gradients, data.tokens.values())))
        most = 2 * max(bounds) * 2**-11 + 1e-5
        probabilities = logits.softmax(dim=0).detach().numpy()
        np.testing.assert_allclose([row.probability_high, row.probability_low], probabilities, rtol=0, atol=most)
        assert most < 0.1  # the bound says something


def _of_head(head: Head, model) -> dict[str, torch.Tensor]:
    """Takes the weights of a head from a saved model."""
    own = {id(parameter): name for name, parameter in head.named_parameters()}
    names = {name: own[id(parameter)] for name, parameter in head._model[0].named_parameters() if id(parameter) in own}
    return {ours: model.state_dict()[name] for name, ours in names.items()}


@pytest.mark.parametrize("method", ["linear", "mlp", "gated", "attentive", "prototypes"])
def test_long_clips_have_the_mean_logits_of_their_windows(tmp_path, encoder, clips, method, monkeypatch):
    monkeypatch.setattr(stored_features, "TOKEN_DTYPE", "float32")
    output = run(tmp_path, encoder, clips, methods=[method], window_s=0.1, hop_s=0.05)
    compare_with_folder(output, 1e-4, "--window_s", "0.1", "--hop_s", "0.05")


@pytest.mark.parametrize("kind", ["several labels", "numbers"])
def test_heads_take_several_labels_and_numbers(tmp_path, encoder, clips, kind, caplog):
    rows = []
    for index, path in enumerate(sorted(clips.rglob("*.wav"))):
        labels = f"{path.parent.name},all" if index % 3 else path.parent.name
        rows.append({"file_name": str(path), "label": labels if kind == "several labels" else 0.1 * index})
    pandas.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)
    values = {"label_separator": ","} if kind == "several labels" else {"problem_type": "regression"}
    values |= {"dataset_name": None, "train_file": str(tmp_path / "clips.csv"), "num_epochs": 5}
    output = run(tmp_path, encoder, clips, methods=["linear", "prototypes", "gated", "neighbours"], **values)
    results = json.loads((output / "results.json").read_text())
    metric, names = ("r2", ["value"]) if kind == "numbers" else ("mean_average_precision", ["all", "high", "low"])
    assert (results["metric"], results["labels"]) == (metric, names)
    assert [row["method"] for row in results["summary"]] == ["linear", "gated", "prototypes"]
    assert all(row["lower"] <= row["upper"] for row in results["summary"])
    assert "neighbours: left out" in caplog.text
    model = AutoModelForAudioClassification.from_pretrained(output / "model")
    assert model.config.problem_type == ("regression" if kind == "numbers" else "multi_label_classification")
    assert model(torch.zeros(2, 64, 128)).logits.shape == (2, len(names))


@pytest.mark.parametrize("family", ["vggish", "panns"])
def test_convolutional_encoders_take_what_they_have(tmp_path, clips, family, monkeypatch):
    monkeypatch.setattr(stored_features, "TOKEN_DTYPE", "float32")
    encoder = save_tiny_cnn(tmp_path / "cnn", family)
    for method in CNN_METHODS:
        (tmp_path / method).mkdir()
        compare_with_folder(run(tmp_path / method, encoder, clips, methods=[method]), 1e-4)
    for method in ("gated", "multilayer_attentive"):
        with pytest.raises(InputError, match=f"methods: {method} weighs layers, and those of a .* side by side"):
            run(tmp_path, encoder, clips, methods=["linear", method])
    assert not (tmp_path / "out" / "embeddings").exists()


@pytest.mark.parametrize("method", ["mlp", "attentive", "prototypes"])
def test_the_original_readout_of_cnn14_has_a_linear_layer_alone(tmp_path, clips, method):
    encoder = save_tiny_cnn(tmp_path / "cnn", "panns", readout="panns")
    with pytest.raises(InputError, match=f"methods: {method} .*readout"):
        run(tmp_path, encoder, clips, methods=[method])
    compare_with_folder(run(tmp_path, encoder, clips, methods=["linear"]), 1e-4)


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"methods": ["gated"], "pooling": ["attention"]}, "methods: gated weighs layers .* got pooling attention"),
        ({"methods": ["attentive"], "readout": "prefix"}, "methods: attentive does not fit .* does not pool"),
        ({"methods": ["gated"], "pooling": ['["mean"]', '["max"]']}, "methods: gated does not fit .* 3 fused layers"),
        ({"methods": ["attentive"], "max_feature_gb": 1e-6}, r"max_feature_gb: the tokens take .*\(attentive .*GB\)"),
        ({"methods": ["linear"], "protocol": "evar", "weight_decays": [0.1]}, "weight_decays: the protocol evar"),
        ({"weight_decays": [-1.0]}, "weight_decays: must be 0 or more, got -1.0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_encoded(tmp_path, encoder, clips, values, pattern):
    with pytest.raises(InputError, match=pattern) as error:
        run(tmp_path, encoder, clips, **values)
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "embeddings").exists()


def test_the_announced_size_is_that_of_the_stored_tokens(tmp_path, encoder, clips, monkeypatch):
    announced = []
    original = stored_features.token_bytes
    monkeypatch.setattr(stored_features, "token_bytes", lambda *a: announced.append(original(*a)) or announced[-1])
    monkeypatch.setattr(Stored, "load", classmethod(_load_and_count(Stored.load.__func__, counted := Counter())))
    run(tmp_path, encoder, clips, methods=["multilayer_attentive"])
    assert announced == [dict(counted)] and len(counted) == 3


def _load_and_count(original, counted: Counter):
    def load(cls, shards, names):
        found = original(cls, shards, names)
        counted.update({name: value.numel() * value.element_size() for name, value in found.tokens.items()})
        return found

    return load


def test_every_head_has_the_same_budget_and_one_encoding(tmp_path, encoder, clips, monkeypatch):
    tried, passes = Counter(), Counter()
    original = head_training.fit

    def fit(head, data, labels, label_set, rates, seed, arguments, device):
        limits = (arguments.num_epochs, arguments.patience, arguments.batch_size)
        tried[head.method.name, rates, seed, limits, tuple(map(len, data.values()))] += 1
        return original(head, data, labels, label_set, rates, seed, arguments, device)

    run_network = FeatureNetwork.run
    monkeypatch.setattr(head_training, "fit", fit)
    monkeypatch.setattr(
        FeatureNetwork, "run", lambda self, f: passes.update(clips=len(f["input_values"])) or run_network(self, f)
    )
    values = {"learning_rates": [0.01, 0.1], "weight_decays": [0.0, 0.1], "num_seeds": 2, "num_epochs": 2}
    output = run(tmp_path, encoder, clips, methods=[*HEADS, "neighbours", "few_shot"], few_shot=[1], **values)
    assert passes["clips"] == 24 and len(tried) == len(HEADS) * 8 and set(tried.values()) == {1}
    budgets = {name: {key[1:] for key in tried if key[0] == name} for name in HEADS}
    assert all(budget == budgets["linear"] for budget in budgets.values())
    results = json.loads((output / "results.json").read_text())
    rows = {row["method"]: row for row in results["summary"]}
    assert set(rows) == {*HEADS, "neighbours", "few_shot, 1 per class"}
    for name in HEADS:
        assert rows[name]["chosen"].count("weight decay") in (1, 2) and rows[name]["weights"] > 0
        assert rows[name]["lower"] <= rows[name]["test"] <= rows[name]["upper"]
    best = max(rows[name]["validation"] for name in HEADS)
    chosen = [name for name in HEADS if rows[name]["validation"] == pytest.approx(best)]
    assert results["model"]["method"] == min(chosen, key=lambda name: rows[name]["weights"])


def test_a_stopped_probe_of_tokens_goes_on_and_gives_the_same(tmp_path, encoder, clips, monkeypatch):
    methods = ["attentive", "gated"]
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", encoder, clips, methods=methods, shard_clips=3)
    calls, original = [], FeatureNetwork.run

    def stopping(self, features):
        calls.append(len(features["input_values"]))
        if sum(calls) > 7:
            raise KeyboardInterrupt
        return original(self, features)

    monkeypatch.setattr(FeatureNetwork, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, encoder, clips, methods=methods, shard_clips=3)
    monkeypatch.undo()
    again = []
    monkeypatch.setattr(
        FeatureNetwork, "run", lambda self, f: again.append(len(f["input_values"])) or original(self, f)
    )
    output = run(tmp_path, encoder, clips, methods=methods, shard_clips=3)
    assert sum(again) == 24 - 6  # two shards of three were stored
    for name in ("probe.csv", "predictions.csv"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


# ---- what the heads can learn ----

SETTINGS = ProbeArguments(
    output_dir="x", learning_rates=[3e-2, 1e-1], num_seeds=1, num_epochs=30, patience=30, batch_size=64
)
SIZE, FRAMES = 32, 80


def planted(count: int, seed: int):
    """
    Three layers of 80 tokens of noise; in the second, one token at a random place is that of the class.

    Returns:
        tokens (layers, clips, frames, size), classes (clips,)
    """
    rng = np.random.default_rng(seed)
    layers = rng.normal(size=(3, count, FRAMES, SIZE)).astype(np.float32)
    labels = np.arange(count) % 2
    for clip, label in enumerate(labels):
        layers[1, clip, rng.integers(FRAMES)] += 8 * np.eye(SIZE, dtype=np.float32)[label]
    return layers, labels


def learn(name: str, make):
    """Trains a head on planted clips; returns its row."""
    method = METHODS[name]
    config = DualSSASTConfig(
        **{**TINY, "hidden_size": SIZE, "patch_size": [MELS, 16], "num_mel_bins": MELS}, fusion_layers=[1]
    )
    config.frequency_stride = MELS
    head = Head(method, config_of(method, config, PAIR))
    data, labels = {}, {}
    for seed, (split, count) in enumerate((("train", 200), ("validation", 60), ("test", 200))):
        layers, labels[split] = planted(count, seed)
        data[split] = make(head, layers)
    (row,) = head_rows(head, data, labels, PAIR, SETTINGS)
    return row


def as_tokens(head: Head, layers: np.ndarray) -> Stored:
    count = layers.shape[1]
    tokens = {
        name: torch.from_numpy(layers[int(name.removeprefix(TOKENS))].reshape(-1, 1, SIZE)).half()
        for name in head.names
    }
    return Stored(np.arange(count + 1), {}, np.arange(count + 1) * FRAMES, tokens)


@pytest.mark.slow
def test_prototypes_and_attention_find_a_short_event_that_a_mean_hides():
    means = lambda head, layers: Stored.of_clips(EMBEDDING, layers[1].mean(axis=1))  # noqa: E731
    assert learn("linear", means)["test"] < 0.8
    assert learn("prototypes", as_tokens)["test"] > 0.95
    assert learn("attentive", as_tokens)["test"] > 0.95


@pytest.mark.slow
def test_heads_of_all_layers_weigh_the_layer_that_has_the_event():
    row = learn("multilayer_attentive", as_tokens)
    assert row["test"] > 0.9
    weights = row["weights"]["dual_ssast.fusion.fusion.layer_weights"]
    assert int(weights.argmax()) == 1

    def maxima(head, layers):
        return Stored(
            np.arange(layers.shape[1] + 1),
            {name: layers[int(name.removeprefix(POOLED))].max(axis=1) for name in head.names},
        )

    row = learn("gated", maxima)
    assert row["test"] > 0.9 and int(row["weights"]["dual_ssast.fusion.fusion.layer_weights"].argmax()) == 1
