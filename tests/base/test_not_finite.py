"""Tests that NaN and infinity are never results: in losses, gradients, weights, scores, embeddings and metrics."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import error_line, run_program, tone, write_class_folders, write_tone
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_classifier, save_tiny_cnn
from tiny_runs import TINY, train, write_recipe

import embed_hf
import predict_hf
from conversion.checkpoint import ConversionError
from conversion.export_ssast import make_checkpoint
from hub.finite import non_finite_weights
from hub.push import PushError, weight_files
from modeling_dual_ssast import DualSSASTConfig
from training import explain, tasks
from training.base import ridge
from training.base.inference import load_classifier, load_encoder
from training.base.predictions import score_table
from training.base.trainer import AudioTrainer, EarlyStopping
from training.classification import calibration, confidence_intervals, metrics
from training.classification.trainer import ClassificationTrainer
from training.data.labels import LabelSet
from training.embeddings import sweep
from training.embeddings.head_training import head_rows
from training.embeddings.heads import EMBEDDING, METHODS, Head, config_of
from training.embeddings.stored_features import Stored
from training.errors import InputError
from training.export import __main__ as exporting

NAN = float("nan")
FINISHED = ("results.json", "README.md", "model.safetensors", "predictions.csv")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 10)


@pytest.fixture
def recipe(tmp_path, clips):
    """Writes a recipe of six steps with a checkpoint after the third."""
    settings = TINY | {"dataset_name": clips, "html_report": False, "calibrate": False}
    return lambda folder="run", **values: write_recipe(tmp_path, settings | values, folder)


def spoil_loss(trainer, loss):
    return loss * NAN


def spoil_gradient(trainer, loss):
    loss.register_hook(lambda gradient: gradient * NAN)
    return loss * 1.0


def spoil_weights(trainer, loss):
    with torch.no_grad():
        trainer.model.dual_ssast.embeddings.prefix_tokens[0, 0, 0] = torch.inf
    return loss


def spoiled_loss(spoil, first_step: int):
    original = ClassificationTrainer.compute_loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = original(self, model, inputs, return_outputs, num_items_in_batch)
        return spoil(self, found) if model.training and self.state.global_step >= first_step else found

    return compute_loss


@pytest.mark.parametrize(
    ("spoil", "settings", "pattern"),
    [
        (spoil_loss, {}, "^step 5 of 6: the loss is nan; "),
        (spoil_loss, {"loss": "focal", "gradient_accumulation_steps": 2, "num_train_epochs": 3}, "the loss is nan; "),
        (spoil_gradient, {}, r"^step 5 of 6: the gradient is not finite \(its norm is nan\); "),
        (spoil_gradient, {"max_grad_norm": 0}, "^step 5 of 6: the gradient is not finite"),
        (spoil_gradient, {"ema_decay": 0.5}, "^step 5 of 6: the gradient is not finite"),
        (spoil_weights, {}, r"^step 6 of 6: 1 of \d+ tensors hold NaN or infinity|^step 6 of 6: the loss is nan"),
    ],
)
def test_a_training_stops_at_once_and_keeps_its_last_good_checkpoint(recipe, monkeypatch, spoil, settings, pattern):
    path, output = recipe(**settings)
    monkeypatch.setattr(ClassificationTrainer, "compute_loss", spoiled_loss(spoil, 4))
    with pytest.raises(InputError, match=pattern) as caught:
        train(path)
    checkpoints = sorted(entry.name for entry in output.iterdir())
    kept = checkpoints[-1]
    assert f"{output / kept} is kept: lower learning_rate (0.001)" in str(caught.value)
    assert not set(checkpoints) & set(FINISHED) and all(name.startswith("checkpoint-") for name in checkpoints)
    assert not non_finite_weights(load_file(output / kept / "model.safetensors"))


@pytest.mark.slow
def test_a_stopped_training_resumes_from_its_last_good_checkpoint(recipe, monkeypatch):
    path, output = recipe(ema_decay=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTrainer, "compute_loss", spoiled_loss(spoil_loss, 4))
        with pytest.raises(InputError, match="^step 5 of 6"):
            train(path)
    train(path, "--resume_from_checkpoint", "true")
    resumed = load_file(output / "model.safetensors")
    path, undisturbed = recipe("undisturbed", ema_decay=0.5)
    train(path)
    for name, value in load_file(undisturbed / "model.safetensors").items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6)


def test_weights_that_overflow_in_the_last_step_are_no_result(recipe, monkeypatch):
    path, output = recipe(num_train_epochs=0.1, save_strategy="no", eval_strategy="no", test_fraction=0)
    monkeypatch.setattr(ClassificationTrainer, "compute_loss", spoiled_loss(spoil_weights, 0))
    with pytest.raises(InputError, match=r"^step 1 of 1: 1 of \d+ tensors hold NaN .* dual_ssast"):
        train(path)
    assert not any((output / name).exists() for name in FINISHED)


@pytest.mark.parametrize("settings", [{}, {"num_train_epochs": 0.1, "save_strategy": "no"}, {"ema_decay": 0.5}])
def test_a_diverging_training_never_ends_with_a_result(recipe, settings):
    path, output = recipe(learning_rate=1e15, **settings)
    with pytest.raises(InputError, match="not finite|is nan|is inf|NaN or infinity"):
        train(path)
    assert not any((output / name).exists() for name in FINISHED)


@pytest.mark.parametrize("task", ["mspm", "asit"])
def test_a_pretraining_stops_too(clips, tmp_path, task):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    heads = {"class_dim": 12, "data_dim": 8, "head_hidden_size": 16, "head_bottleneck_size": 8}
    recipe = {
        "task": task, "train_sources": [str(clips)], "output_dir": str(tmp_path / "run"), "max_length": 48, "mean": -6,
        "std": 4, "per_device_train_batch_size": 4, "max_steps": 6, "logging_steps": 1, "validation_clips": 2,
        "picture_clips": 0, "disable_tqdm": True, "learning_rate": 1e15, "max_parameter_grad_norm": 0,
        "config_overrides": sizes | (heads if task == "asit" else {}), "warmup_steps": 0, "warmup_epochs": 0,
    }  # fmt: skip
    others = ("max_parameter_grad_norm", "warmup_epochs") if task == "mspm" else ("warmup_steps",)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({name: value for name, value in recipe.items() if name not in others}))
    name, *parts = tasks.parse([str(path)])
    with pytest.raises(InputError, match=r"^step [1-6] of 6: .*(not finite|is nan|NaN or infinity)"):
        tasks.TASKS[name].run(*parts)
    assert not any((tmp_path / "run" / name).exists() for name in FINISHED)


def test_the_scaler_of_fp16_may_skip_steps(monkeypatch):
    trainer = object.__new__(AudioTrainer)
    scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: 1024.0)
    trainer.accelerator = SimpleNamespace(scaler=scaler)
    trainer.is_deepspeed_enabled = False
    trainer.state = SimpleNamespace(global_step=3, max_steps=9)
    trainer.args = SimpleNamespace(world_size=1, output_dir="nowhere", fp16=True, bf16=False, learning_rate=0.1)
    monkeypatch.setattr("transformers.Trainer._get_grad_norm", lambda self, model, norm=None: torch.tensor(torch.inf))
    trainer._loss = torch.ones(1)
    assert trainer._get_grad_norm(None) == torch.inf
    scaler.get_scale = lambda: 0.5
    with pytest.raises(InputError, match="^step 4 of 9: the gradient is not finite .* leave out fp16"):
        trainer._get_grad_norm(None)
    scaler.get_scale = lambda: 1024.0
    trainer._loss = torch.full((1,), torch.inf)
    with pytest.raises(InputError, match="^step 4 of 9: the loss is inf"):
        trainer._get_grad_norm(None)


def test_an_undefined_metric_does_not_stop_early():
    arguments = SimpleNamespace(
        metric_for_best_model="r2", greater_is_better=True, eval_strategy="epoch", load_best_model_at_end=True
    )
    history = [{"eval_r2": value} for value in (NAN, 0.1, 0.2, NAN)]
    control, callback = SimpleNamespace(should_training_stop=False), EarlyStopping(3)
    callback.on_train_begin(arguments, SimpleNamespace(log_history=history), control)
    assert callback.early_stopping_patience_counter == 1 and not control.should_training_stop


SPOILED_PROCESS = """
import os, sys
sys.path.insert(0, os.getcwd())
import train_hf
from training.classification.trainer import ClassificationTrainer
original = ClassificationTrainer.compute_loss
def compute_loss(self, model, *args, **kwargs):
    loss = original(self, model, *args, **kwargs)
    is_spoiled = model.training and self.state.global_step >= 2 and os.environ["RANK"] == "1"
    return loss.detach() * float("nan") + loss * 0 + loss - loss.detach() if is_spoiled else loss
