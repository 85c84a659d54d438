"""
Tests saved folders in a supported version of Transformers.

    python suite.py start SAVED WORK USER   load from folders and, as USER/NAME, from the Hub; infer; fine-tune with
                                            plain Trainer; save, and push as USER/NAME-tuned
    python suite.py resume WORK USER        load what was saved and pushed, and go on with the trainings
    python suite.py load SAVED              what another version has saved

Needs torch, transformers, numpy and accelerate, and nothing of this project. SAVED holds folders, and beside each an
npz with clips and the model's outputs at the time of saving. Prints a line per step; the first failure ends with one
line and status 1. The last line is JSON: the versions, and the largest difference of any number.
"""

import argparse
import json
import platform
import shutil
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import accelerate
import huggingface_hub
import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging

TOLERANCE = 1e-5
STEPS = 3  # of a training; it is taken up again after the second
CLASSIFIERS = ("dual_ssast", "vggish", "panns_cnn14")
PRETRAINED = ("mspm", "asit")
largest = 0.0  # difference between what is computed here and what was computed where the folder was saved


@contextmanager
def step(name: str):
    """Prints how long a step took, or why it failed, and then ends the process."""
    start = time.perf_counter()
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED  {name}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        sys.exit(1)
    print(f"ok      {name} ({time.perf_counter() - start:.1f} s)", flush=True)


def check(condition: bool, message: str):
    if not condition:
        raise AssertionError(message)


def close(found, expected, name: str):
    global largest
    difference = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    check(difference <= TOLERANCE, f"{name} differs by {difference:.1e}, more than {TOLERANCE:g}")
    largest = max(largest, difference)


def load(auto, place: str):
    """From the code that lies beside the weights, not from an installed package."""
    loaded = auto.from_pretrained(place, trust_remote_code=True)
    module = type(loaded).__module__
    check(module.startswith("transformers_modules."), f"{type(loaded).__name__} comes from {module}")
    return loaded


def features_of(extractor, clips):
    return extractor(clips, sampling_rate=extractor.sampling_rate, padding="longest", return_tensors="pt")


@torch.no_grad()
def outputs_of(model, extractor, clips) -> dict[str, np.ndarray]:
    """`states` (clips, tokens, hidden), and where there are such `pooled` (clips, size) and `logits` (clips, labels)"""
    model.eval()
    features = features_of(extractor, clips)
    encoded = model.base_model(**features)
    outputs = {"states": encoded.last_hidden_state, "pooled": encoded.pooler_output}
    if hasattr(model, "classifier"):
        outputs["logits"] = model(**features).logits
    return {name: value.numpy() for name, value in outputs.items() if value is not None}


def clips_of(expected) -> list[np.ndarray]:
    return [expected[name] for name in sorted(expected) if name.startswith("clip_")]


def check_outputs(place: str, expected):
    """Every Auto class of a folder or a repository gives the numbers that it gave where it was saved."""
    clips, is_classifier = clips_of(expected), "logits" in expected
    with step(f"load {place}"):
        config = load(AutoConfig, place)
        extractor = load(AutoFeatureExtractor, place)
        encoder = load(AutoModel, place)
        model = load(AutoModelForAudioClassification if is_classifier else AutoModelForPreTraining, place)
    with step(f"infer {place}"):
        for key, value in outputs_of(model, extractor, clips).items():
            close(value, expected[key], key)
        encoded = outputs_of(encoder, extractor, clips)
        for key in encoded.keys() & expected.keys():
            close(encoded[key], expected[key], f"{key} of AutoModel")
        for clip, vector in zip(clips, encoded["pooled"]):
            close(outputs_of(encoder, extractor, [clip])["pooled"][0], vector, "a clip that is alone in its batch")
            close(encoder.embed(clip, extractor.sampling_rate)[0], vector, "embed")
    if is_classifier:
        with step(f"pipeline {place}"):
            check_pipeline(place, clips, config, expected["logits"])
    return model, extractor


def check_pipeline(place: str, clips, config, logits):
    classify = pipeline("audio-classification", model=place, feature_extractor=place, trust_remote_code=True)
    rate = classify.feature_extractor.sampling_rate
    for clip, row in zip(clips, torch.from_numpy(logits)):
        answers = classify({"array": clip, "sampling_rate": rate}, top_k=config.num_labels)
        scores = {item["label"]: item["score"] for item in answers}
        close([scores[config.id2label[index]] for index in range(config.num_labels)], row.softmax(0), "the pipeline")


