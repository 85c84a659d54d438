"""Tests pushes: chosen files, files that stay, and the state after a failure; over HTTP, with the local Hub."""

import contextlib
import itertools
import json
import multiprocessing
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from audio_files import ROOT, error_line, write_class_folders, write_tone
from dataset_layouts import tones
from fresh_process import SHIPPED, run_elsewhere
from hub_server import HubServer
from huggingface_hub import (
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    hf_hub_download,
    parse_eval_result_entries,
)
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_classifier
from tiny_runs import TINY, write_recipe
from transformers import AutoModel, AutoModelForAudioClassification, pipeline

import train_hf
from hub import __main__, push
from hub.push import PushError, check_repository, explain, push_files, push_folder
from training.base.outputs import STAGING_NAME
from training.base.push_to_hub import CheckpointPushes

ENDPOINT = {"handler.py", "requirements.txt"}
MODEL = SHIPPED | {"README.md", *push.SETTINGS, "model.safetensors", *push.SENTENCES, *ENDPOINT}
CARD = """---
tags: [audio]
---

# run

```python
repository = "run"  # this model's folder, or its name on the Hub
```
Trained on `/srv/somebody/clips` and ~/more/clips, see https://example.org/a/b.
"""
TOKEN = "hf_" + "aB3" * 8
LEFT = {
    "optimizer.pt": "optimiser states",
    "scheduler.pt": "optimiser states",
    "rng_state_0.pth": "states of the random generators",
    "training_args.bin": "a pickle",
    "predictions.csv": "names of clips",
    "report.html": "holds recordings",
    "clip.wav": "not part of a model",
    ".env": "not part of a model",
    "adapter/adapter_model.safetensors": "merged into the weights",
    "checkpoint-3/model.safetensors": "a checkpoint",
    "other.py": "not part of a model",
}


