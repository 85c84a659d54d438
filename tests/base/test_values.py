"""Tests that no value of any option of any program ends in a traceback: it is taken, or refused in one line."""

import json
import re

import pytest
from audio_files import write_class_folders
from tiny_models import save_tiny_classifier
from tiny_runs import TINY, train
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

import embed_hf
import predict_hf
import train_hf
from conversion import __main__ as conversion
from training import check, explain, tasks
from training.errors import InputError, blamed, short_words
from training.export import __main__ as exporting
from training.prepare import __main__ as preparing
from training.recipe import options, parse_words

HOSTILE = (
    "0", "-1", "nan", "inf", "-inf", "1e30", "1" + "0" * 24, "", "x", "x" * 5000, "{}", "[]", "[1,", '{"a": 1}', "é",
    "-0.5", "true", "x y", "../..", "none",
)  # fmt: skip
LONGEST = 1000  # characters of a message


def message_of(call) -> str:
    """Returns the one line with which a call refuses its words; empty where it takes them."""
    try:
        call()
    except InputError as error:
        message = str(error)
        assert "\n" not in message and 10 < len(message) < LONGEST, message
        return message
    return ""


def options_of(task: str) -> list[str]:
    classes = (tasks.TaskArguments, *tasks.TASKS[task].arguments)
    return list(dict.fromkeys(option.name for cls in classes for option in options(cls)))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(task="classification", **values):
        data = {"mspm": {"train_sources": ["x"]}, "asit": {"train_sources": ["x"]}}.get(task, {"dataset_name": "x"})
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({"task": task, "output_dir": "run", **data, **values}))
        return str(path)

    return write


def check_options(path: str, names: list[str], values) -> int:
    refused = 0
    for place, name in enumerate(names):
        for value in values(place):
            message = message_of(lambda words=[path, f"--{name}={value}"]: tasks.parse(words))
            refused += bool(message)
            # With another task, other keys of the recipe are wrong; of two names for one option, the older one is told.
            known = (name, name.replace("activation", "gradient"), "dataset_name", "train_sources")
            assert not message or any(one in message for one in known), (name, value, message)
    return refused


# Most options of these two are those of `classification`; the slow test below tries all of them.
ALIKE = ("cross_validation", "detection")


@pytest.mark.parametrize("task", [task for task in tasks.TASKS if task not in ALIKE])
def test_every_option_of_a_task_takes_or_refuses_a_hostile_value(recipe, task):
    """Tries one value per option, another one for the next."""
    names = options_of(task)
    refused = check_options(recipe(task), names, lambda place: [HOSTILE[place % len(HOSTILE)]])
    assert refused > len(names) / 5


@pytest.mark.slow
@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_option_of_a_task_takes_or_refuses_every_hostile_value(recipe, task):
    names = options_of(task)
    assert check_options(recipe(task), names, lambda place: HOSTILE) > len(names)


