"""Tests that models which could run foreign code are refused before they are loaded, and honest ones are not."""

import ast
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from audio_files import ROOT, write_tone
from huggingface_hub import snapshot_download
from tiny_models import save_tiny_classifier, save_tiny_cnn

import app
import predict_hf
from conversion import export_ssast, hf_ast
from conversion.options import Options
from hub.push import PushError, choose_files
from hub.scan import UnsafeModelError, scan_model, scan_settings
from training import explain
from training.base.arguments import EncoderArguments
from training.base.inference import load_classifier
from training.base.loading import load_config
from training.base.outputs import check_output_folder
from training.classification.arguments import ClassificationTrainingArguments
from training.embeddings.embed import load as load_embedder
from training.errors import InputError
from training.export.__main__ import load as load_for_export

KERNEL = "config.json has {} = {}, which can make Transformers run code from the Hub; remove the key"
CODE = 'auto_map = {"AutoModel": "evil/repo--m.M"}, which names code that is not this project\'s; remove the key'


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("models") / "honest")


@pytest.fixture
def folder(honest, tmp_path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "model"))


def change(path: Path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {key: "evil/kernel"}, KERNEL.format(key, '"evil/kernel"'))
        for key in (
            "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
            "_experts_implementation", "_experts_implementation_internal", "attn_implementation",
            "experts_implementation",
        )
    ]
    + [
        ("config.json", {"_attn_implementation": "sdpa"}, KERNEL.format("_attn_implementation", '"sdpa"')),
        ("config.json", {"attn_implementation": {"": "evil/kernel@v1:f"}}, "attn_implementation = {"),
        ("config.json", {"a": {"b": [{"_attn_implementation_internal": {}}]}}, "a.b[0]._attn_implementation_internal"),
        ("config.json", {"trust_remote_code": True}, "which would decide for you whether the folder's code runs"),
        ("config.json", {"keypoint_config": {"trust_remote_code": 1}}, "keypoint_config.trust_remote_code = 1"),
        ("config.json", {"transformers_weights": "../else.safetensors"}, "no .safetensors file beside it"),
        ("config.json", {"transformers_weights": "weights.bin"}, "no .safetensors file beside it"),
        ("config.json", {"custom_pipelines": {"a": {"impl": "evil.P"}}}, "custom_pipelines = "),
        ("config.json", {"auto_map": {"AutoModel": "evil/repo--m.M"}}, CODE),
        ("config.json", {"auto_map": {"AutoModel": "modeling_evil.DualSSASTModel"}}, "names code that is not"),
        ("config.json", {"auto_map": {"AutoTokenizer": [None, "evil.T"]}}, "names code that is not"),
        ("config.json", {"auto_map": "evil.M"}, "names code that is not"),
        ("config.5.0.0.json", {"_attn_implementation": "evil/kernel"}, "config.5.0.0.json has _attn_implementation"),
        ("preprocessor_config.json", {"auto_map": {"AutoFeatureExtractor": "evil/repo--f.F"}}, "preprocessor_config"),
        ("processor_config.json", {"feature_extractor": {"auto_map": {"A": "e.F"}}}, "feature_extractor.auto_map"),
        ("adapter_config.json", {"base_model_name_or_path": "evil/base"}, "adapter_config.json belongs to another"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../../b.safetensors"}}, "no .safetensors file beside"),
        ("model.safetensors.index.json", {"weight_map": {"a": "optimizer.pt"}}, "names weights in 'optimizer.pt'"),
    ],
)  # fmt: skip
def test_settings_that_fetch_or_run_code(folder, file, changes, message):
    change(folder / file, **changes)
    with pytest.raises(UnsafeModelError) as error:
        scan_model(folder)
    assert str(error.value).startswith(f"{folder}: {file} ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "model.pt",
        "x.PTH",
        "a.ckpt",
        "a.pkl",
        "adapter_model.bin",
    ],
)
def test_pickles_beside_or_instead_of_weights(folder, name):
    (folder / name).write_bytes(b"")
    with pytest.raises(UnsafeModelError, match=f"{name} is a pickle, which can run any code"):
        scan_model(folder)


def test_deeply_nested_settings(folder):
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(UnsafeModelError, match="nested too deeply"):
        scan_settings(folder)


def test_honest_folders_pass(folder, tmp_path):
    scan_model(folder)
    scan_model(save_tiny_cnn(tmp_path / "cnn", "vggish"))
    # What Trainer leaves, and what Transformers 4.48 stores.
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth"):
        (folder / name).write_bytes(b"")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "pytorch_model.bin").write_bytes(b"")  # a folder of its own
    (folder / "results.json").write_text('{"auto_map": "of a label", "_attn_implementation": 1}')
    names = {"0": "auto_map", "1": "_attn_implementation"}
    change(folder / "config.json", _attn_implementation_autoset=True, attn_implementation="sdpa", id2label=names)
    change(folder / "config.json", label2id={name: int(index) for index, name in names.items()})
    scan_model(folder)
    scan_model(folder / "config.json")  # a file is no model
    scan_model("no/such-model")
    scan_model("not a name: ü")


def load_train(name):
    load_config(EncoderArguments(model_name_or_path=name))


