"""Tests training.expect: the list of published values, which folders are compared, and MAEB's and EVAR's protocols."""

import dataclasses
import io
import json
import re

import datasets
import mteb
import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import tone, write_class_folders
from golden import checkpoint
from huggingface_hub import ModelCard

from conversion import catalogue
from conversion.__main__ import main as convert
from training import expect
from training.data.audio import datasets_without_torchcodec
from training.embeddings.arguments import EVAR

pytestmark = [
    pytest.mark.usefixtures("own_datasets_cache"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),  # MTEB's own classifier, on few clips
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
]

NAME = "ast-audioset-10-10-0.4593"
ALL = catalogue.read_catalogue()


@pytest.fixture(scope="module")
def tiny_catalogue():
    """The catalogue as if AST's published checkpoint were tiny."""
    published = dataclasses.replace(ALL[NAME], shapes={"hidden_size": 192, "grid_shape": [12, 9]})
    with pytest.MonkeyPatch.context() as patch:
        for module in (catalogue, expect):
            patch.setattr(module, "read_catalogue", lambda: {**ALL, NAME: published})
        yield published


def convert_tiny(folder, name: str):
    """Converts a synthetic AST of two blocks through a file of that name."""
    source, state = folder / name, checkpoint("ast_tiny_weights.json")
    torch.save({key: value for key, value in state.items() if not re.search(r"blocks\.([2-9]|1\d)", key)}, source)
    grid = ["--max-length", "100", "--frequency-stride", "10", "--time-stride", "10"]
    assert convert(["ast", str(source), str(folder / "converted"), *grid]) == 0
    return folder / "converted"


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory, tiny_catalogue):
    return convert_tiny(tmp_path_factory.mktemp("published"), "audioset_10_10_0.4593.pth")


@pytest.fixture(scope="module")
def unknown_folder(tmp_path_factory, tiny_catalogue):
    return convert_tiny(tmp_path_factory.mktemp("unknown"), "mine.pth")


def write_split(folder, split: str, label_column: str, count: int, seed: int, audio_column: str = "audio"):
    """Noisy tones of three classes as a data set's Parquet file; some stereo, some longer than the model's input."""
    rows = []
    for number in range(count):
        sound = tone(
            0.3 + 0.9 * (number % 4 == 3), hz=300 + 80 * (number % 3), channels=1 + number % 2, seed=seed + number
        )
        sound = sound + np.random.default_rng(seed + number).normal(scale=0.7, size=sound.shape)
        buffer = io.BytesIO()
        soundfile.write(buffer, np.clip(sound, -1, 1), (16000, 22050)[number % 5 == 4], format="WAV")
        rows.append({audio_column: {"bytes": buffer.getvalue(), "path": f"{number}.wav"}, label_column: number % 3})
    features = datasets.Features({audio_column: datasets.Audio(), label_column: datasets.Value("int64")})
    folder.mkdir(exist_ok=True)
    with datasets_without_torchcodec():
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def esc50(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("data") / "esc50", "train", "target", 36, 0)


def run(capsys, *words) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["expect", *map(str, words)])
        status = expect.main()
    return status, *capsys.readouterr()


def failure(capsys, *words) -> str:
    status, _, err = run(capsys, *words)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1
    return line


def by_mteb(folder, name: str, data, **options):
    """MTEB's own evaluator on a copy of its task; none of training.expect."""
    task = mteb.get_task(name)
    task.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, "path": str(data)}})
    script = expect.load_mteb()
    with script.decoding_with_soundfile():
        kept = {"cache": None, "co2_tracker": False, "encode_kwargs": {"batch_size": 8}}
        return mteb.evaluate(script.load_encoder(str(folder), **options), task, **kept).task_results[0]


# ---- the list ----


@pytest.mark.parametrize("name", ALL)
def test_every_published_value_is_listed(capsys, tmp_path, name):
    status, out, err = run(capsys, name, "--output", tmp_path / "values.json")
    assert (status, err) == (0, "")
    content = json.loads((tmp_path / "values.json").read_text())
    assert content["checkpoint"] == name
    values = content["values"]
    assert [row["value"] for row in values] == [figure["value"] for figure in ALL[name].figures]
    assert values or "no values are published" in out
    for row in values:
        assert f"{row['value']:g}" in out and row["source"] in out and row["name"] in out
        assert row["command"] is None or row["data"] in row["command"] + row["get_data"]
    names = [row["name"] for row in values if row["name"]]
    assert len(set(names)) == len(names)