@pytest.fixture
def run(tmp_path):
    """A finished run as train_hf.py leaves it, among files that stay at home."""
    folder = save_tiny_classifier(tmp_path / "finished" / "run")
    (folder / "README.md").write_text(CARD)
    results = {
        "metrics": {"test": {"accuracy": 0.5}},
        "recipe": {"DataArguments": {"dataset_name": "/srv/me/My clips"}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "learning_curves.png").write_bytes(b"\x89PNG")
    for name in LEFT:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(TOKEN)
    return folder


def test_a_run_that_writes_its_outputs_is_recognised_by_their_folder():
    assert push.UNFINISHED == STAGING_NAME


def test_ctrl_c_ends_with_one_line(run, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(push, "choose_files", interrupt)
    assert __main__.main(["push", str(run), "user/name"]) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("interrupted; ")


def test_one_commit_holds_what_a_model_needs(hub, run, capsys):
    url = push_folder(run, "user/name")
    files = hub.files("user/name")
    assert set(files) == MODEL | {"results.json", "learning_curves.png"}
    repository = hub.repository("user/name")
    assert len(repository.commits) == 2 and url.endswith(repository.at("main").sha)  # the first made the repository
    printed = capsys.readouterr().out
    assert f"  model.safetensors ({len(files['model.safetensors']):,} bytes)\n" in printed
    for name, reason in LEFT.items():
        assert f"  not {name.split('/')[0]}: {reason}" in printed
    assert printed.splitlines()[-1] == f"pushed to {url}"
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert not any(TOKEN.encode() in content or b"/home/" in content for content in files.values())
    assert json.loads(files["results.json"])["recipe"] == {"DataArguments": {"dataset_name": "My clips"}}
    assert (
        json.loads((run / "results.json").read_text())["recipe"]["DataArguments"]["dataset_name"] == "/srv/me/My clips"
    )
    card = files["README.md"].decode()
    assert 'repository = "user/name"  # this' in card and "\n# run\n" in card
    assert "Trained on `clips` and clips, see https://example.org/a/b." in card
    ModelCard(card).validate()
    assert not hub.unknown


def test_figures_on_data_sets_of_the_hub_stand_in_eval_results_too(hub, run):
    """In the form that the Hub reads, which huggingface_hub's own parser accepts."""
    figures = [
        EvalResult("audio-classification", dataset, dataset, metric, value, dataset_split="test", metric_name=metric)
        for dataset, metric, value in (
            ("user/tones", "accuracy", 0.75), ("user/tones", "f1", 0.5), ("my clips", "accuracy", 0.1),
        )
    ]  # fmt: skip
    data = ModelCardData(model_name="run", license="mit", eval_results=figures)
    (run / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n# run\n")
    push_folder(run, "user/name")
    (entry,) = parse_eval_result_entries(yaml.safe_load(hub.files("user/name")[push.EVALUATIONS]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("user/tones", "default", 0.75)
    assert entry.notes == "accuracy, split test"
    (run / "README.md").write_text(CARD)  # a later push without figures takes the file away
    push_folder(run, "user/name")
    assert push.EVALUATIONS not in hub.files("user/name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:///srv/me/clips/a.wav", "a.wav"),
        ("zip://*.wav::/srv/me/secret/clips.zip", "zip://*.wav::clips.zip"),
        ("path:/srv/me/secret/x", "path:x"),
        ("~me/clips/x", "x"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("/srv/me/a b/c.wav", "c.wav"),
        ("/scratch", "scratch"),
        ("/m/09x0r", "/m/09x0r"),
        ("/srv/me/c.wav: not readable", "c.wav: not readable"),
        ('{"path": "/data/birds/", "weight": 2}', '{"path": "birds", "weight": 2}'),
        ('{"path": "/data/John Smith/my birds", "weight": 2}', '{"path": "my birds", "weight": 2}'),
        ("zip://*.wav::/srv/John Smith/my clips.zip", "zip://*.wav::my clips.zip"),
        ("file:///srv/John Smith/a b.wav", "a b.wav"),
        ("~/John Smith/my birds", "my birds"),
        ("/srv/10:30/John Smith/c.wav", "c.wav"),
        ("C:\\Users\\me\\clips", "clips"),
        ("~/clips/a.wav", "a.wav"),
        ("data/a.wav and ../b/c", "data/a.wav and ../b/c"),
        ("https://example.org/a/b, 1/2, /m/09x0r, and/or/not", "https://example.org/a/b, 1/2, /m/09x0r, and/or/not"),
    ],
)  # fmt: skip
def test_an_absolute_path_becomes_its_last_part(text, expected):
    assert push.without_paths({"a": [text], text: 1}) == {"a": [expected], expected: 1}


def test_paths_with_the_same_last_part_get_numbers():
    clips = {"/srv/p1/x.wav": 1, "/srv/p2/x.wav": 2, "x.wav": 3, "x.wav (2)": 4}
    assert push.without_paths(clips) == {"x.wav": 1, "x.wav (2)": 2, "x.wav (3)": 3, "x.wav (2) (2)": 4}


def test_paths_of_the_recipe_are_cut_whole_inside_a_text_too(run):
    """With their spaces, where a text does not show their end."""
    list_of, source = "/data/My Recordings/John Smith/my list.csv", "/mnt/Jane Doe (old)/calls"
    recipe = {"train_file": list_of, "train_sources": [json.dumps({"path": source, "weight": 2})], "separator": "/"}
    results = {"recipe": recipe, "log": [f"{source}/a/1.wav: not readable"]}
    (run / "results.json").write_text(json.dumps(results))
    (run / "README.md").write_text(f"{CARD}\n| {list_of} | 3 / 4 clips of {source}/a.wav, .{source} |\n")
    files, _ = push.choose_files(run, "user/name")
    assert f"\n| my list.csv | 3 / 4 clips of a.wav, .{source} |\n" in files["README.md"].decode()
    recipe = {"train_file": "my list.csv", "train_sources": ['{"path": "calls", "weight": 2}'], "separator": "/"}
    assert json.loads(files["results.json"]) == {"recipe": recipe, "log": ["1.wav: not readable"]}


def test_names_of_unreadable_clips_stay_at_home(run):
    clips = {f"/srv/{folder}/x001.wav": "/srv/John Smith/x001.wav: holds no audio" for folder in ("p1", "p2")}
    (run / "results.json").write_text(json.dumps({"task": "mspm", "unreadable": {"clips": 2, "first": clips}}))
    files, _ = push.choose_files(run, "user/name")
    assert json.loads(files["results.json"]) == {"task": "mspm", "unreadable": {"clips": 2}}


@pytest.mark.parametrize("license", [None, "mit"])
def test_a_model_without_a_licence_is_told(hub, tmp_path, capsys, license):
    folder = save_tiny_classifier(tmp_path / "model")
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n" if license else "---\ntags: [audio]\n---\n")
    push_folder(folder, "user/name")
    assert ("names no license" in capsys.readouterr().err) == (license is None)


def test_names_of_classes_are_no_paths(hub, tmp_path):
    folder = save_tiny_classifier(tmp_path / "model", labels=("/a/b", "/m/0x", "c"))
    (folder / "README.md").write_text(CARD)
    push_folder(folder, "user/name")
    assert json.loads(hub.files("user/name")["config.json"])["id2label"] == {"0": "/a/b", "1": "/m/0x", "2": "c"}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("README.md", "line 3"),
        ("results.json", "recipe.x"),
        ("config.json", "architectures"),
        ("modeling_dual_ssast.py", "line 1"),
    ],
)
def test_a_token_is_refused_before_anything_is_sent(hub, run, name, place):
    if name.endswith(".json"):
        content = json.loads((run / name).read_text()) | {"architectures": [TOKEN], "recipe": {"x": f"--token={TOKEN}"}}
        content.pop("recipe" if name == "config.json" else "architectures")
        text = json.dumps(content)
    else:
        text = f"# {TOKEN}" if name.endswith(".py") else f"---\ntags: []\n# {TOKEN}\n---\n"
    (run / name).write_text(text)
    with pytest.raises(PushError, match=f"run/{name}: {place} holds what looks like an access token") as error:
        push_folder(run, "user/name")
    assert TOKEN not in str(error.value) and not hub.requests


def _shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


def _rewrite(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _write_index(run, *results):
    index = {"model-index": [{"name": "run", "results": [*results]}]}
    (run / "README.md").write_text(f"---\n{yaml.safe_dump(index)}---\n# run\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "config.json: does not exist; is the run finished?"),
        (lambda run: (run / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda run: (run / "config.json").write_text('{"a":' * 100_000), "config.json: cannot be read"),
        (lambda run: (run / "preprocessor_config.json").unlink(), "preprocessor_config.json: does not exist"),
        (lambda run: (run / "README.md").unlink(), "README.md: does not exist; a model needs its card"),
        (lambda run: (run / "model.safetensors").unlink(), "has no model.safetensors; let the run finish"),
        (lambda run: _shorten(run / "model.safetensors"), "model.safetensors: cannot be read"),
        (lambda run: (run / "fusion_dual_ssast.py").unlink(), "lacks fusion_dual_ssast.py, which the model's code"),
        (lambda run: _rewrite(run / "config.json", auto_map={}), "config.json: has no auto_map"),
        (lambda run: _rewrite(run / "config.json", auto_map={"AutoModel": "a/b--c.D"}), "code in another repository"),
        (lambda run: (run / "modeling_dual_ssast.py").write_text("def"), "modeling_dual_ssast.py: is not valid Python"),
        (lambda run: (run / "unfinished-outputs").mkdir(), "a run is writing its outputs there, or was stopped"),
        (lambda run: (run / "results.json").write_text("[]"), "results.json: holds no JSON object"),
        (lambda run: _rewrite(run / "results.json", recipe={"task": "evaluation"}), "of the task evaluation, not of"),
        (lambda run: _rewrite(run / "results.json", recipe={"task": "cross_validation"}), "task cross_validation, not"),
        (lambda run: _write_index(run, {"task": {"type": "x"}}), r"README.md: the metadata .* 'dataset'.\); corre"),
        (lambda run: _write_index(run, 5), "README.md: the metadata at its top cannot be read"),
        (lambda run: (run / "model.safetensors").rename(run / "adapter_model.safetensors"), "an adapter without its"),
    ],
)  # fmt: skip
def test_an_incomplete_folder_is_refused_before_anything_is_sent(hub, run, damage, message):
    damage(run)
    with pytest.raises(PushError, match=message) as error:
        push_folder(run, "user/name")
    assert "\n" not in str(error.value) and not hub.requests


def test_a_later_push_takes_away_what_is_stale_and_nothing_else(hub, run):
    hub.create("user/name", {"notes.md": b"of somebody else", "confusion_matrix.png": b"old", "examples/a.png": b"x"})
    whole = load_file(run / "model.safetensors")
    (run / "model.safetensors").unlink()
    model = AutoModelForAudioClassification.from_config(save_config(run), trust_remote_code=True)
    model.load_state_dict(whole)
    model.save_pretrained(run, max_shard_size="10KB")
    push_folder(run, "user/name")
    shards = {name for name in hub.files("user/name") if name.startswith("model-")}
    kept = {"notes.md", "examples/a.png"}
    expected = MODEL - {"model.safetensors"} | shards | kept | {"model.safetensors.index.json"}
    assert len(shards) > 1 and set(hub.files("user/name")) == expected | {"results.json", "learning_curves.png"}
    broken = run / sorted(shards)[0]
    tensors = load_file(broken)
    save_file(dict(list(tensors.items())[1:]), broken)
    with pytest.raises(
        PushError, match=f"{broken.name}: lacks {next(iter(tensors))}, which model.safetensors.index.json"
    ):
        push_folder(run, "user/name")
    for name in (*shards, "model.safetensors.index.json", "results.json", "learning_curves.png"):
        (run / name).unlink()
    model.save_pretrained(run)
    push_folder(run, "user/name")
    assert set(hub.files("user/name")) == MODEL | kept
    assert {"handler.py", "requirements.txt"} <= MODEL
    AutoModel.from_pretrained(run, trust_remote_code=True).save_pretrained(run)  # an encoder, which no endpoint serves
    push_folder(run, "user/name")
    assert not {"handler.py", "requirements.txt"} & set(hub.files("user/name"))


def test_a_push_over_another_kind_of_model_leaves_nothing_that_transformers_would_load(hub, run):
    foreign = {
        "processor_config.json", "config.4.0.0.json", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json", "confusion_matrix.csv",
    }  # fmt: skip
    hub.create("user/name", dict.fromkeys((*foreign, "old/pytorch_model.bin", "notes.json"), b"{}"))
    push_folder(run, "user/name")
    files = set(hub.files("user/name"))
    assert not foreign & files and {"old/pytorch_model.bin", "notes.json"} < files


def test_the_table_of_the_confusion_matrix_is_pushed_with_the_card_that_names_it(run):
    (run / "confusion_matrix.csv").write_text("label,a,b\na,1,0\nb,0,1\n")
    files, left = push.choose_files(run, "user/name")
    assert files["confusion_matrix.csv"] == run / "confusion_matrix.csv" and "confusion_matrix.csv" not in left


def save_config(folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


# Every request of a push, in order, with what a failure of it is called.
STAGES = {
    "create": ("^/api/repos/create", "POST"),
    "look": ("^/api/models/user/name", "GET"),
    "card": ("^/api/validate-yaml", "POST"),
    "preupload": ("/preupload/", "POST"),
    "batch": (r"\.git/info/lfs/objects/batch", "POST"),
    "upload": ("^/storage/", "PUT"),
    "verify": (r"\.git/info/lfs/objects/verify", "POST"),
    "commit": ("/commit/main", "POST"),
}
FAILURES = {
    401: "the Hub refuses the token (401): run `hf auth login`",
    403: "the token may not write there (403)",
    404: "does not exist, or the token may not see it (404)",
    429: "too many requests (429): wait some minutes",
    500: "the Hub has an internal error (500): try again later",
    "request": "the connection to the Hub failed",
    "response": "the connection to the Hub failed",
}


def weights_on(hub, revision: str = "main") -> dict[str, torch.Tensor]:
    """Downloads the weights through huggingface_hub, like any user of the repository."""
    path = hf_hub_download("user/name", "model.safetensors", revision=revision, force_download=True)
    config = hf_hub_download("user/name", "config.json", revision=revision, force_download=True)
    assert json.loads(Path(config).read_text())["auto_map"]
    return load_file(path)


# A token that may not create repositories may still write to an existing one.
HARMLESS = {("create", 401), ("create", 403)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "failure"), [case for case in itertools.product(STAGES, FAILURES) if case not in HARMLESS]
)
def test_no_failure_leaves_half_a_model_and_every_push_can_be_repeated(hub, run, stage, failure, monkeypatch, capsys):
    push_folder(run, "user/name")
    before, old = hub.repository("user/name").at("main"), load_file(run / "model.safetensors")
    new = {name: tensor + 1 for name, tensor in old.items()}
    save_file(new, run / "model.safetensors", metadata={"format": "pt"})
    (run / "learning_curves.png").unlink()
    (run / "README.md").write_text(CARD + "\nTrained again.\n")
    monkeypatch.chdir(ROOT)
    capsys.readouterr()
    pattern, method = STAGES[stage]
    hub.fail(pattern, method, **({"cut": failure} if isinstance(failure, str) else {"status": failure}))
    assert __main__.main(["push", str(run), "user/name"]) == 1
    hub.heal()
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert FAILURES[failure] in message
    assert "nothing half-written is on the Hub" in message
    arrived = (stage, failure) == ("commit", "response")  # the commit is there, only the answer was lost
    now = hub.repository("user/name").at("main")
    assert (now.sha != before.sha) == arrived
    expected = new if arrived else old
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_on(hub).items())
    assert ("learning_curves.png" in now.files) != arrived
    command = shlex.split(message.split("; to repeat: ")[1])
    assert command[:3] == ["python", "-m", "hub"] and __main__.main(command[3:]) == 0
    assert all(torch.equal(tensor, new[name]) for name, tensor in weights_on(hub).items())
    assert len(hub.repository("user/name").commits) == 3  # one for each push that changed something
    assert all(torch.equal(tensor, old[name]) for name, tensor in weights_on(hub, before.sha).items())


def test_a_first_push_that_fails_leaves_no_file(hub, run):
    hub.fail("/commit/", status=500)
    with pytest.raises(PushError, match=r"\(500\): try again later \(as the test wants it\)"):
        push_folder(run, "user/name")
    assert hub.files("user/name") == {}


@pytest.mark.parametrize(
    ("prepare", "repository", "message"),
    [
        (lambda patch: patch.delenv("HF_TOKEN"), "user/name", "no token: run `hf auth login`, or set HF_TOKEN"),
        (lambda patch: patch.setenv("HF_TOKEN", "hf_wrong"), "user/name", r"refuses the token \(401\)"),
        (lambda patch: None, "other/name", r"may not write there \(403\)"),
        (lambda patch: None, "name", "name the repository with its owner, as in user/name"),
        (lambda patch: None, "user/na me", "is not a repository name"),
        (lambda patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), "user/name", "HF_HUB_OFFLINE is set: unset"),
        (lambda patch: patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"), "user/name", "check the network"),
    ],
)  # fmt: skip
def test_what_keeps_a_push_from_the_hub_is_told(hub, run, monkeypatch, prepare, repository, message):
    prepare(monkeypatch)
    with pytest.raises(PushError, match=message) as error:
        push_folder(run, repository, message="Say's who", private=True)
    assert "\n" not in str(error.value) and not hub.repositories
    command = shlex.split(str(error.value).split("; to repeat: ")[1])
    assert command[3:] == ["push", str(run), repository, "--private", "--message", "Say's who"]


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(hub, run, monkeypatch):
    push_folder(run, "user/name")
    (run / "README.md").write_text(CARD + "Mine.")

    def interrupted(self, *args, _commit=HfApi.create_commit, **settings):
        monkeypatch.setattr(HfApi, "create_commit", _commit)
        push_files({"README.md": b"---\ntags: []\n---\nTheirs."}, "user/name", message="theirs")
        return self.create_commit(*args, **settings)

    monkeypatch.setattr(HfApi, "create_commit", interrupted)
    with pytest.raises(PushError, match=r"somebody else has changed the repository meanwhile \(412\)"):
        push_folder(run, "user/name")
    assert hub.files("user/name")["README.md"].endswith(b"Theirs.")


def test_what_is_to_be_private_is_not_pushed_openly(hub, run):
    hub.create("user/name", {})
    for call in (
        lambda: push_folder(run, "user/name", private=True),
        lambda: check_repository("user/name", private=True),
    ):
        with pytest.raises(PushError, match="exists and is public: make it private on the Hub"):
            call()
    assert not hub.files("user/name")


def test_a_file_that_the_repository_ignores_is_not_left_out_in_silence(hub, run):
    hub.create("user/name", {".gitignore": b"*.safetensors\n"})
    with pytest.raises(PushError, match=r"its .gitignore there leaves out model.safetensors"):
        push_folder(run, "user/name")
    assert set(hub.files("user/name")) == {".gitignore"}


def test_files_of_an_adapter_go_and_folders_of_others_stay(hub, run):
    others = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "model-old/a-of-b.safetensors": b"theirs"}
    hub.create("user/name", others)
    push_folder(run, "user/name")
    assert set(hub.files("user/name")) & set(others) == {"model-old/a-of-b.safetensors"}


def test_labels_that_look_like_paths_keep_their_figures(hub, tmp_path):
    folder = save_tiny_classifier(tmp_path / "model", labels=("/a/b", "/x/b", "/t/"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n| /a/b | 0.5 |\n| /x/b | 0.7 |\n/srv/me/b\n")
    results = {"labels": ["/a/b", "/x/b", "/t/"], "per_class": {"/a/b": 0.5, "/x/b": 0.7}, "path": "/srv/me/b"}
    (folder / "results.json").write_text(json.dumps(results | {"other": {"/srv/x/c": 1, "/srv/y/c": 2}}))
    push_folder(folder, "user/name")
    files = hub.files("user/name")
    assert json.loads(files["results.json"]) == results | {"path": "b", "other": {"c": 1, "c (2)": 2}}
    assert files["README.md"].decode().endswith("| /a/b | 0.5 |\n| /x/b | 0.7 |\nb\n")


def test_the_weights_own_metadata_are_looked_at(hub, run):
    weights = load_file(run / "model.safetensors")
    save_file(weights, run / "model.safetensors", metadata={"format": "pt", "from": "/srv/me/clips"})
    with pytest.raises(PushError, match="its metadata holds a token or a path"):
        push_folder(run, "user/name")


def test_what_is_no_card_and_no_auto_map_is_one_line(hub, run):
    card = (run / "README.md").read_bytes()
    (run / "README.md").write_bytes("Bär".encode("latin-1"))
    with pytest.raises(PushError, match="README.md: is not UTF-8"):
        push_folder(run, "user/name")
    for top in ("license: [mit", "a text"):
        (run / "README.md").write_text(f"---\n{top}\n---\n# A model")
        with pytest.raises(PushError, match=r"README.md: the metadata at its top cannot be read \(.*\); correct it"):
            push_folder(run, "user/name")
    (run / "README.md").write_bytes(card)
    _rewrite(run / "config.json", auto_map=None)
    with pytest.raises(PushError, match="config.json: has no auto_map"):
        push_folder(run, "user/name")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ConnectionError("Network error: HTTP status client error (403 Forbidden)"),
            "the token may not write there (403)",
        ),
        (RuntimeError("Request error: (503 Service Unavailable)"), "the Hub has an internal error (503)"),
        (ConnectionError("refused"), "the connection to the Hub failed (refused): check the network"),
    ],
)
def test_errors_of_the_storage_are_explained(error, told):
    assert explain(error).startswith(told)