def train(model, extractor, clips, out: Path, resume: bool = False):
    """Three steps with plain Trainer, a checkpoint after each; or on from the last checkpoint."""
    has_labels = hasattr(model, "classifier")
    data = []
    for index in range(12):
        clip = clips[index % len(clips)][: 6000 + 900 * index]
        example = {"input_values": features_of(extractor, [clip])["input_values"][0]}
        data.append({**example, "labels": index % model.config.num_labels} if has_labels else example)
    arguments = TrainingArguments(
        str(out),
        max_steps=STEPS,
        save_steps=1,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        seed=0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=extractor)
    trainer.remove_callback(PrinterCallback)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train(resume_from_checkpoint=resume or None)
    check(trainer.state.global_step == STEPS, f"the training ended after {trainer.state.global_step} steps")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    check(len(losses) == STEPS and all(0 < loss < 100 for loss in losses), f"the losses are {losses}")
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    check(bool(moved), "no weight moved")
    return trainer


def save(folder: Path, model, extractor, clips, repository: str = ""):
    """The model and its extractor, on the Hub too if a repository is named; beside the folder, what they give."""
    for part in (model, extractor):
        part.save_pretrained(folder)
        if repository:
            part.push_to_hub(repository)
    np.savez(
        f"{folder}.npz",
        **{f"clip_{index}": clip for index, clip in enumerate(clips)},
        **outputs_of(model, extractor, clips),
    )


def read(folder: Path) -> dict[str, np.ndarray]:
    with np.load(f"{folder}.npz") as stored:
        return dict(stored)


def start(saved: Path, work: Path, user: str):
    for name in (*CLASSIFIERS, *PRETRAINED):
        expected, repository = read(saved / name), f"{user}/{name}"
        check_outputs(str(saved / name), expected)
        model, extractor = check_outputs(repository, expected)
        if name == "asit":  # its pretraining needs two crops and a moving teacher, which plain Trainer does not have
            continue
        with step(f"train {repository}"):
            train(model, extractor, clips_of(expected), work / "checkpoints" / name)
        with step(f"save and push {repository}"):
            save(work / "saved" / name, model, extractor, clips_of(expected), f"{repository}-tuned")
    for name in PRETRAINED:
        with step(f"a classifier from {user}/{name}: train, save and push"):
            become_classifier(f"{user}/{name}", f"{name}_classifier", clips_of(read(saved / name)), work)


def become_classifier(repository: str, name: str, clips, work: Path):
    extractor = load(AutoFeatureExtractor, repository)
    model, loading = AutoModelForAudioClassification.from_pretrained(
        repository, trust_remote_code=True, num_labels=3, output_loading_info=True
    )
    untrained = {key.split(".")[0] for key in loading["missing_keys"]}
    check(untrained == {"classifier"}, f"new weights, beside the classifier's: {untrained}")
    encoder = load(AutoModel, repository)
    close(outputs_of(model, extractor, clips)["pooled"], outputs_of(encoder, extractor, clips)["pooled"], "the encoder")
    train(model, extractor, clips, work / "checkpoints" / name)
    save(work / "saved" / name, model, extractor, clips, f"{repository}_classifier-tuned")


def resume(work: Path, user: str):
    """Checkpoints are folders like any other; a training that was stopped ends with the weights of one that was not."""
    load_saved(work / "saved", user)
    for out in sorted((work / "checkpoints").iterdir()):
        last = out / f"checkpoint-{STEPS - 1}"
        with step(f"resume {out.name}/{last.name}"):
            shutil.rmtree(out / f"checkpoint-{STEPS}")
            auto = AutoModelForPreTraining if out.name in PRETRAINED else AutoModelForAudioClassification
            model, extractor = load(auto, str(last)), load(AutoFeatureExtractor, str(last))
            expected = read(work / "saved" / out.name)
            train(model, extractor, clips_of(expected), out, resume=True)
            for key, value in outputs_of(model, extractor, clips_of(expected)).items():
                close(value, expected[key], f"{key} after the training")


def load_saved(saved: Path, user: str = ""):
    for path in sorted(saved.glob("*.npz")):
        expected = read(path.with_suffix(""))
        check_outputs(str(path.with_suffix("")), expected)
        if user:
            check_outputs(f"{user}/{path.stem}-tuned", expected)


def main():
    parser = argparse.ArgumentParser(description="What saved folders must do in every supported version.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in {"start": ("saved", "work", "user"), "resume": ("work", "user"), "load": ("saved",)}.items():
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=str if word == "user" else Path)
    arguments = vars(parser.parse_args())
    logging.set_verbosity_error()
    {"start": start, "resume": resume, "load": load_saved}[arguments.pop("command")](**arguments)
    modules = (transformers, torch, np, huggingface_hub, accelerate)
    versions = {"python": platform.python_version(), **{module.__name__: module.__version__ for module in modules}}
    print(json.dumps({**versions, "difference": largest}))


if __name__ == "__main__":
    main()