def test_the_commands_of_a_listed_folder_name_it(published_folder, capsys):
    status, out, _ = run(capsys, published_folder)
    assert status == 0 and f"python -m training.expect {published_folder} --run ESC50 --from DATA" in out
    assert "ESC50" in out and "0.962" in out and "evar:surge" in out and "25.7" in out


def test_maebs_tasks_are_those_of_mteb():
    for name, task in catalogue.read_protocols()["maeb"]["tasks"].items():
        metadata = mteb.get_task(name).metadata
        assert (metadata.main_score, metadata.dataset["path"]) == (task["metric"], task["data"])


def test_the_published_tables():
    counts = {
        name: (protocols.count("maeb"), protocols.count("evar"))
        for name, published in ALL.items()
        if any(protocols := [figure.get("protocol") for figure in published.figures])
    }
    assert counts[NAME] == (23, 9) and counts["vggish"] == (22, 9) and counts["cnn14-16k"] == (0, 9)
    averages = {}
    for name in (NAME, "vggish", "cnn14-16k"):
        averages[name] = round(
            float(np.mean([f["value"] for f in ALL[name].figures if f.get("protocol") == "evar"])), 1
        )
    assert averages == {NAME: 65.8, "vggish": 47.2, "cnn14-16k": 57.2}  # as EVAR's README has them


# ---- which folders are compared ----


def test_a_conversion_states_the_checkpoint_and_its_weights(published_folder, unknown_folder, tiny_catalogue):
    data = ModelCard.load(published_folder / "README.md").data.to_dict()
    assert data[catalogue.ORIGIN] == {"checkpoint": NAME, "sha256": catalogue.weights_of(published_folder)}
    assert list(catalogue.weights_of(published_folder)) == ["model.safetensors"]
    assert expect.identify(published_folder) is tiny_catalogue and expect.identify(unknown_folder) is None
    # The tables are other people's measurements: they stay out of the metadata.
    (result,) = ModelCard.load(published_folder / "README.md").data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_average_precision", 0.459)
    text = ModelCard.load(published_folder / "README.md").text
    assert "| ESC-50 | accuracy | 0.962 |" in text and "| ESC-50 | accuracy | 94.6 |" in text
    assert text.count("| data set | metric | value |") == 2 and "MIT/ast-finetuned-audioset-10-10-0.4593" in text


@pytest.fixture
def copy(published_folder, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in published_folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_other_weights_are_not_compared(copy, capsys, esc50):
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    for words in ((), ("--run", "ESC50", "--from", esc50)):
        line = failure(capsys, copy, *words)
        assert f"{copy}: its weights are not those that were converted, so the values of {NAME} do not apply" in line


def test_another_grid_is_not_compared(copy, capsys):
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "time_stride": 16}))
    assert "grid_shape is [12, 6], published is [12, 9], so the values" in failure(capsys, copy)


@pytest.mark.parametrize(
    "card", [None, "no metadata", "---\nconverted_from: 3\n---\n", "---\n{\n---\n", "---\n- a\n---\n"]
)
def test_a_card_that_states_nothing(copy, capsys, card):
    (copy / "README.md").unlink()
    if card is not None:
        (copy / "README.md").write_text(card)
    line = failure(capsys, copy)
    assert line.startswith(f"error: {copy}: its card names no published checkpoint; convert the original again")


def test_a_folder_of_transformers_with_the_same_weights(tmp_path, tiny_catalogue):
    from transformers import ASTConfig, ASTForAudioClassification

    sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    for name in ("ast-finetuned-audioset-10-10-0.4593", "another"):
        ASTForAudioClassification(ASTConfig(**sizes, max_length=100)).save_pretrained(tmp_path / name)
        assert convert(["hf-ast", str(tmp_path / name), str(tmp_path / "out" / name)]) == 0
    found = [expect.identify(tmp_path / "out" / name) for name in ("ast-finetuned-audioset-10-10-0.4593", "another")]
    assert found == [tiny_catalogue, None]


# ---- MAEB ----


