"""Tests the local Hub with the usual clients: huggingface_hub, datasets and evaluate, over HTTP."""

import json

import numpy as np
import pytest
from dataset_layouts import tones
from fresh_process import run_elsewhere
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session

WEIGHTS = np.random.default_rng(0).bytes(300_000)


def read(*place, **settings) -> bytes:
    with open(hf_hub_download(*place, **settings), "rb") as file:
        return file.read()


def commit(api: HfApi, files: dict[str, bytes], delete=(), **settings):
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    operations += [CommitOperationDelete(name) for name in delete]
    return api.create_commit("user/name", operations, commit_message="change", **settings)


@pytest.fixture
def api(hub) -> HfApi:
    api = HfApi()
    api.create_repo("user/name")
    return api


def test_every_commit_stays_loadable_by_its_hash(hub, api):
    first = commit(api, {"config.json": b"{}", "model.safetensors": WEIGHTS, "old/notes.txt": b"x"})
    second = commit(api, {"config.json": b'{"a": 1}'}, delete=["old/"])
    assert read("user/name", "config.json") == b'{"a": 1}'
    assert read("user/name", "config.json", revision=first.oid) == b"{}"
    assert read("user/name", "config.json", revision=second.oid[:8]) == b'{"a": 1}'
    assert read("user/name", "model.safetensors", revision=second.oid) == WEIGHTS
    assert api.list_repo_files("user/name") == ["config.json", "model.safetensors"]
    assert api.list_repo_files("user/name", revision=first.oid) == ["config.json", "model.safetensors", "old/notes.txt"]
    assert [entry.title for entry in hub.repository("user/name").commits] == ["initial commit", "change", "change"]
    assert api.list_repo_refs("user/name").branches[0].target_commit == second.oid == api.model_info("user/name").sha
    tree = {entry.path: entry for entry in api.list_repo_tree("user/name", revision=first.oid)}
    assert set(tree) == {"config.json", "model.safetensors", "old"}
    assert tree["model.safetensors"].lfs.size == tree["model.safetensors"].size == len(WEIGHTS)
    (entry,) = api.get_paths_info("user/name", "model.safetensors")
    assert entry.lfs.sha256 == hub.repository("user/name").at("main").files["model.safetensors"].sha256
    assert not hub.unknown


def test_what_is_not_there_is_told_as_the_hub_does(hub, api):
    commit(api, {"config.json": b"{}"})
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("user/name", "other.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/name", "config.json", revision="v1")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("user/other", "config.json")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/name")
    assert api.create_repo("user/name", exist_ok=True).repo_id == "user/name"
    with pytest.raises(HfHubHTTPError, match="501"):
        api.list_repo_likers("user/name").__next__()
    assert hub.unknown == [("GET", "/api/models/user/name/likers")]


def test_a_private_repository_is_not_there_without_its_token(hub):
    hub.create("user/secret", {"config.json": b"{}", "model.safetensors": WEIGHTS}, private=True)
    assert read("user/secret", "model.safetensors") == WEIGHTS
    for token in (False, "hf_wrong"):
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi().model_info("user/secret", token=token)
    assert HfApi().whoami()["name"] == "user"
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_repo("other/name")


def test_only_one_of_two_commits_on_the_same_state_is_taken(hub, api):
    state = api.model_info("user/name").sha
    commit(api, {"a.txt": b"1"}, parent_commit=state)
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, {"a.txt": b"2"}, parent_commit=state)
    assert hub.files("user/name") == {"a.txt": b"1"}


@pytest.mark.parametrize("cut", ["request", "response"])
def test_an_upload_that_was_cut_changes_nothing_until_its_commit(hub, api, cut):
    commit(api, {"model.safetensors": b"old"})
    hub.fail("^/storage/", "PUT", cut=cut)
    with pytest.raises(RuntimeError):
        commit(api, {"model.safetensors": WEIGHTS})
    assert hub.files("user/name") == {"model.safetensors": b"old"}
    hub.heal()
    commit(api, {"model.safetensors": WEIGHTS})
    assert hub.files("user/name") == {"model.safetensors": WEIGHTS}


def test_a_download_that_was_cut_goes_on_where_it_stopped(hub, monkeypatch):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    hub.create("user/name", {"model.safetensors": WEIGHTS})
    hub.fail("^/storage/", "GET", cut="response", times=2)
    assert read("user/name", "model.safetensors") == WEIGHTS
    assert [method for method, path in hub.requests if path.startswith("/storage/")] == ["GET"] * 3


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("license: apache-2.0\ntags: [audio]", None),
        ("tags: audio", "must be of another kind"),
        ("tags: [audio", "bad YAML"),
        ("model-index: [{name: x, results: [{task: {type: audio-classification}, metrics: [{type: f1}]}]}]", "metrics"),
    ],
)
def test_cards_are_validated(hub, header, problem):
    card = f"---\n{header}\n---\n# x\n"
    # ModelCard mends some of it, and refuses some itself.
    answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json={"repoType": "model", "content": card})
    errors = " ".join(error["message"] for error in answer.json()["errors"])
    assert answer.status_code == (400 if problem else 200) and (problem or "") in errors
    if problem is None:
        ModelCard(card).validate()


DATASET = """
import json
from datasets import Audio, load_dataset
for streaming in (False, True):
    data = load_dataset("user/data", split="train", streaming=streaming).cast_column("audio", Audio(decode=False))
    print(json.dumps([[len(example["audio"]["bytes"]), example["label"]] for example in data]))
"""


def test_data_sets_load_whole_and_streamed(hub, tmp_path):
    hub.create("user/data", tones(), "datasets")
    lines = run_elsewhere(DATASET, hub, tmp_path).splitlines()
    expected = [[8044, "high"]] * 6 + [[8044, "low"]] * 6
    assert [json.loads(line) for line in lines] == [expected, expected]
    assert not hub.unknown


METRIC = """
import datasets
import evaluate

class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


@pytest.mark.slow
def test_metrics_load(hub, tmp_path):
    hub.create("user/share", {"share.py": METRIC.encode()}, "spaces")
    program = "import evaluate; print(evaluate.load('user/share').compute(predictions=[1, 0], references=[1, 1]))"
    assert run_elsewhere(program, hub, tmp_path).strip() == "{'share': 0.5}"
