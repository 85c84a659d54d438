"""Tests examples/mteb_dual_ssast.py in MTEB: its own mock tasks, and tasks on a few of the embedded recordings."""

import importlib.util
import io
import itertools
import json
import sys

import datasets
import mteb
import numpy as np
import pandas
import pytest
import soundfile
import soxr
import torch
from audio_files import ROOT, error_line, run_program, tone
from mteb._create_dataloaders import create_dataloader
from mteb.abstasks import AbsTaskClassification, AbsTaskPairClassification
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim
from tiny_models import TINY
from transformers import AutoModel

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTModel
from training.data.audio import datasets_without_torchcodec

pytestmark = [
    pytest.mark.usefixtures("own_datasets_cache"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),  # MTEB's own classifier
]

PROMPTS = ROOT / "data" / "voice_prompts"
SCRIPT = ROOT / "examples" / "mteb_dual_ssast.py"
RATES = (8000, 16000, 22050)
TASKS = {
    "PromptLanguage": ("AudioClassification", "accuracy", "a2c"),
    "PromptPairs": ("AudioPairClassification", "max_ap", "a2a"),
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mteb_dual_ssast", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def save_model(folder, **settings):
    torch.manual_seed(0)
    DualSSASTModel(DualSSASTConfig(**{**TINY, "initializer_range": 0.2, **settings})).save_pretrained(folder)
    DualSSASTFeatureExtractor(max_length=TINY["max_length"]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("mteb") / "tiny")


@pytest.fixture(scope="module")
def encoder(script, folder):
    return script.load_encoder(folder)


def stored(samples: np.ndarray, rate: int, file_format: str = "WAV") -> dict:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format)
    return {"bytes": buffer.getvalue(), "path": None}


def rows_of(split: str, per_language: int) -> list[dict]:
    """Prompts and their languages, as data sets store audio: at three rates in turn, every fifth one stereo."""
    table = pandas.read_csv(PROMPTS / f"{split}.csv").groupby("language").head(per_language)
    rows = []
    for number, (name, language) in enumerate(zip(table["file_name"], table["language"])):
        samples, rate = soundfile.read(PROMPTS / name, dtype="float32")
        samples = soxr.resample(samples, rate, RATES[number % 3])
        samples = np.stack([samples, samples], axis=1) if number % 5 == 4 else samples
        rows.append({"audio": {**stored(samples, RATES[number % 3], "FLAC"), "path": name}, "label": language})
    return rows