def test_the_score_is_that_of_mteb(published_folder, esc50, tmp_path, capsys):
    output = tmp_path / "esc50.json"
    status, out, err = run(capsys, published_folder, "--run", "ESC50", "--from", esc50, "--output", output)
    assert status == 0, err
    content = json.loads(output.read_text())
    expected = by_mteb(published_folder, "ESC50", esc50, first_window=True)
    assert content["ours"] == expected.get_score() and 0.4 < content["ours"] < 1
    experiments = [one["accuracy"] for one in expected.scores["train"][0]["scores_per_experiment"]]
    lower, upper = content["interval"]
    assert min(experiments) <= lower < content["ours"] < upper <= max(experiments)
    assert (content["published"], content["verdict"], content["checkpoint"]) == (0.962, "below", NAME)
    assert content["recognised"] and content["versions"]["mteb"] == mteb.__version__
    assert (
        f"{content['ours']:.4f}" in out and "resamples of the 5 experiments" in out and "\nbelow: our interval" in out
    )


def test_a_folder_of_unknown_origin_is_measured_and_compared_with_nothing(
    unknown_folder, esc50, tmp_path, capsys, caplog
):
    output = tmp_path / "esc50.json"
    status, out, _ = run(capsys, unknown_folder, "--run", "ESC50", "--from", esc50, "--output", output)
    content = json.loads(output.read_text())
    assert status == 0 and content["ours"] == by_mteb(unknown_folder, "ESC50", esc50).get_score()
    assert (content["published"], content["verdict"], content["checkpoint"]) == (None, "not compared", None)
    assert "its card names no published checkpoint, so the result is compared with nothing" in caplog.text
    assert "not compared: no value is published for this folder" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "splits", "column", "audio"),
    [
        ("ESC50Clustering", {"train": 60}, "target", "audio"),
        ("FSDD", {"train": 40, "test": 25}, "label", "audio"),
        ("BirdCLEF", {"train": 45}, "primary_label", "recording"),
    ],
)
def test_other_kinds_of_tasks(unknown_folder, tmp_path, capsys, name, splits, column, audio):
    for seed, (split, count) in enumerate(splits.items()):
        write_split(tmp_path / "data", split, column, count, 1000 * seed, audio)
    words = ["--run", name, "--from", tmp_path / "data", "--as", NAME, "--output", tmp_path / "out.json"]
    status, out, err = run(capsys, unknown_folder, *words)
    assert status == 0, err
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["ours"] == by_mteb(unknown_folder, name, tmp_path / "data", first_window=True).get_score()
    assert content["published"] is not None and not content["recognised"] and content["interval"] is not None
    assert f"is not known to be {NAME}; --as says so" in out


def test_of_a_long_clip_only_the_first_window_counts(published_folder):
    script = expect.load_mteb()
    sound = tone(2.0, seed=3)
    encoder = script.load_encoder(str(published_folder), first_window=True)
    longest = encoder.model.own_feature_extractor().max_samples
    assert longest < len(sound)

    def encode(one, samples, rate=16000):
        batch = [{"audio": [{"array": samples, "sampling_rate": rate}]}]
        return one.encode(batch, task_metadata=mteb.get_task("ESC50").metadata, hf_split="", hf_subset="")

    np.testing.assert_array_equal(encode(encoder, sound), encode(encoder, sound[:longest]))
    whole = script.load_encoder(str(published_folder))
    assert not np.allclose(encode(whole, sound), encode(encoder, sound))
    np.testing.assert_array_equal(encode(whole, sound[:longest]), encode(encoder, sound[:longest]))
    # At another rate the clip is resampled first.
    other, rate = encoder._cut(np.repeat(sound, 2), 32000)
    assert rate == 16000 and len(other) == longest


# ---- EVAR ----


def test_evars_folds(published_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EVAR, "num_epochs", 15)
    paths = sorted(write_class_folders(tmp_path / "clips", 8).rglob("*.wav"))
    rows = [(str(path), path.parent.name, 1 + index % 5) for index, path in enumerate(paths)]
    table = pandas.DataFrame(rows, columns=["file_name", "label", "fold"])
    table.to_csv(tmp_path / "clips.csv", index=False)
    words = ["--run", "evar:esc50", "--from", tmp_path / "clips.csv", "--output", tmp_path / "out.json"]
    status, out, err = run(capsys, published_folder, *words)
    assert status == 0, err
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["published"] == 94.6 and content["interval"][0] <= content["ours"] <= content["interval"][1] <= 100
    assert "resamples of the 16 test clips" in out
    table[table["fold"] != 5].to_csv(tmp_path / "clips.csv", index=False)
    line = failure(capsys, published_folder, *words)
    assert "clips.csv: has 4 folds; EVAR takes the data set's own 5" in line