ClassificationTrainer.compute_loss = compute_loss
sys.exit(train_hf.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_all_processes_stop_when_the_loss_of_one_is_nan(recipe, tmp_path):
    path, output = recipe(save_strategy="steps", eval_strategy="steps", save_steps=1, eval_steps=1)
    (tmp_path / "spoiled.py").write_text(SPOILED_PROCESS)
    words = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--nproc_per_node", 2]
    found = run_program("-m", "torch.distributed.run", *words, tmp_path / "spoiled.py", path, timeout=120)
    assert found.returncode == 1
    assert "error: step 3 of 4: the loss is nan" in found.stderr, found.stderr[-3000:]
    assert sorted(entry.name for entry in output.iterdir()) == ["checkpoint-1", "checkpoint-2"]


# ---- loading ----


def spoil_file(folder, value=NAN, name=None):
    weights = load_file(folder / "model.safetensors")
    weights[name or min(weights)].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=[NAN, float("inf"), -float("inf")], ids=str)
def spoiled(tmp_path, request):
    folder = save_tiny_classifier(tmp_path / "spoiled")
    spoil_file(folder, request.param, "dual_ssast.embeddings.prefix_tokens")
    tensors = r"1 of \d+ tensors hold NaN or infinity, the first one \S*embeddings.prefix_tokens; "
    return folder, f"{folder}: {tensors}"