def write_split(folder, split: str, rows: list[dict]):
    """A file of a data set as the Hub has them."""
    kinds = {str: datasets.Value("string"), int: datasets.Value("int64"), dict: datasets.Audio()}
    features = datasets.Features({name: kinds[type(value)] for name, value in rows[0].items()})
    folder.mkdir(exist_ok=True)
    with datasets_without_torchcodec():
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def make_task(name: str, data, base: type, **attributes) -> type:
    kind, main_score, category = TASKS[name]
    metadata = TaskMetadata(
        name=name,
        description="Telephone prompts.",
        dataset={"path": str(data), "revision": "1"},
        type=kind,
        category=category,
        modalities=["audio"],
        eval_langs=["eng-Latn", "spa-Latn", "fra-Latn", "ita-Latn", "rus-Cyrl"],
        main_score=main_score,
    )
    return type(name, (base,), {"metadata": metadata, "label_column_name": "label", **attributes})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Classes of two tasks whose data sets are folders, by their names."""
    folder = tmp_path_factory.mktemp("tasks")
    write_split(folder / "language", "train", rows_of("train", 8))
    test = rows_of("test", 3)
    write_split(folder / "language", "test", test)
    pairs = []
    for row, other in itertools.pairwise(test):  # the same recording at another rate, or another recording
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), always_2d=True)
        again = stored(soxr.resample(samples.mean(axis=1), rate, 11025), 11025)
        pairs += [{"first": row["audio"], "second": again, "label": 1}]
        pairs += [{"first": row["audio"], "second": other["audio"], "label": 0}]
    write_split(folder / "pairs", "test", pairs)
    columns = {"input1_column_name": "first", "input2_column_name": "second"}
    few = {"input_column_name": "audio", "samples_per_label": 8, "n_experiments": 2}
    return {
        "PromptLanguage": make_task("PromptLanguage", folder / "language", AbsTaskClassification, **few),
        "PromptPairs": make_task("PromptPairs", folder / "pairs", AbsTaskPairClassification, **columns),
    }


@pytest.fixture
def registered(tasks, monkeypatch):
    """The tasks as if MTEB brought them."""
    for name, task in tasks.items():
        monkeypatch.setitem(sys.modules["mteb.get_tasks"]._TASKS_REGISTRY, name, task)


def loader(task, table, batch_size: int):
    return create_dataloader(table, task_metadata=task.metadata, input_column="audio", batch_size=batch_size)


def encode(encoder, task, table, batch_size: int) -> np.ndarray:
    return encoder.encode(
        loader(task, table, batch_size),
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset="default",
        batch_size=batch_size,
        show_progress_bar=False,
    )


def evaluate(script, encoder, task, **kwargs):
    with script.decoding_with_soundfile():
        settings = {"cache": None, "encode_kwargs": {"batch_size": 4, "show_progress_bar": False}, **kwargs}
        (result,) = mteb.evaluate(encoder, task, **settings).task_results
    return result


def test_every_kind_of_audio_task_runs(script, encoder):
    with script.decoding_with_soundfile():
        found = {name: result for name, result in mteb.mock_run(encoder).items() if result is not None}
    assert len(found) == 7
    assert all(isinstance(result, mteb.TaskResult) for result in found.values()), found


def test_languages_are_classified(script, encoder, tasks):
    result = evaluate(script, encoder, tasks["PromptLanguage"]())
    (scores,) = result.scores["test"]
    assert result.get_score() == scores["accuracy"] > 0.4  # of five languages
    again = evaluate(script, encoder, tasks["PromptLanguage"]())
    assert again.scores == result.scores


def test_a_recording_is_nearest_to_itself_at_another_rate(script, encoder, tasks):
    result = evaluate(script, encoder, tasks["PromptPairs"]())
    assert result.get_score() == pytest.approx(1.0)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_embeddings_are_those_of_embed_in_the_order_of_the_clips(script, encoder, folder, tasks, batch_size):
    task = tasks["PromptLanguage"]()
    with script.decoding_with_soundfile():
        task.load_data()
        embeddings = encode(encoder, task, task.dataset["test"], batch_size)
    model = AutoModel.from_pretrained(folder)
    expected = []
    for row in rows_of("test", 3):
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32", always_2d=True)
        expected.append(model.embed(samples.mean(axis=1), rate)[0].numpy())
    assert embeddings.dtype == np.float32 and embeddings.shape == (15, model.config.fused_size)
    np.testing.assert_allclose(embeddings, np.stack(expected), rtol=0, atol=1e-5)  # values up to 5, in other batches
    # Clips that the data set does not decode need no helper.
    task.dataset["test"] = task.dataset["test"].cast_column("audio", datasets.Audio(decode=False))
    assert np.array_equal(encode(encoder, task, task.dataset["test"], batch_size), embeddings)


def test_similarity_is_the_cosine(encoder):
    one, two = torch.randn(3, 4), torch.randn(2, 4)
    torch.testing.assert_close(encoder.similarity(one, two), cos_sim(one, two))


def test_clips_of_one_rate_are_embedded_together(encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        type(encoder.model),
        "embed",
        lambda self, clips, rate, batch_size: (
            asked.append((rate, len(clips), batch_size)) or torch.zeros(len(clips), 32)
        ),
    )
    item = {"array": tone(0.1), "sampling_rate": 16000}
    metadata = mteb.get_task("ESC50").metadata
    encoder.encode(
        [{"audio": [item, {**item, "sampling_rate": 8000}, item]}],
        task_metadata=metadata,
        hf_split="",
        hf_subset="",
        batch_size=2,
    )
    assert asked == [(16000, 2, 2), (8000, 1, 2)]


def test_the_meta_data(script, encoder, folder, tmp_path):
    meta = encoder.mteb_model_meta
    assert isinstance(meta, ModelMeta) and meta.name == "local/tiny" and meta.modalities == ["audio"]
    assert meta.embed_dim == encoder.model.config.fused_size and meta.max_tokens is None
    assert meta.n_parameters == sum(parameter.numel() for parameter in encoder.model.parameters())
    assert meta.memory_usage_mb == pytest.approx(4 * meta.n_parameters / 2**20)
    assert meta.similarity_fn_name == "cosine" and meta.framework == ["PyTorch", "Transformers"]
    assert json.loads(json.dumps(meta.to_dict()))["loader"] == "load_encoder"
    again = meta.loader(meta.name, revision=meta.revision)  # as meta.load_model(), which insists on torchaudio
    assert type(again) is type(encoder) and again.mteb_model_meta.revision == meta.revision
    other = save_model(tmp_path / "tiny", pooling=["mean"])
    assert script.load_encoder(other).mteb_model_meta.revision != meta.revision
    with pytest.raises(ValueError, match=f"is revision .* and not {meta.revision}; load it without a revision"):
        script.load_encoder(other, revision=meta.revision)
    assert script.load_encoder(folder, "me/mine").mteb_model_meta.name == "me/mine"


def test_other_settings_have_results_of_their_own(script, encoder, folder, tmp_path):
    """Their name and revision are the same."""
    others = [
        script.load_encoder(folder, first_window=True),
        script.load_encoder(folder, pooling=["max"]),
        script.load_encoder(folder, pooling=["max", "std"], pooling_combination="concat", first_window=True),
    ]
    cache, metas = mteb.ResultCache(tmp_path), [one.mteb_model_meta for one in (encoder, *others)]
    assert len({(meta.name, meta.revision) for meta in metas}) == 1
    paths = [cache.get_task_result_path("PromptLanguage", meta) for meta in metas]
    assert len(set(paths)) == len(metas) and metas[0].experiment_name is None


@pytest.mark.parametrize(("card", "licence"), [("license: cc-by-4.0", "cc-by-4.0"), ("license: other", None)])
def test_the_licence_is_that_of_the_model_card(script, folder, tmp_path, card, licence):
    saved = save_model(tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text(f"---\n{card}\n---\n# Tiny\n")
    assert script.load_encoder(saved).mteb_model_meta.license == licence


def test_data_sets_are_decoded_and_stored_without_torchcodec(script, tmp_path):
    if datasets.config.TORCHCODEC_AVAILABLE:
        pytest.skip("torchcodec does it")
    kept = datasets.Audio.encode_example, datasets.Audio.decode_example
    soundfile.write(tmp_path / "clip.wav", tone(0.5, channels=2), 16000)
    with script.decoding_with_soundfile():
        table = datasets.Dataset.from_dict({"audio": [str(tmp_path / "clip.wav")]}).cast_column(
            "audio", datasets.Audio(sampling_rate=8000)
        )
        found = table[0]["audio"]
        assert found["array"].shape == (4000,) and found["sampling_rate"] == 8000
        halved = table.map(lambda row: {"audio": {**row["audio"], "array": row["audio"]["array"][:2000]}})
        np.testing.assert_array_equal(halved[0]["audio"]["array"], found["array"][:2000])
        (tmp_path / "clip.wav").write_bytes(b"RIFF")
        with pytest.raises(RuntimeError, match="clip.wav: not readable as audio"):
            table[0]
    assert (datasets.Audio.encode_example, datasets.Audio.decode_example) == kept


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.full(800, np.nan, np.float32)])
def test_a_bad_clip_is_named(encoder, samples):
    good = {"array": tone(0.1), "sampling_rate": 16000}
    batches = [{"audio": [good, good]}, {"audio": [good, {"array": samples, "sampling_rate": 8000}]}]
    metadata = mteb.get_task("ESC50").metadata
    with pytest.raises(ValueError, match="ESC50: clip 3 of split 'train', subset 'default' is empty or not finite"):
        encoder.encode(batches, task_metadata=metadata, hf_split="train", hf_subset="default")
    with pytest.raises(ValueError, match="ESC50: has text and no audio"):
        encoder.encode([{"text": ["a"]}], task_metadata=metadata, hf_split="train", hf_subset="default")
    assert encoder.encode([], task_metadata=metadata, hf_split="train", hf_subset="default").shape == (0, 32)


def test_command_line(script, encoder, folder, tmp_path, registered, capsys, monkeypatch):
    words = [folder, "--tasks", *TASKS, "--output_folder", str(tmp_path / "results"), "--batch_size", "4"]
    assert script.main(words) == 0
    printed = capsys.readouterr().out
    results = tmp_path / "results" / "results" / "local__tiny" / encoder.mteb_model_meta.revision
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0] == ["task", "type", "metric", "score"]
    assert lines[1][:3] == ["PromptLanguage", "AudioClassification", "accuracy"]
    assert lines[2] == ["PromptPairs", "AudioPairClassification", "max_ap", "1.0000"]
    assert lines[3][-1] == str(results)
    written = json.loads((results / "PromptLanguage.json").read_text())["scores"]["test"][0]["accuracy"]
    assert float(lines[1][3]) == pytest.approx(written, abs=5e-5)
    # Existing results are not encoded again.
    monkeypatch.setattr(script.DualSSASTEncoder, "encode", None)
    assert script.main(words) == 0
    assert capsys.readouterr().out == printed


def test_a_task_that_fails_leaves_the_others(script, folder, tmp_path, registered, capsys, monkeypatch):
    rows = rows_of("test", 1)
    rows[2]["audio"] = {"bytes": b"nothing", "path": "broken.flac"}
    write_split(tmp_path / "broken", "test", rows)
    write_split(tmp_path / "broken", "train", rows)
    broken = make_task("PromptLanguage", tmp_path / "broken", AbsTaskClassification, input_column_name="audio")
    monkeypatch.setitem(sys.modules["mteb.get_tasks"]._TASKS_REGISTRY, "PromptLanguage", broken)
    assert script.main([folder, "--tasks", *TASKS, "--output_folder", str(tmp_path / "results")]) == 1
    printed = capsys.readouterr()
    assert "PromptPairs" in printed.out and "PromptLanguage" not in printed.out
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: PromptLanguage: broken.flac: not readable as audio")


def failure(script, capsys, *words) -> str:
    assert script.main([str(word) for word in words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_errors_name_the_value_and_the_remedy(script, folder, tmp_path, capsys):
    line = failure(script, capsys, folder, "--tasks", "esc-50")
    assert line == "error: esc-50: is no task or benchmark of mteb; did you mean ESC50?"
    line = failure(script, capsys, folder, "--tasks", "qqqqqqqq")
    assert line.endswith("qqqqqqqq: is no task or benchmark of mteb; mteb available-tasks lists them")
    line = failure(script, capsys, folder, "--tasks", "ClothoT2ARetrieval")
    assert line.startswith("error: ClothoT2ARetrieval: needs text, and this encoder takes audio only; name tasks of")
    assert "MAEB(v1): ClothoT2ARetrieval: needs text" in failure(script, capsys, folder, "--tasks", "MAEB(v1)")
    line = failure(script, capsys, tmp_path / "none", "--tasks", "ESC50")
    assert f"{tmp_path / 'none'}: cannot be loaded (" in line and line.endswith("of a model of this project")
    (tmp_path / "file").touch()
    line = failure(script, capsys, folder, "--tasks", "ESC50", "--output_folder", tmp_path / "file")
    assert line == f"error: {tmp_path / 'file'}: is no folder; name another --output_folder"
    with pytest.raises(SystemExit):
        script.main([folder, "--tasks", "ESC50", "--batch_size", "0"])
    assert "--batch_size must be 1 or more, got 0" in capsys.readouterr().err


def test_missing_weights_are_told(script, tmp_path, capsys):
    save_model(tmp_path / "tiny")
    settings = json.loads((tmp_path / "tiny" / "config.json").read_text())
    (tmp_path / "tiny" / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    line = failure(script, capsys, tmp_path / "tiny", "--tasks", "ESC50")
    assert " weights are missing or of another size, such as " in line and line.endswith("; save it anew")


def test_benchmarks_stand_for_their_tasks(script):
    found = [task.metadata.name for task in script.find_tasks(["MAEB(v1, audio-only)", "ESC50", "ESC50"])]
    assert len(found) == len(set(found)) == 20 and found[-1] == "ESC50"


@pytest.mark.slow
def test_the_file_runs_by_itself(folder, tmp_path):
    """Runs without this project, except for the saved folder's code; the data set would have to be downloaded."""
    copy = tmp_path / "encoder.py"
    copy.write_text(SCRIPT.read_text())
    line = error_line(run_program(copy, folder, "--tasks", "ESC50", cwd=tmp_path))
    assert line.startswith("error: ESC50: ") and "mteb/esc50" in line