# ---- bad input ----


def test_bad_words_get_one_line(published_folder, unknown_folder, esc50, tmp_path, capsys):
    def line(*words):
        return failure(capsys, *words)

    assert f"{NAME}x: is neither a folder nor a name of the catalogue; did you mean {NAME}?" in line(NAME + "x")
    assert f"--as {NAME}x: is no name of the catalogue; did you mean {NAME}?" in line(
        unknown_folder, "--as", NAME + "x"
    )
    needs = line(published_folder, "--run", "ESC50")
    assert needs.endswith("needs its data, --from FOLDER; hf download mteb/esc50 --repo-type dataset --local-dir DATA")
    assert "nowhere: does not exist; python -m training.prepare gtzan" in line(
        published_folder, "--run", "evar:gtzan", "--from", tmp_path / "nowhere"
    )
    assert "--run evar:esc5: is unknown; did you mean evar:esc50?" in line(published_folder, "--run", "evar:esc5")
    assert "--run ears:x: is unknown" in line(published_folder, "--run", "ears:x")
    assert line(unknown_folder, "--run", "fine-tuned:esc50").endswith(
        f"python train_hf.py recipes/datasets/esc50.yaml --model_name_or_path {unknown_folder}"
    )
    assert "this project has no command for it" in line(unknown_folder, "--run", "sound-events:desed")
    assert f"build-official --download-dir DIR --only {NAME} converts it" in line(
        NAME, "--run", "ESC50", "--from", esc50
    )
    assert "batch-size: must be 1 or more" in line(NAME, "--batch-size", 0)
    assert "does not exist" in line(NAME, "--output", tmp_path / "none" / "x.json")


@pytest.mark.slow
def test_an_unknown_task_of_mteb(published_folder, esc50, capsys):
    line = failure(capsys, published_folder, "--run", "esc-50", "--from", esc50)
    assert "--run esc-50: esc-50: is no task or benchmark of mteb; did you mean ESC50?" in line
    line = failure(capsys, published_folder, "--run", "MAEB(v1, audio-only)", "--from", esc50)
    assert "is a benchmark" in line


def test_data_of_another_task_get_one_line(published_folder, esc50, tmp_path, capsys):
    def line(name, data):
        return failure(capsys, published_folder, "--run", name, "--from", data)

    start = f"--from {esc50}: is no copy of mteb/gtzan-genre, the data of GTZANGenre (no column label in split train)"
    assert f"{start}; it needs the splits train with the columns audio, label" in line("GTZANGenre", esc50)
    assert "(no split test); it needs the splits test, train with the columns audio, label" in line("FSDD", esc50)
    (tmp_path / "empty").mkdir()
    assert "is no copy of mteb/esc50, the data of ESC50 (" in line("ESC50", tmp_path / "empty")
    folder = write_class_folders(tmp_path / "clips", 6)
    assert "evar" not in line("evar:gtzan", folder) and "no test split" in line("evar:gtzan", folder)
    assert "fold" in line("evar:esc50", folder)


@pytest.mark.parametrize(
    ("interval", "published", "decimals", "expected"),
    [
        ((0.90, 0.95), 0.92, 4, "within"), ((0.90, 0.95), 0.96, 4, "below"), ((0.90, 0.95), 0.85, 4, "above"),
        ((90.0, 94.55), 94.6, 1, "within"), ((90.0, 94.54), 94.6, 1, "below"), ((94.65, 95.0), 94.6, 1, "within"),
        ((94.66, 95.0), 94.6, 1, "above"), (None, 94.6, 1, "no interval"), ((0.9, 0.95), None, 4, "not compared"),
    ],
)  # fmt: skip
def test_verdicts(interval, published, decimals, expected):
    assert expect.verdict(expect.Measured(0.92, interval, ""), published, decimals) == expected