def test_no_program_loads_weights_that_are_not_finite(spoiled, clips, recipe, tmp_path, capsys):
    folder, pattern = spoiled
    output = tmp_path / "e.npz"
    for program, words in ((predict_hf, []), (embed_hf, ["--output", str(output)])):
        assert program.main([str(folder), str(clips), *words]) == 1
        assert re.search(f"^error: {pattern}", capsys.readouterr().err)
    assert not output.exists()
    for load in (load_classifier, explain.load):
        with pytest.raises(InputError, match=pattern):
            load(str(folder))
    path, _ = recipe(model_name_or_path=str(folder), max_length=None, config_overrides=None)
    with pytest.raises(InputError, match="model_name_or_path: .*1 of"):
        train(path)
    with pytest.raises(PushError, match="1 of"):
        weight_files(folder)
    with pytest.raises(ConversionError, match="1 of"):
        make_checkpoint(str(folder))


@pytest.mark.parametrize("family", ["vggish", "panns_cnn14"])
def test_no_program_loads_convolutional_networks_that_are_not_finite(tmp_path, family):
    folder = save_tiny_cnn(tmp_path / family, family)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.startswith(family) and weights[name].is_floating_point())
    spoil_file(folder, name=name)
    for load in (load_classifier, load_encoder):
        with pytest.raises(InputError, match="1 of .*tensors hold NaN"):
            load(str(folder))


def test_weights_of_any_number_format_are_tested():
    weights = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "small": torch.tensor([1.0, NAN]).to(torch.float8_e4m3fn),
        "count": torch.ones(2, dtype=torch.long),
        "empty": torch.ones(0),
        "meta": torch.ones(2, device="meta"),
    }
    assert non_finite_weights(weights) == "1 of 5 tensors hold NaN or infinity, the first one small"
    weights["small"] = weights["half"]
    assert non_finite_weights(weights) == ""


def test_weights_beyond_the_range_of_float16_are_not_exported(tmp_path):
    folder = save_tiny_classifier(tmp_path / "model")
    spoil_file(folder, 1e5, "classifier.dense.bias")
    clip = write_tone(tmp_path / "clip.wav", seconds=0.3)
    words = [folder, tmp_path / "out", "--format", "safetensors-fp16", "--verify_with", clip]
    with pytest.raises(InputError, match="in float16: 1 of .* the first one classifier.dense.bias"):
        exporting.export(exporting.parse(list(map(str, words))))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_finite_is_not_resumed(recipe):
    path, output = recipe(num_train_epochs=1, validation_fraction=0, test_fraction=0)
    train(path)
    spoil_file(output / "checkpoint-5")
    with pytest.raises(InputError, match="checkpoint-5: 1 of .*tensors hold NaN"):
        train(path, "--resume_from_checkpoint", "true", "--num_train_epochs", "2")