@pytest.mark.parametrize(
    "load",
    [
        load_classifier,
        load_train,
        load_for_export,
        lambda name: load_embedder(name, "clip", 1),
        lambda name: app.serve([name]),
        explain.load,
        export_ssast._read_model,
    ],
)
def test_every_loader_scans_first(folder, load, monkeypatch):
    change(folder / "config.json", _attn_implementation_internal="evil/kernel")
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises((InputError, UnsafeModelError), match="config.json has _attn_implementation_internal"):
        load(str(folder))


def test_programs_say_it_in_a_line(folder, tmp_path, capsys):
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert predict_hf.main([str(folder), str(write_tone(tmp_path / "clip.wav"))]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and f"{folder}: pytorch_model.bin is a pickle" in captured.err


def test_ast_folders_may_hold_pickled_tensors_but_no_foreign_code(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    change(tmp_path / "config.json", model_type="audio-spectrogram-transformer", auto_map={"AutoModel": "evil--a.M"})
    with pytest.raises(UnsafeModelError, match="auto_map"):
        hf_ast.convert(tmp_path, Options())
    change(tmp_path / "config.json", auto_map=None)
    with pytest.raises(ValueError, match=r"pytorch_model.bin is empty"):
        hf_ast.convert(tmp_path, Options())


def test_pushes_scan_the_settings(folder):
    (folder / "README.md").write_text("# A model")
    choose_files(folder, "user/name")
    change(folder / "config.json", _attn_implementation_internal="evil/kernel")
    with pytest.raises(PushError, match="config.json has _attn_implementation_internal"):
        choose_files(folder, "user/name")


def test_models_of_the_hub_are_scanned_before_their_weights_are_fetched(folder, hub):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.create("user/good", files)
    scan_model("user/good")
    assert [path for _, path in hub.requests if path.startswith("/api/models/user/good")] == ["/api/models/user/good"]
    assert load_classifier("user/good")
    config = json.loads(files["config.json"])
    hub.create("user/own", files | {"config.json": json.dumps(
        config | {"auto_map": {"AutoModel": "user/own--modeling_dual_ssast.DualSSASTModel"}}
    ).encode()})  # fmt: skip
    scan_model("user/own")
    hub.create("user/kernel", files | {"config.json": json.dumps(config | {"_attn_implementation": "a/b"}).encode()})
    hub.create("user/pickle", files | {"pytorch_model.bin": b""})
    hub.create("user/adapter", files | {"adapter_config.json": b'{"base_model_name_or_path": "evil/base"}'})
    for name, message in (
        ("kernel", "_attn_implementation"),
        ("pickle", "pytorch_model.bin"),
        ("adapter", "evil/base"),
    ):
        hub.requests.clear()
        with pytest.raises(InputError, match=f"^user/{name}: .*{message}"):
            load_classifier(f"user/{name}")
        assert not any("safetensors" in path or "storage" in path for _, path in hub.requests)


def test_without_a_network_the_cached_files_are_scanned(folder, hub, monkeypatch):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.create("user/pickle", files | {"pytorch_model.bin": b"x"})
    snapshot_download("user/pickle")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnsafeModelError, match="pytorch_model.bin is a pickle"):
        scan_model("user/pickle", "main")


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def resuming(checkpoint: Path) -> ClassificationTrainingArguments:
    return ClassificationTrainingArguments(output_dir=str(checkpoint.parent), resume_from_checkpoint=str(checkpoint))


def test_checkpoints_are_scanned_before_a_training_goes_on(folder):
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload()))
    change(folder / "adapter_config.json", base_model_name_or_path="runs/pretrained")  # of lora_rank
    assert check_output_folder(resuming(folder)) == str(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pytorch_model.bin is a pickle"):
        check_output_folder(resuming(folder))


def test_random_states_of_strangers(folder, monkeypatch):
    (folder / "rng_state_0.pth").write_bytes(pickle.dumps(Payload()))
    assert check_output_folder(resuming(folder)) == str(folder)
    monkeypatch.setattr("training.base.resumption.transformers", SimpleNamespace(__version__="4.57.1"))
    with pytest.raises(
        InputError, match=r"rng_state_0.pth could run any code in transformers 4.57.1 \(CVE-2026-1839\)"
    ):
        check_output_folder(resuming(folder))
    monkeypatch.setenv("DUAL_SSAST_TRUST_CHECKPOINT", "1")
    assert check_output_folder(resuming(folder)) == str(folder)


def test_no_program_trusts_the_code_of_a_model(folder, tmp_path, monkeypatch):
    programs = list(ROOT.glob("*.py"))
    for room in ("training", "hub", "conversion"):
        programs += (ROOT / room).rglob("*.py")
    programs.remove(ROOT / "hub" / "endpoint" / "handler.py")  # is itself a part of the folder whose code it loads
    texts = [path.read_text("utf-8") for path in programs]
    nodes = [node for text in texts if "trust_remote_code" in text for node in ast.walk(ast.parse(text))]
    keywords = {node.arg for node in nodes if isinstance(node, ast.keyword)}
    assert keywords and "trust_remote_code" not in keywords
    monkeypatch.chdir(tmp_path)
    for path in folder.glob("*.py"):
        path.write_text("import pathlib; pathlib.Path('ran').touch()")
    assert load_classifier(str(folder)) and not Path("ran").exists()
