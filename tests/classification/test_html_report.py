"""Tests the page about a run: its content, nothing private, and that a browser shows and plays it."""

import base64
import html
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import yaml
from audio_files import ROOT, run_program, tone, write_class_folders, write_tone
from pages import check_page
from sklearn.metrics import average_precision_score
from tiny_models import save_tiny_cnn
from tiny_runs import TINY, train

from modeling_dual_ssast import DualSSASTFeatureExtractor
from training.classification import html_report
from training.classification.arguments import ClassificationTrainingArguments
from training.errors import InputError
from training.pretraining.arguments import MspmTrainingArguments
from training.recipe import options

AUDIO = re.compile(r'src="data:audio/mpeg;base64,([^"]+)"')
NAME = re.compile(r'<div class="name soft">(.*?)</div>')
LOSS = re.compile(r'<div class="soft">loss (.*?)</div>')
ODD_LABELS = ('<b>&"low"</b>', "it's 100%")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Trains by a tiny recipe; returns the output folder, the page and the results."""

    def run(**values):
        path = tmp_path_factory.mktemp("run") / "recipe.json"
        values = {"output_dir": path.parent / "out", "report_clips": 100} | values
        values = {name: str(value) if hasattr(value, "parts") else value for name, value in values.items()}
        path.write_text(json.dumps({**TINY, **values}))
        train(str(path))
        output = Path(values["output_dir"])
        page = output / "report.html"
        text = page.read_text(encoding="utf-8") if page.exists() else None
        return output, text, json.loads((output / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def odd_run(run_of, tmp_path_factory):
    """Labels and file names that mean something to HTML; a clip of 12 s, one at 44.1 kHz."""
    folder, rows = tmp_path_factory.mktemp("odd"), []
    for index in range(8):
        name = f"sub/{index} <i> & 'so' \"#?%41.wav"
        settings = {2: {"seconds": 12.0}, 3: {"rate": 44100}}.get(index, {})
        write_tone(folder / name, **{"seconds": 0.3, "hz": 300 * (1 + index % 2) + 20 * index, **settings})
        rows.append({"file_name": name, "label": ODD_LABELS[(index + index // 6) % 2]})  # the last two sound wrong
    pandas.DataFrame(rows).to_csv(folder / "clips.csv", index=False)
    table = folder / "clips.csv"
    return folder, *run_of(train_file=table, test_file=table, validation_fraction=0.25, report_clips=6, calibrate=False)


@pytest.fixture(scope="module")
def several_labels(tmp_path_factory):
    """A table with several labels per clip, and a number."""
    folder, rng, rows = tmp_path_factory.mktemp("several"), np.random.default_rng(0), []
    for index in range(24):
        labels = [name for name in ("low", "mid", "high") if rng.random() < 0.5]
        write_tone(folder / f"{index}.wav", seconds=0.2, hz=200 + 30 * index)
        rows.append({"file_name": f"{index}.wav", "labels": ";".join(labels), "pitch": 0.1 * index})
    pandas.DataFrame(rows).to_csv(folder / "clips.csv", index=False)
    return folder / "clips.csv"


def clip_names(page: str) -> list[str]:
    return [html.unescape(name) for name in NAME.findall(page)]


def test_the_page_shows_the_hardest_clips_first(odd_run):
    _, output, page, _ = odd_run
    table = pandas.read_csv(output / "predictions.csv")
    table["loss"] = [-math.log(row[f"probability_{row['label']}"]) for _, row in table.iterrows()]
    table = table.sort_values("loss", ascending=False)[:6]
    assert clip_names(page) == [f"sub/{name.rsplit('/', 1)[1]}" for name in table["file"]]
    np.testing.assert_allclose([float(loss) for loss in LOSS.findall(page)], table["loss"], atol=6e-4)
    text = html.unescape(page)
    for _, row in table.iterrows():
        for column in ("label", "prediction"):
            assert f"<b>{row[column]}</b> {row[f'probability_{row[column]}']:.2f}" in text
    assert page.count("(wrong)") == (table["label"] != table["prediction"]).sum() > 0


def test_the_page_is_complete_and_tells_no_paths(odd_run):
    folder, output, page, results = odd_run
    assert set(re.findall(r'\s(?:src|href)="(.{5})', page)) == {"data:"} and "://" not in page
    text = re.sub('base64,[^"]+', "", page)
    assert not [path for path in (folder, output, ROOT, Path.home()) if str(path) in text]
    assert ODD_LABELS[0] not in text and html.escape(ODD_LABELS[0]).replace("&quot;", "&#34;") in text
    pictures = list(output.glob("*.png"))
    assert {"learning_curves.png", "confusion_matrix.png"} <= {picture.name for picture in pictures}
    assert all(base64.b64encode(picture.read_bytes()).decode() in page for picture in pictures)
    for metric, value in results["metrics"]["test"].items():
        assert metric == "loss" or f'<div class="value">{value:.3f}</div>' in page
    for figure in results["per_class"].values():
        assert f"<td>{figure['f1-score']:.3f}</td>" in page
    for version in results["versions"].values():
        assert version in page


def test_the_audio_is_the_beginning_of_the_clip(odd_run):
    folder, _, page, _ = odd_run
    names, recordings = clip_names(page), AUDIO.findall(page)
    assert len(names) == len(recordings) == 6
    assert len(page) < 1.5e6
    for name, recording in zip(names, recordings):
        original, original_rate = soundfile.read(folder / name, dtype="float32")
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(recording)), dtype="float32")
        assert rate == 16000 and audio.ndim == 1
        assert len(audio) / rate == pytest.approx(min(len(original) / original_rate, 10), abs=1e-3)
        if original_rate == rate:
            assert np.corrcoef(audio, original[: len(audio)])[0, 1] > 0.99


def test_several_labels_have_an_average_precision_each(run_of, several_labels):
    output, page, results = run_of(train_file=several_labels, label_column="labels", label_separator=";")
    table = pandas.read_csv(output / "predictions.csv", keep_default_na=False)
    for name in results["labels"]:
        targets = [name in label.split(",") for label in table["label"]]
        expected = f"{average_precision_score(targets, table[f'probability_{name}']):.3f}" if any(targets) else "-"
        assert re.search(rf"<tr><td>{name}</td>\s*<td>{expected}</td>", page), name
    shown = [float(loss) for loss in LOSS.findall(page)]
    assert len(shown) == len(table) and shown == sorted(shown, reverse=True)
    assert np.mean(shown) == pytest.approx(results["metrics"]["test"]["loss"], abs=1e-3)


def test_numbers_are_drawn_against_their_targets(run_of, several_labels):
    _, page, results = run_of(train_file=several_labels, label_column="pitch", problem_type="regression")
    assert 'alt="predictions against targets"' in page and "<h2>Classes</h2>" not in page
    shown = [float(loss) for loss in LOSS.findall(page)]
    assert np.mean(shown) == pytest.approx(results["metrics"]["test"]["mean_squared_error"], abs=1e-3)


def test_the_loss_of_a_split_is_the_mean_over_its_clips(odd_run, run_of):
    folder, *_ = odd_run
    _, page, results = run_of(train_file=folder / "clips.csv", test_file=folder / "clips.csv", validation_fraction=0)
    shown = [float(loss) for loss in LOSS.findall(page)]
    assert len(shown) == 8 and np.mean(shown) == pytest.approx(results["metrics"]["test"]["loss"], abs=1e-3)


def test_a_convolutional_network_has_a_page_too(run_of, tmp_path):
    model = save_tiny_cnn(tmp_path / "cnn14", "panns_cnn14")
    clips = write_class_folders(tmp_path / "clips", 10)
    settings = {"config_overrides": None, "max_length": None, "mean": None, "std": None, "max_steps": 1}
    _, page, _ = run_of(dataset_name=clips, model_name_or_path=model, validation_fraction=0, **settings)
    assert ">panns cnn14, " in page and "<dd>cnn14</dd>" in page
    rate = {soundfile.info(io.BytesIO(base64.b64decode(audio))).samplerate for audio in AUDIO.findall(page)}
    assert len(rate) == 1 and f"{rate.pop()} Hz" in page


def test_without_a_test_or_without_a_page(tmp_path, run_of):
    clips = write_class_folders(tmp_path / "clips", 6)
    none = {"validation_fraction": 0, "test_fraction": 0, "max_steps": 1, "save_strategy": "no", "dataset_name": clips}
    output, page, _ = run_of(**none)
    assert "No split was set aside" in page and "<audio" not in page and "<td>6</td>" in page
    run_of(**none, html_report=False, output_dir=output, overwrite=True)
    assert not (output / "report.html").exists()


def test_a_clip_that_cannot_be_drawn_loses_neither_run_nor_page(tmp_path, run_of, monkeypatch):
    clips, draw = write_class_folders(tmp_path / "clips", 10), html_report._picture_and_sound

    def fail_once(*parts):
        monkeypatch.setattr(html_report, "_picture_and_sound", draw)
        raise OSError(str(clips))

    monkeypatch.setattr(html_report, "_picture_and_sound", fail_once)
    _, page, results = run_of(dataset_name=clips, max_steps=1, save_strategy="no", load_best_model_at_end=False)
    assert page.count("could not be read again") == 1 and str(clips) not in page
    assert len(AUDIO.findall(page)) == results["clips"]["test"] - 1


@pytest.mark.parametrize(("rate", "expected"), [(8000, 8000), (10000, 11025), (96000, 48000)])
def test_any_rate_becomes_one_that_mp3_has(rate, expected):
    clip = html_report._picture_and_sound(tone(1.0, rate=rate), DualSSASTFeatureExtractor(sampling_rate=rate))
    info = soundfile.info(io.BytesIO(base64.b64decode(clip["audio"].split(",")[1])))
    assert info.samplerate == expected and info.duration == pytest.approx(1.0, abs=1e-3)
    assert clip["seconds"] == clip["shown_s"] == 1.0


def test_shorter_than_a_frame_and_silent_clips_are_drawn():
    for waveform in (np.zeros(1, np.float32), np.zeros(16000, np.float32)):
        clip = html_report._picture_and_sound(waveform, DualSSASTFeatureExtractor())
        assert clip["picture"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("/data/clips/dog/1.wav", "/data/clips", "dog/1.wav"),
        ("/data/clips/dog/1.wav#t=1,2", "/data/clips/", "dog/1.wav#t=1,2"),
        ("clips/dog/1.wav", "clips", "dog/1.wav"),
        ("/elsewhere/1.wav", "/data/clips", "1.wav"),
        ("hf://datasets/who/what@main/1.wav", "who/what", "1.wav"),
        ("1.wav", ".", "1.wav"),
    ],
)
def test_names_are_those_below_the_data_set(name, folder, expected):
    assert html_report.public_clip_name(name, folder) == expected


def test_clip_losses_by_hand():
    logits = np.array([[0.0, math.log(3)]])
    single = html_report.clip_losses(logits, np.array([0]), "single_label_classification")
    several = html_report.clip_losses(logits, np.array([[1.0, 1.0]]), "multi_label_classification")
    number = html_report.clip_losses(logits, np.array([2.0]), "regression")
    assert [float(single[0]), float(several[0]), float(number[0])] == pytest.approx(
        [math.log(4), (math.log(2) + math.log(4 / 3)) / 2, 4.0]
    )


def test_what_the_arguments_refuse(tmp_path):
    with pytest.raises(InputError, match="report_clips: must be 0 or more, got -1"):
        ClassificationTrainingArguments(output_dir=str(tmp_path), report_clips=-1)
    assert "report_clips" not in {option.name for option in options(MspmTrainingArguments)}  # its page has no clips


def column(browser, index: int) -> list[str]:
    rows = "[...document.querySelector('.sortable').tBodies[0].rows]"
    return browser.execute_script(f"return {rows}.map(row => row.cells[arguments[0]].textContent)", index)


@pytest.mark.slow
def test_a_browser_shows_and_plays_odd_clips(browser, odd_run, tmp_path):
    _, output, page, _ = odd_run
    check_page(browser, output / "report.html", num_clips=6, picture=tmp_path / "odd")
    texts = browser.execute_script("return [...document.querySelectorAll('.name')].map(name => name.textContent)")
    assert texts == clip_names(page)
    assert sorted(column(browser, 0)) == sorted(ODD_LABELS)


@pytest.mark.slow
def test_a_browser_shows_and_plays_the_quickstart(browser, tmp_path):
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text()) | {"num_train_epochs": 3}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    process = run_program("train_hf.py", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "run", timeout=1500)
    assert process.returncode == 0, process.stderr[-3000:]
    path = tmp_path / "run" / "report.html"
    assert path.stat().st_size < 3e6
    check_page(browser, path, num_clips=12, picture=tmp_path / "quickstart")
    for index in (0, 3):  # the class, and the F1
        before = column(browser, index)
        button = browser.find_elements("css selector", ".sortable th button")[index]
        for is_descending in (index > 0, index == 0):
            browser.execute_script("arguments[0].click()", button)
            key = str if index == 0 else float
            assert column(browser, index) == sorted(before, key=key, reverse=is_descending)