# ---- scores and embeddings ----


@pytest.fixture
def overflowing(tmp_path, monkeypatch):
    """A model whose numbers overflow on the loudest of three clips, as they do in float16."""
    folder = save_tiny_classifier(tmp_path / "model")
    files = [write_tone(tmp_path / "clips" / f"{name}.wav", seconds=0.3) for name in "ab"]
    soundfile.write(tmp_path / "clips" / "loud.wav", 0.99 * np.sign(tone(0.3)), 16000)
    original = torch.nn.Module.__call__

    def call(self, *args, **kwargs):
        outputs = original(self, *args, **kwargs)
        if type(self).__name__ == "DualSSASTModel":
            loud = (kwargs["input_values"] if "input_values" in kwargs else args[0]).amax(dim=(1, 2)) > loudest
            for values in (outputs.pooler_output, outputs.last_hidden_state, *(outputs.hidden_states or ())):
                values.data[loud] = torch.inf
        return outputs

    _, extractor = load_classifier(str(folder))
    levels = [
        extractor(soundfile.read(file, dtype="float32")[0], sampling_rate=16000, return_tensors="pt")
        for file in (*files, tmp_path / "clips" / "loud.wav")
    ]
    *others, top = (float(level["input_values"].max()) for level in levels)
    assert top > max(others)
    loudest = (top + max(others)) / 2
    monkeypatch.setattr(torch.nn.Module, "__call__", call)
    return folder, tmp_path / "clips"


@pytest.mark.parametrize("words", [[], ["--window_s", "0.2"]])
def test_predict_names_the_file_whose_scores_are_not_finite(overflowing, tmp_path, capsys, words):
    folder, clips = overflowing
    output = tmp_path / "scores.csv"
    words += ["--windows", str(tmp_path / "windows.csv")] if words else []
    assert predict_hf.main([str(folder), str(clips), "--output", str(output), *words]) == 1
    found = capsys.readouterr()
    assert f"error: {clips / 'loud.wav'}: the model's numbers overflow" in found.err
    assert "1 of 3 files could not be classified" in found.err and "nan" not in found.out
    table = pandas.read_csv(output)
    assert [name.rsplit("/", 1)[1] for name in table["file"]] == ["a.wav", "b.wav"] and not table.isna().any().any()
    if words:
        assert set(pandas.read_csv(tmp_path / "windows.csv")["file"]) == set(table["file"])


@pytest.mark.parametrize("level", ["clip", "frames"])
def test_embed_lists_the_file_whose_embedding_is_not_finite(overflowing, tmp_path, capsys, level):
    folder, clips = overflowing
    output = tmp_path / "out.parquet"
    assert embed_hf.main([str(folder), str(clips), "--output", str(output), "--level", level]) == 0
    assert "loud.wav: the model's numbers overflow" in capsys.readouterr().err
    table = pandas.read_parquet(output)
    assert {name.rsplit("/", 1)[1] for name in table["file_name"]} == {"a.wav", "b.wav"}
    assert np.isfinite(np.stack(list(table["embedding"]))).all()
    assert "loud.wav" in (tmp_path / "out.parquet.unreadable.csv").read_text()