def test_private_stays_private(hub, run):
    push_folder(run, "user/name", private=True)
    push_folder(run, "user/name")
    assert hub.repository("user/name").private
    with pytest.raises(Exception, match="401"):
        HfApi(token=False).model_info("user/name")
    push_files({"app.py": b""}, "user/page", message="page", repo_type="space", space_sdk="gradio")
    assert hub.repository("user/page", "spaces").sdk == "gradio"


SCORES = """
import json, sys
sys.modules["modeling_dual_ssast"] = None  # what pip has installed beside it cannot be imported
import numpy as np
from transformers import pipeline
classify = pipeline("audio-classification", sys.argv[1], trust_remote_code=True)
assert type(classify.model).__module__.startswith("transformers_modules."), type(classify.model)
clips = [np.array(clip, dtype=np.float32) for clip in json.loads(sys.argv[2])]
print(json.dumps([classify({"array": clip, "sampling_rate": 16000}) for clip in clips]))
"""


def clips_of_noise() -> list[list[float]]:
    generator = np.random.default_rng(0)
    return [np.round(generator.normal(size=length), 3).tolist() for length in (1000, 2500, 6000)]


@pytest.mark.slow
def test_strangers_get_the_same_scores(hub, run, tmp_path):
    local = pipeline("audio-classification", str(run))
    clips = clips_of_noise()
    expected = [local({"array": np.array(clip, dtype=np.float32), "sampling_rate": 16000}) for clip in clips]
    push_folder(run, "user/name", private=True)
    found = json.loads(run_elsewhere(SCORES, hub, tmp_path, "user/name", json.dumps(clips)))
    for mine, theirs in zip(expected, found):
        assert [entry["label"] for entry in mine] == [entry["label"] for entry in theirs]
        assert [entry["score"] for entry in theirs] == pytest.approx([entry["score"] for entry in mine], abs=1e-6)
    assert not hub.unknown