PROGRAMS = {
    "predict_hf": (predict_hf.PredictArguments, ["--model", "m", "--inputs", "x"]),
    "embed_hf": (embed_hf.EmbedArguments, ["--model", "m", "--inputs", "x", "--output", "o.npz"]),
    "check": (check.CheckArguments, ["--dataset_name", "x"]),
    "explain": (explain.ExplainArguments, ["--model", "m", "--file", "x"]),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_of_a_program_takes_or_refuses_every_hostile_value(program):
    cls, needed = PROGRAMS[program]
    for option in options(cls):
        for value in HOSTILE:
            words = [*needed, f"--{option.name}={value}"]
            message = message_of(lambda words=words: parse_words((cls,), words, "", "command line"))
            if option.metadata["limits"] and value in ("nan", "inf", "-1", "x", "é", "1" + "0" * 24):
                assert option.name in message, (option.name, value)


def refusal(main, words: list[str], capsys) -> str:
    """Returns the last line on stderr of a program that refuses its words."""
    try:
        status = main(words)
    except SystemExit as stop:  # of argparse
        status = stop.code
    error = capsys.readouterr().err
    assert status in (1, 2) and "Traceback" not in error, (words, error)
    (line,) = [line for line in error.splitlines() if "error: " in line]
    return line


@pytest.mark.parametrize("value", HOSTILE)
def test_the_other_programs_refuse_hostile_values(value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("--format", "--input", "--opset", "--verify_with", "--data", "--label_column"):
        words = ["nowhere", "out", *(["--format", "onnx"] if option != "--format" else []), f"{option}={value}"]
        refusal(exporting.main, words, capsys)
    for option in ("--task", "--max-length", "--frequency-stride", "--labels", "--sampling-rate", "--mean", "--std"):
        refusal(conversion.main, ["ssast", "nowhere.pth", "out", f"{option}={value}"], capsys)
    for option in ("--split", "--seed"):
        words = ["esc50", "--from", "nowhere", f"{option}={value}"]
        refusal(lambda argv: preparing.run_program(preparing.program, argv), words, capsys)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--learning_rate", "nan"], "learning_rate: must be 0 or more, got nan"),
        (["--adam_beta2", "1"], "adam_beta2: must be from 0 to below 1, got 1.0"),
        (["--mean", "inf"], "mean: must be a finite number, got inf"),
        (["--weight_decay", "1e16"], r"weight_decay: must be a number up to 1e\+15, got 1e\+16"),
        (["--seed", "4294967296"], r"seed: must be a number up to .*, got 4294967296"),
        (["--num_train_epochs", "0"], "num_train_epochs: must be above 0 and at most"),
        (["--std", "0"], "std: must be above 0, got 0.0"),
        (["--logging_steps", "0"], "logging_steps: must be above 0, got 0.0"),
        (["--attn_implementation", "fast"], "attn_implementation: must be sdpa, eager, .*, got 'fast'"),
        (["--torch_compile_mode", "fast"], "torch_compile_mode: must be default, .*, got 'fast'"),
        (["--lr_scheduler_kwargs", "[1]"], r"lr_scheduler_kwargs: must be a mapping, .*, got '\[1\]'"),
        (["--gradient_checkpointing_kwargs", '{"fast": 1}'], "gradient_checkpointing_kwargs: fast is unknown"),
        (["--accelerator_config", "x"], "accelerator_config: 'x' cannot be used here; correct it or leave it out: .*x"),
        (["--deepspeed", "x.json"], "deepspeed: 'x.json' cannot be used here|deepspeed"),
        (["--fsdp", "x"], "Unknown `fsdp` option: x"),
        (["--debug", "underflow_overflow"], "debug: is not needed"),
        (["--neftune_noise_alpha", "1"], "neftune_noise_alpha: has no effect on recordings"),
        (["--eval_do_concat_batches", "false"], "eval_do_concat_batches: the evaluation here needs its default"),
        (["--logging_nan_inf_filter", "true"], "logging_nan_inf_filter: would hide a loss that is not finite"),
        (["--pooling", '["mean"'], "pooling: .* give names, or"),
        (["--from_sweep", "x" * 5000], "from_sweep: x+.*; name the output folder of a finished sweep"),
        (["--config_overrides", '{"num_labels": 3}'], "config_overrides: num_labels follows from the data"),
        (["--fp16", "true"], "fp16: needs a GPU, and there is none; leave it out, or take bf16"),
        (["--dataset_name", "a\0b"], "dataset_name: must be a text without zero bytes"),
        (["--save_total_limit", "0"], "save_total_limit: must be 1 or more, got 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_limits(recipe, monkeypatch, words, pattern):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("training.base.arguments.is_emulated", lambda dtype, device: False)
    assert re.search(pattern, message_of(lambda: tasks.parse([recipe(), *words])))


@pytest.mark.parametrize(
    "words",
    [["--optim=" + "x y " * 3000], ["--seed=" + "x y " * 3000], ["--seed", "1", *"ab" * 3000], ["--" + "x y" * 3000]],
    ids=lambda words: words[0][:8],
)
def test_a_long_value_of_short_words_is_cut(recipe, words):
    assert words[0][2:6] in message_of(lambda: tasks.parse([recipe(), *words]))


def test_a_choice_of_many_is_refused_with_all_choices(recipe):
    message = message_of(lambda: tasks.parse([recipe(), "--optim=" + "x" * 5000]))
    assert all(re.search(rf"\b{name.value}\b", message) for name in OptimizerNames)


def test_zero_steps_are_unset(recipe):
    assert tasks.parse([recipe(max_steps=0)])[-1].max_steps == -1


def test_a_long_word_is_cut_in_messages():
    assert short_words("a " + "x" * 400 + " b") == "a " + "x" * 297 + "... b"
    with (
        pytest.raises(InputError, match=r"^opt: x: cannot be used here \(KeyError\); leave it out$"),
        blamed("opt: x", "leave it out"),
    ):
        raise KeyError
    with pytest.raises(RuntimeError, match="out of memory"), blamed("opt: x", "leave it out"):
        raise RuntimeError("CUDA out of memory")


# ---- what fails only later ----


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 4)


@pytest.fixture
def run(tmp_path, clips):
    def run(**values):
        path = tmp_path / "recipe.json"
        own = {"dataset_name": str(clips), "output_dir": str(tmp_path / "run"), "html_report": False, "max_steps": 1}
        path.write_text(json.dumps({**TINY, **own, "validation_fraction": 0, "test_fraction": 0, **values}))
        return message_of(lambda: train(str(path)))

    return run


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 64},
            "per_device_train_batch_size: 64 is more than the 8 training clips of 1 processes, and dataloader_drop",
        ),
        ({"optim": "adamw_bnb_8bit"}, "optim: adamw_bnb_8bit: cannot be used here .*; install what it needs"),
        ({"optim": "galore_adamw", "head_learning_rate": 1e-3}, "optim: galore_adamw: cannot be used here"),
        ({"optim_args": "a"}, "optim: adamw_torch_fused with optim_args a: cannot be used here"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type: cosine_with_min_lr with lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": {"a": 1}}, r"lr_scheduler_type: linear with lr_scheduler_kwargs \{'a': 1\}"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 0}, "lr_scheduler_type: polynomial"),
        ({"attn_implementation": "flash_attention_2"}, "model: .*; correct the settings of the model"),
        ({"config_overrides": {"hidden_size": "x"}}, "model: hidden_size must be a positive integer, got 'x'"),
        ({"save_strategy": "best", "eval_strategy": "no"}, "save_strategy: best needs evaluations"),
    ],
)
def test_what_only_the_training_refuses_is_one_line_too(run, values, pattern):
    assert re.search(pattern, run(**values))


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_a_checkpoint_that_was_cut_off_is_named(run, tmp_path, size):
    folder = save_tiny_classifier(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    message = run(model_name_or_path=str(folder), max_length=None, config_overrides=None)
    assert message.startswith("model: ") and message.endswith(f"or take another checkpoint than {folder}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [kind.value for kind in OptimizerNames])
def test_every_optimiser_trains_or_is_refused(run, name):
    message = run(optim=name)
    assert not message or message.startswith(f"optim: {name}: cannot be used here")


@pytest.mark.slow
@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_every_schedule_trains_or_is_refused(run, name):
    message = run(lr_scheduler_type=name)
    assert not message or "lr_scheduler_type" in message


EXTREME = [
    {"attn_implementation": "flex_attention"}, {"torch_compile_backend": "x"}, {"bf16": True}, {"max_length": 1},
    {"max_length": 2**31 - 1}, {"frequency_stride": 1000}, {"time_stride": 1000}, {"fusion_layers": [99]},
    {"readout": "x"}, {"pooling": ["x"]}, {"mean": 1e15}, {"std": 1e-30}, {"sampling_rate": 1},
    {"gradient_accumulation_steps": 2**31 - 1}, {"per_device_train_batch_size": 2**31 - 1},
    {"mixup_rate": 1, "mixup_alpha": 1e15}, {"mixup_rate": 1, "mixup_alpha": 1e-15}, {"gain_db": 200},
    {"loss": "focal", "focal_gamma": 1e15}, {"time_shift_frames": 2**31 - 1}, {"freeze_layers": 2**31 - 1},
    {"random_resized_crop": True, "crop_time_scale": [1e15, 1e15]}, {"layer_decay": 1e-300}, {"ema_decay": 1e-300},
    {"average_from_epoch": 2**31 - 1}, {"window_s": 1e15}, {"hop_s": 1e-15}, {"background_folder": "x"},
    {"max_train_clips": 1}, {"data_seed": 2**31 - 1}, {"adam_epsilon": 0}, {"adam_epsilon": 1e15}, {"learning_rate": 0},
    {"learning_rate": 1e15, "weight_decay": 1e15, "max_steps": 3}, {"classifier_hidden_sizes": [2**31 - 1]},
    {"warmup_steps": 1e15}, {"num_train_epochs": 1e6}, {"logging_strategy": "steps", "logging_steps": 1e-15},
    {"lora_rank": 2**31 - 1}, {"dataloader_persistent_workers": True}, {"dataloader_prefetch_factor": 2},
    {"local_rank": 5}, {"validation_fraction": 1e-15}, {"optim_target_modules": "x"}, {"label_smoothing": 0.999},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("values", EXTREME, ids=json.dumps)
def test_extreme_values_train_or_are_refused(run, values):
    message = run(**values)
    assert not message or len(message) < LONGEST


def test_paths_that_are_too_long_are_one_line(tmp_path, clips, capsys):
    folder, long = save_tiny_classifier(tmp_path / "model"), "x" * 300
    for main, *words in (
        (predict_hf.main, folder, long), (predict_hf.main, long, clips), (explain.main, folder, long),
        (predict_hf.main, folder, clips, "--output", long), (embed_hf.main, folder, clips, "--output", f"{long}.npz"),
        (train_hf.main, long), (check.main, long), (embed_hf.main, folder, long, "--output", tmp_path / "o.npz"),
    ):  # fmt: skip
        assert len(refusal(main, list(map(str, words)), capsys)) < LONGEST