def test_explain_names_the_file(overflowing, tmp_path):
    folder, clips = overflowing
    words = [str(folder), str(clips / "loud.wav"), "--output", str(tmp_path / "out.png")]
    with pytest.raises(InputError, match=r"loud.wav: the model's numbers overflow"):
        explain.draw_file(words)


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("function", "targets"),
    [
        (lambda x, y: metrics.predictions_from_logits(x, SINGLE, 1.0), None),
        (lambda x, y: metrics.predictions_from_logits(x, MULTI, 1.0), None),
        (lambda x, y: metrics.predictions_from_logits(x, REGRESSION, 1.0), None),
        (lambda x, y: metrics.metrics_of_split(x, y, MULTI), np.eye(4, 2)),
        (lambda x, y: metrics.metrics_of_split(x[:, 0], y, REGRESSION), np.arange(4.0)),
        (lambda x, y: confidence_intervals.confidence_intervals(x, y, MULTI), np.eye(4, 2)),
        (lambda x, y: calibration.probabilities(x, SINGLE), None),
        (lambda x, y: calibration.fit_temperature(x, y, SINGLE), np.array([0, 1, 0, 1])),
        (lambda x, y: calibration.calibration_scores(x, y, MULTI, 1.0), np.eye(4, 2)),
        (lambda x, y: calibration.choose_thresholds(x, y), np.eye(4, 2) > 0),
        (lambda x, y: score_table(list("abcd"), LabelSet(("p", "q"), SINGLE), x), None),
    ],
)
def test_no_metric_counts_nan_as_a_class(value, function, targets):
    scores = np.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.4], [0.7, 0.6]], dtype=np.float32)
    function(scores, targets)
    scores[2, 0] = value
    with pytest.raises(InputError, match="scores of 1 of 4 clips are not finite, the first one (number 3|c); "):
        function(scores, targets)


def test_a_sweep_never_chooses_a_candidate_that_is_not_finite(caplog):
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    targets = np.where(np.eye(2)[labels] > 0, 1.0, -1.0)
    arrays = {"noise": rng.normal(size=(20, 3)), "broken": rng.normal(size=(20, 3)), "good": targets.copy()}
    arrays["broken"][7, 1] = np.inf
    folds = [(np.arange(10), np.arange(10, 20)), (np.arange(10, 20), np.arange(10))]
    name, metric = ridge.metric_of(SINGLE)
    blocks = [[("broken",)], [("noise",)], [("good",), ("broken",)], [("good",)]]
    scores = ridge.score_folds(lambda block: arrays[block[0]], blocks, targets, folds, [0.1, 1.0], metric, nested=False)
    scores = scores.with_best_penalty()
    assert [bool(np.isnan(score.folds).all()) for score in scores] == [True, False, True, False]
    alone = ridge.score_folds(
        lambda block: arrays[block[0]], [blocks[1]], targets, folds, [0.1, 1.0], metric, nested=False
    )
    np.testing.assert_array_equal(
        alone.with_best_penalty()[0].folds, scores[1].folds
    )  # the broken ones of the same group change nothing
    found = [sweep.Candidate("patches", (index,), ("mean",), "sum") for index in range(4)]
    table = sweep.make_table(found, scores, name, 1.0)
    assert table.index[0] == 3 and table[name].isna().tolist() == [False, False, True, True]
    assert "2 of 4 candidates have features or predictions that are not finite" in caplog.text
    with pytest.raises(InputError, match="no candidate has finite predictions"):
        sweep.make_table(found[:1], scores[:1], name, 1.0)


def probe_arguments(rates):
    settings = {"seed": 0, "num_seeds": 1, "num_epochs": 8, "patience": 20, "batch_size": 4}
    return SimpleNamespace(learning_rates=rates, weight_decays=[0.0, 0.1], **settings)


def test_a_probe_never_chooses_a_learning_rate_that_diverges(caplog):
    rng = np.random.default_rng(0)
    features = {split: 100 * rng.normal(size=(12, 4)).astype(np.float32) for split in ("train", "validation", "test")}
    labels = {split: np.zeros(12, dtype=int) for split in features}  # all of class 0, as NaN would be
    labels["train"][:6] = 1
    label_set = LabelSet(("p", "q"), SINGLE)
    config = DualSSASTConfig(hidden_size=4, num_attention_heads=1, fusion_layers=[12])
    head = Head(METHODS["linear"], config_of(METHODS["linear"], config, label_set))
    data = {split: Stored.of_clips(EMBEDDING, values) for split, values in features.items()}
    (row,) = head_rows(head, data, labels, label_set, probe_arguments([3e37, 1e-3]))
    assert (
        row["setting"].startswith("learning rate 0.001") and "diverges with the learning rates [3e+37]" in caplog.text
    )
    with pytest.raises(InputError, match=r"learning_rates: the linear head diverges with each of \[3e\+37\]"):
        head_rows(head, data, labels, label_set, probe_arguments([3e37]))


@pytest.mark.slow
def test_the_program_ends_with_an_error(recipe):
    path, output = recipe(learning_rate=1e9)
    assert "error: step" in error_line(run_program("train_hf.py", path))
    assert not any((output / name).exists() for name in FINISHED)