FINETUNING = """
import sys
sys.modules["modeling_dual_ssast"] = None
import torch
import yaml
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Trainer, TrainingArguments
extractor = AutoFeatureExtractor.from_pretrained("user/name", trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(
    "user/name", trust_remote_code=True, num_labels=2, ignore_mismatched_sizes=True
)
generator = torch.Generator().manual_seed(0)
clips = [(torch.randn(4000, generator=generator).numpy(), index % 2) for index in range(8)]

def collate(batch):
    features = extractor([clip for clip, _ in batch], sampling_rate=16000, return_tensors="pt")
    return {**features, "labels": torch.tensor([label for _, label in batch])}

arguments = TrainingArguments(
    "tuned", max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True, remove_unused_columns=False,
    push_to_hub=True, hub_model_id="user/tuned", save_strategy="no", disable_tqdm=True, learning_rate=0.01,
)
trainer = Trainer(model, arguments, train_dataset=clips, data_collator=collate, processing_class=extractor)
trainer.train()
trainer.push_to_hub()
print(model.classifier.dense.weight.sum().item())
"""


@pytest.mark.slow
def test_a_model_goes_on_without_this_repository(hub, run, tmp_path):
    push_folder(run, "user/name")
    total = float(run_elsewhere(FINETUNING, hub, tmp_path, "x").splitlines()[-1])
    files = hub.files("user/tuned")
    assert set(files) >= SHIPPED | {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    (tmp_path / "another").mkdir()
    scores = json.loads(run_elsewhere(SCORES, hub, tmp_path / "another", "user/tuned", json.dumps(clips_of_noise())))
    assert [len(entry) for entry in scores] == [2, 2, 2]
    hf_hub_download("user/tuned", "model.safetensors", local_dir=tmp_path / "weights")
    weights = load_file(tmp_path / "weights" / "model.safetensors")
    assert float(weights["classifier.dense.weight"].sum()) == pytest.approx(total, abs=1e-5)
    assert not hub.unknown


@pytest.fixture
def recipe(tmp_path):
    """A tiny recipe that is pushed, and its output folder."""
    settings = TINY | {"dataset_name": write_class_folders(tmp_path / "clips", 10), "learning_rate": 5e-5}
    settings |= {"push_to_hub": True, "hub_model_id": "user/run", "html_report": False}
    return lambda **values: write_recipe(tmp_path, settings | values)


def test_a_run_is_pushed_when_it_is_done(hub, recipe, tmp_path):
    path, output = recipe(hub_private_repo=True)
    assert train_hf.main([path]) == 0
    repository, files = hub.repository("user/run"), hub.files("user/run")
    assert repository.private and [c.title for c in repository.commits] == ["initial commit", "End of training"]
    assert {"confusion_matrix.png", "learning_curves.png"} < set(files)
    assert set(files) == MODEL | {"results.json"} | {picture.name for picture in output.glob("*.png")}
    everything = b"".join(files.values())
    assert hub.token.encode() not in everything and str(tmp_path).encode() not in everything
    assert hub.token not in "".join(file.read_text(errors="replace") for file in output.rglob("*") if file.is_file())
    results = json.loads(files["results.json"])["recipe"]
    assert (
        results["DataArguments"]["dataset_name"] == "clips"
        and results["TrainingArguments"]["hub_model_id"] == "user/run"
    )
    assert files["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert 'repository = "user/run"' in files["README.md"].decode()
    again = tmp_path / "again.json"  # somebody else who repeats the run pushes nothing
    again.write_bytes((output / "results.json").read_bytes())
    assert train_hf.main([str(again), "--output_dir", str(tmp_path / "again")]) == 0
    assert len(repository.commits) == 2


def test_checkpoints_are_pushed_while_the_training_goes_on(hub, recipe):
    path, _ = recipe(hub_strategy="every_save")
    assert train_hf.main([path]) == 0
    commits = hub.repository("user/run").commits
    titles = [commit.title for commit in commits]
    assert titles[-1] == "End of training" and titles[1] == "Training in progress, checkpoint-3"
    assert set(commits[1].files) == MODEL and not commits[0].files
    card = commits[1].files["README.md"].content.decode()
    assert "step 3 of 6" in card and 'repository = "user/run"' in card
    ModelCard(card).validate()
    assert "A checkpoint of a training" not in hub.files("user/run")["README.md"].decode()
    assert not any(name.startswith(("optimizer", "rng", "trainer")) for commit in commits for name in commit.files)


def test_a_checkpoint_is_pushed_by_itself(hub, recipe):
    path, output = recipe(push_to_hub=False)
    assert train_hf.main([path]) == 0 and not hub.requests
    push_folder(output / "checkpoint-6", "user/name")
    assert set(hub.files("user/name")) == MODEL


def test_a_failed_push_of_a_checkpoint_is_a_warning(hub, recipe, caplog):
    path, _ = recipe(hub_strategy="every_save")
    hub.fail("/commit/", status=500, times=1)
    assert train_hf.main([path]) == 0
    assert any(
        "checkpoint-3 is not pushed, and the training goes on: user/run: the Hub has an internal error" in text
        for text in caplog.messages
    )
    assert hub.repository("user/run").commits[-1].title == "End of training"


def test_a_push_that_is_killed_is_a_warning_and_the_next_one_begins_anew(hub, run, caplog):
    pushes = CheckpointPushes(SimpleNamespace(hub_model_id="user/run", hub_private_repo=None))
    with hub.lock:  # no request is answered
        pushes.push(run)
        (process,) = multiprocessing.active_children()  # whose connections no worker of a data loader inherits
        process.kill()
        pushes.finish()
    assert "run is not pushed, and the training goes on: the process that pushes was ended from outside" in caplog.text
    pushes.push(run)
    pushes.finish()
    assert hub.repository("user/run").commits[-1].title == "Training in progress, run"
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_the_process_that_pushes_ends_with_a_killed_training(tmp_path):
    code = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
from hub.push import prepare_push_process
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=prepare_push_process)
pool.submit(abs, 1).result()
print(*pool._processes, flush=True)
time.sleep(600)
"""
    training = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    place = Path("/proc", training.stdout.readline().strip())
    assert place.exists()
    training.kill()
    training.communicate()
    deadline = time.monotonic() + 60
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while " Z " not in (place / "stat").read_text():  # nor has it ended, in a container where nobody removes it
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_failed_push_at_the_end_leaves_the_run_and_says_how_to_go_on(hub, recipe, capsys, monkeypatch):
    path, output = recipe()
    hub.fail("/commit/", cut="request")
    assert train_hf.main([path]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"the run is finished and in {output}, but not on the Hub" in line
    assert (output / "results.json").exists()
    hub.heal()
    command = shlex.split(line.split("; to repeat: ")[1])
    assert command[:4] == ["python", "-m", "hub", "push"]
    assert __main__.main(command[3:]) == 0
    assert hub.files("user/run")["model.safetensors"] == (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hub_model_id", "other/run"], "may not write there (403)"),
        (["--hub_model_id", "run"], "hub_model_id: must be user/name"),
        (
            ["--hub_strategy", "checkpoint"],
            "hub_strategy: must be end or every_save, got 'checkpoint'",
        ),
        (["--hub_token", TOKEN], "hub_token: does not belong in a recipe"),
        (["--hub_revision", "v2"], "hub_revision: has no effect here"),
        (
            ["--hub_strategy", "every_save", "--lora_rank", "2", "--model_name_or_path", "BASE"],
            "checkpoints of lora_rank hold only an adapter; set end",
        ),
        (["--task", "cross_validation"], "push_to_hub: a cross-validation has no model of its own"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_training(hub, run, recipe, capsys, words, message):
    path, output = recipe()
    words = [str(run) if word == "BASE" else word for word in words]
    assert train_hf.main([path, *words]) == 1
    error = capsys.readouterr().err
    assert message in error and TOKEN not in error and not list(output.glob("checkpoint-*"))


def test_a_token_that_may_only_read_is_found_before_training(hub, recipe, capsys):
    hub.create("user/run", {})
    hub.fail("/preupload/", status=403)
    path, _ = recipe(dataset_name="no/where")  # not looked at
    assert train_hf.main([path]) == 1
    assert "push_to_hub: user/run: the token may not write there (403)" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["mspm", pytest.param("asit", marks=pytest.mark.slow)])
def test_pretraining_is_pushed(hub, task, tmp_path):
    for index in range(12):
        write_tone(tmp_path / "clips" / f"{index}.wav", seconds=0.5, hz=200.0 + 50 * index, seed=index)
    shape = {**TINY["config_overrides"], "max_length": 48, "num_mel_bins": 32}
    values = {
        "task": task, "train_sources": [str(tmp_path / "clips")], "validation_clips": 4, "config_overrides": shape,
        "max_steps": 2, "save_steps": 1, "eval_steps": 1, "per_device_train_batch_size": 4, "disable_tqdm": True,
        "push_to_hub": True, "hub_model_id": "user/run", "hub_strategy": "every_save",
    }  # fmt: skip
    path, _ = write_recipe(tmp_path, values)
    assert train_hf.main([path]) == 0
    commits = hub.repository("user/run").commits
    assert commits[1].title == "Training in progress, checkpoint-1" and commits[-1].title == "End of training"
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} < set(commits[1].files)
    assert {"results.json", "learning_curves.png", "reconstruction.png"} < set(hub.files("user/run"))
    assert str(tmp_path).encode() not in b"".join(hub.files("user/run").values())
    assert "AutoModelForPreTraining.from_pretrained" in commits[1].files["README.md"].content.decode()


def launch(hub: HubServer, cache, *words, processes: int = 1) -> subprocess.CompletedProcess:
    """train_hf.py in fresh processes that know the local Hub."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    command = [*command, "train_hf.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=hub.environment(cache), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_push_once(hub, recipe, tmp_path):
    path, _ = recipe(hub_strategy="every_save")
    done = launch(hub, tmp_path / "cache", path, processes=2)
    assert done.returncode == 0, done.stderr
    titles = [commit.title for commit in hub.repository("user/run").commits]
    assert titles[-1] == "End of training" and len(set(titles)) == len(titles)
    assert set(hub.files("user/run")) >= MODEL


@pytest.mark.slow
def test_a_data_set_and_a_model_of_the_hub_make_a_model_on_the_hub(hub, run, recipe, tmp_path):
    hub.create("user/tones", tones(), "datasets")
    push_folder(run, "user/base")
    path, output = recipe(dataset_name="user/tones", model_name_or_path="user/base", max_length=64, config_overrides={})
    done = launch(hub, tmp_path / "cache", path)
    assert done.returncode == 0, done.stderr
    card = ModelCard(hub.files("user/run")["README.md"].decode())
    assert card.data.base_model == "user/base"
    results = json.loads(hub.files("user/run")["results.json"])
    assert results["clips"]["train"] + results["clips"]["validation"] == 12 and results["clips"]["test"] == 12
    words = ["push", output, "other/run"]
    refused = subprocess.run(
        [sys.executable, "-m", "hub", *map(str, words)],
        cwd=ROOT, env=hub.environment(tmp_path / "cache"), capture_output=True, text=True,
    )  # fmt: skip
    assert "may not write there (403)" in error_line(refused)
    assert not hub.unknown
