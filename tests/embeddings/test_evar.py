"""
Tests the probe's protocol evar: against EVAR's rules written out with plain torch and scikit-learn, number by number.

The rules are those of nttcslab/eval-audio-repr (`lineareval.py`, `2pass_lineareval.py`) and of the classifier that it
downloads, daisukelab/general-learning, `MLP/torch_mlp_clf2.py`.
"""

import contextlib
import json

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import tone, write_class_folders
from sklearn.metrics import average_precision_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from tiny_models import save_tiny_classifier, save_tiny_cnn
from torch.utils.data import DataLoader, TensorDataset

from modeling_dual_ssast import DualSSASTFeatureExtractor
from training import tasks
from training.data.arguments import FrozenDataArguments
from training.data.labels import LabelSet
from training.embeddings import evar, probe, probe_outputs
from training.embeddings.arguments import EVAR, ProbeArguments
from training.errors import InputError
from training.inference import engine


def settings(**values) -> ProbeArguments:
    return ProbeArguments(output_dir="x", protocol="evar", **values)


def clips(kind: str, count: int, seed: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Features that a linear layer separates in part, and class indices or 0 and 1 per label."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(count) % 5
    centres = np.random.default_rng(99).normal(size=(5, 24))
    features = (7 + 30 * (centres[classes] + spread * rng.normal(size=(count, 24)))).astype(np.float32)
    if kind == "single":
        return features, classes
    targets = np.eye(5, dtype=np.float32)[classes]
    targets[np.arange(count), (classes + rng.integers(1, 5, count)) % 5] = 1
    return features, targets


# ---- EVAR's rules, written from its description; nothing of the project is used ----


def by_the_rules(folds: list[dict], seed: int) -> list[tuple[float, int, np.ndarray]]:
    """(test score, best epoch from 1, test outputs) of each fold; `folds` as the probe has them, with raw labels."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    return [one_layer(**fold) for fold in folds]


def one_layer(train, test, validation=None):
    (features, labels), binarizer = train, None
    if labels.ndim == 1:
        binarizer = LabelBinarizer().fit(labels)
        labels = binarizer.transform(labels)
    scaler = StandardScaler()
    whole = len(features)
    features = scaler.fit_transform(features)
    if validation is None:
        for _ in range(100):
            parts = train_test_split(features, labels, test_size=0.1, random_state=None)
            if np.array_equal(parts[3].sum(axis=0) > 0, labels.sum(axis=0) > 0):
                break
        features, held, labels, held_labels = parts
    else:
        held, held_labels = scaler.transform(validation[0]), validation[1]
        held_labels = held_labels if binarizer is None else binarizer.transform(held_labels)
    size = min(200, whole)
    training = DataLoader(TensorDataset(torch.Tensor(features), torch.Tensor(labels)), batch_size=size, shuffle=True)
    checking = DataLoader(TensorDataset(torch.Tensor(held), torch.Tensor(held_labels)), batch_size=size)
    layer = torch.nn.Linear(features.shape[1], labels.shape[1])
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.0003, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-8)
    highest, since, best = 0, 0, None
    for epoch in range(1, 201):
        for inputs, wanted in training:
            optimizer.zero_grad()
            logits = layer(inputs)
            if binarizer is None:
                loss = torch.nn.BCELoss()(torch.sigmoid(logits), wanted)
            else:
                loss = torch.mean(-wanted * torch.log_softmax(logits, dim=-1))
            loss.backward()
            optimizer.step()
        reached = metric(binarizer, *predict(layer, checking))
        if reached >= highest:
            highest, since = reached, 0
            best = epoch, layer.weight.detach().clone(), layer.bias.detach().clone()
        else:
            since += 1
            if since == 20:
                break
    with torch.no_grad():
        layer.weight.copy_(best[1])
        layer.bias.copy_(best[2])
    labels = test[1] if binarizer is None else binarizer.transform(test[1])
    final = DataLoader(TensorDataset(torch.Tensor(scaler.transform(test[0])), torch.Tensor(labels)), batch_size=256)
    outputs, truth = predict(layer, final)
    return metric(binarizer, outputs, truth), best[0], outputs


def predict(layer, loader) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        pairs = [(torch.sigmoid(layer(inputs)), wanted) for inputs, wanted in loader]
    return tuple(torch.cat(part).numpy() for part in zip(*pairs))


def metric(binarizer, outputs: np.ndarray, truth: np.ndarray) -> float:
    if binarizer is None:
        return average_precision_score(truth, outputs, average=None).mean()
    return (outputs.argmax(axis=1) == truth.argmax(axis=1)).mean()


# ---- the layers ----


@pytest.mark.parametrize("kind", ["single", pytest.param("multi", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("has_validation", "num_folds", "num_seeds"), [(True, 1, 2), (False, 2, 1)])
def test_the_layers_are_those_of_the_rules(kind, has_validation, num_folds, num_seeds):
    raw = []
    for fold in range(num_folds):
        parts = {"train": clips(kind, 231, 10 * fold), "test": clips(kind, 60, 10 * fold + 1)}
        raw.append(parts | ({"validation": clips(kind, 45, 10 * fold + 2)} if has_validation else {}))
    eye = np.eye(5, dtype=np.float32)
    folds = [
        {split: (values, eye[labels] if kind == "single" else labels) for split, (values, labels) in fold.items()}
        for fold in raw
    ]
    arguments = settings()
    arguments.num_seeds = num_seeds
    state = torch.get_rng_state()
    found = evar.train_layers(folds, kind == "single", arguments)
    assert torch.equal(state, torch.get_rng_state())
    assert list(found) == [42, 43][:num_seeds]
    epochs = set()
    for seed, outcomes in found.items():
        expected = by_the_rules(raw, seed)
        for outcome, (score, epoch, outputs) in zip(outcomes, expected, strict=True):
            assert (outcome.test, outcome.epoch) == (score, epoch)
            assert np.array_equal(outcome.outputs, outputs)
            epochs.add(epoch)
    assert max(epochs) > 1 and 0.2 < outcomes[0].test < 1  # neither trivial nor impossible
    rows = list(evar.rows_of(found, 3e-4))
    assert [row["test"] for row in rows] == [np.mean([one.test for one in found[seed]]) for seed in found]


def test_a_class_that_no_draw_holds_out_is_an_error():
    features = clips("single", 30, 0)[0]
    targets = np.eye(30, dtype=np.float32)  # every clip is its own class
    with pytest.raises(InputError, match="10% of the 30 training clips never have all 30 classes"):
        evar.train_layers([{"train": (features, targets), "test": (features, targets)}], True, settings())


@pytest.mark.parametrize("num_folds", [1, 2])
def test_a_score_lies_in_its_interval_where_labels_lack_test_clips(num_folds, monkeypatch):
    """Of four labels one is in no test clip of any fold, which counts as 0, and one in a single one of each fold."""
    monkeypatch.setattr(probe_outputs, "MIN_RESAMPLES", 40)
    rng = np.random.default_rng(0)
    targets = np.zeros((60, 4))
    targets[:, :2] = rng.random((60, 2)) < 0.4
    folds = np.array_split(np.arange(60), num_folds)
    for fold in folds:
        targets[fold[0], 2] = 1
    outputs = rng.random((60, 4)) + 0.5 * targets
    label_set = LabelSet(tuple("abcd"), "multi_label_classification")

    def score():
        return np.mean([evar.score(outputs[fold], targets[fold], is_single=False) for fold in folds])

    lower, upper = probe_outputs.interval([outputs], targets, label_set, None, folds)
    assert lower < score() < upper < 0.75
    if num_folds == 1:
        whole = probe_outputs.interval([outputs], targets, label_set, None)
        np.testing.assert_allclose([lower, upper], np.multiply(whole, 0.75), rtol=1e-12)
        return
    targets[folds[0]] = 0  # the whole fold counts as 0
    lower, upper = probe_outputs.interval([outputs], targets, label_set, None, folds)
    assert lower < score() < upper < 0.375


def test_each_fold_counts_as_much_in_an_interval():
    label_set = LabelSet(("a", "b"), "single_label_classification")
    folds, targets = [np.arange(300), np.arange(300, 310)], np.zeros(310, dtype=int)
    outputs = np.tile([1.0, 0.0], (310, 1))
    outputs[300:305] = [0.0, 1.0]  # all of the first fold are right, half of the second
    lower, upper = probe_outputs.interval([outputs], targets, label_set, None, folds)
    assert lower < 0.75 < upper < 0.95


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rates": [1e-3]}, r"learning_rates: is \[0.0003\] in the protocol evar, got \[0.001\]"),
        ({"num_seeds": 5}, "num_seeds: is 3 in the protocol evar, got 5"),
        ({"protocol": "tuned", "clip_s": 1.0}, "clip_s: has an effect with protocol evar alone"),
        ({"clip_s": 0.0}, "clip_s: must be above 0"),
    ],
)
def test_values_that_the_protocol_fixes_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        ProbeArguments(output_dir="x", **{"protocol": "evar", **values})


def test_the_protocol_brings_its_values():
    arguments = settings(seed=0, num_seeds=3)  # as recipes/probe.yaml has them
    assert {name: getattr(arguments, name) for name in EVAR} == EVAR
    assert ProbeArguments(output_dir="x").seed == 0


# ---- the clips ----


@pytest.fixture(scope="module")
def long_and_short(tmp_path_factory):
    """Tones of 0.1 to 0.6 s in three splits of two classes."""
    folder = tmp_path_factory.mktemp("lengths")
    for split, count in (("train", 20), ("validation", 8), ("test", 8)):
        for number in range(count):
            path = folder / split / ("low", "high")[number % 2] / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            sound = tone(0.1 + 0.5 * number / count, hz=(300, 900)[number % 2], seed=number)
            soundfile.write(path, sound, 16000)
    return folder


def parse(encoder, folder, output, *words: str):
    names = ["--model_name_or_path", str(encoder), "--output_dir", str(output), "--protocol", "evar"]
    source = ["--train_file", str(folder)] if folder.suffix else ["--dataset_name", str(folder)]
    return tasks.parse(["recipes/probe.yaml", *source, *names, *map(str, words)])[1:]


def test_clips_have_one_length_and_the_front_end_the_data_sets_statistics(long_and_short, tmp_path, monkeypatch):
    encoder = save_tiny_classifier(tmp_path / "model", initializer_range=0.2)
    seen = []
    original = probe.embed

    def embed(model, dataset, *rest):
        seen.append((model, dataset))
        return original(model, dataset, *rest)

    received, run_windows = [], engine.run_windows
    monkeypatch.setattr(probe, "embed", embed)
    monkeypatch.setattr(
        engine, "run_windows", lambda network, clips, size: received.append(clips) or run_windows(network, clips, size)
    )
    probe.run(*parse(encoder, long_and_short, tmp_path / "out", "--clip_s", 0.25))
    for (_, dataset), clips in zip(seen, received, strict=True):  # what the encoder gets, with the zeros
        np.testing.assert_array_equal(np.stack(clips), np.stack(list(dataset.waveforms())))
    (model, train), _, (_, test) = seen
    assert model.config.max_length == train.feature_extractor.max_length == 23  # frames of 0.25 s
    waves = list(train.waveforms())
    assert {len(wave) for wave in waves} == {4000}
    whole = [super(evar.FixedClips, train).waveform(index) for index in range(len(train))]
    starts = []
    for wave, clip in zip(waves, whole):
        if len(clip) <= 4000:
            np.testing.assert_array_equal(wave, np.pad(clip, (0, 4000 - len(clip))))
        else:
            starts.append(next(s for s in range(len(clip) - 4000) if np.array_equal(clip[s : s + 4000], wave)))
    assert len(set(starts)) > 5  # at random places, and the same ones in a second pass
    assert all(np.array_equal(wave, train.waveform(index)) for index, wave in enumerate(waves))
    for index in range(len(test)):  # from the beginning
        clip = super(evar.FixedClips, test).waveform(index)[:4000]
        np.testing.assert_array_equal(test.waveform(index)[: len(clip)], clip)
    raw = DualSSASTFeatureExtractor()
    log_mels = torch.cat(raw.log_mel([torch.from_numpy(wave) for wave in waves])).double()
    assert train.feature_extractor.mean == pytest.approx(float(log_mels.mean()))
    assert train.feature_extractor.std == pytest.approx(float(log_mels.std(correction=0)))
    assert model.config.padding_value == train.feature_extractor.padding_value
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["clips"] == {"train": 20, "validation": 8, "test": 8}
    (summary,) = results["summary"]
    assert {"method": "linear", "runs": 3, "weights": None, "seconds": None}.items() <= summary.items()
    table = pandas.read_csv(tmp_path / "out" / "probe.csv")
    assert table["seed"].tolist() == [42, 43, 44]


def test_a_stopped_run_does_not_go_on_with_clips_of_another_length(long_and_short, tmp_path, monkeypatch):
    """Both lengths have the same number of frames."""
    encoder = save_tiny_classifier(tmp_path / "model")
    words = (encoder, long_and_short, tmp_path / "out", "--mean", 0, "--std", 4, "--clip_s")

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evar, "train_layers", stop)
    for _ in range(2):  # the second one goes on
        with pytest.raises(KeyboardInterrupt):
            probe.run(*parse(*words, 0.25))
    with pytest.raises(InputError, match="made with cut '4000 samples at random places of seed 42', now '4004 samples"):
        probe.run(*parse(*words, 0.2503))


@pytest.mark.parametrize(
    ("values", "splits", "message"),
    [
        ({"window_s": 0.1}, ("test",), "window_s: the protocol evar has no windows, but clip_s; leave it out"),
        ({"hop_s": 0.1}, ("test",), "hop_s: the protocol evar has no windows"),
        ({"validation_fraction": 0.4}, ("test",), "validation_fraction: is 0.1 in the protocol evar, got 0.4; leave"),
        ({"fold_column": "fold"}, ("test",), "fold_column: the folds divide the training clips, and there is a test"),
        ({"fold_column": "fold"}, ("validation",), "fold_column: .* a validation split; leave it out"),
        ({"fold_column": "fold", "test_fraction": 0.2}, (), "test_fraction: has no effect with fold_column"),
        ({"validation_fraction": 0.0}, ("validation", "test"), None),
        ({"fold_column": "fold"}, (), None),
        ({"test_fraction": 0.2}, (), None),
    ],
)
def test_options_of_the_data_that_the_protocol_does_not_obey_are_refused(values, splits, message):
    arguments = FrozenDataArguments(dataset_name="x", **values)
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        evar.check_data(arguments, {"train", *splits})


def test_the_folds_of_the_data_set_are_used(tmp_path, monkeypatch):
    folder = write_class_folders(tmp_path / "clips", 12)
    paths = sorted(folder.rglob("*.wav"))
    rows = [(str(path), path.parent.name, f"fold {index % 3}") for index, path in enumerate(paths)]
    pandas.DataFrame(rows, columns=["file_name", "label", "fold"]).to_csv(tmp_path / "clips.csv", index=False)
    encoder = save_tiny_cnn(tmp_path / "model", "vggish")
    calls = []
    original = evar.train_layers
    monkeypatch.setattr(evar, "train_layers", lambda folds, *rest: calls.append(folds) or original(folds, *rest))
    parts = parse(encoder, tmp_path / "clips.csv", tmp_path / "out", "--fold_column", "fold", "--clip_s", 1)
    parts[2].num_seeds = 1
    outcomes = probe.run_evar(*parts)
    (folds,) = calls
    held = np.concatenate([indices for indices, _ in outcomes.tested])
    assert sorted(held) == list(range(len(rows))) and len(folds) == 3 and set(folds[0]) == {"train", "test"}
    for (indices, targets), fold in zip(outcomes.tested, folds):
        assert len({rows[index][2] for index in indices}) == 1
        assert np.array_equal(fold["test"][1], targets) and len(fold["train"][0]) == len(rows) - len(indices)
    scores = outcomes.scores(parts[2].seed)
    for (indices, targets), outcome in zip(outcomes.tested, outcomes.by_seed[parts[2].seed]):
        assert evar.score(scores[indices], targets, is_single=True) == outcome.test


def test_a_regression_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.2), 16000)
    pandas.DataFrame({"file_name": [str(tmp_path / "a.wav")] * 4, "label": [0.5, 1.5, 2.5, 0.1]}).to_csv(
        tmp_path / "clips.csv", index=False
    )
    encoder = save_tiny_classifier(tmp_path / "model")
    with pytest.raises(InputError, match="protocol: evar has no regression"):
        probe.run(*parse(encoder, tmp_path / "clips.csv", tmp_path / "out", "--problem_type", "regression"))
