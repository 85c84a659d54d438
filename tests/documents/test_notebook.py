"""Tests the notebook on a zip of embedded clips, in a fresh kernel, and its messages about unusable zips."""

import base64
import io
import shutil
import zipfile

import nbformat
import pytest
from audio_files import ROOT, write_class_folders
from PIL import Image
from run_notebook import NOTEBOOK, PLAYER, execute, link_checkout, zip_instruments

TINY = '{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}'
SHORT = {"num_train_epochs": 2, "config_overrides": TINY, "max_length": 128, "dataloader_num_workers": 0}


def code_cell(word: str) -> str:
    """The source of the only code cell that holds a word."""
    found = [cell.source for cell in notebook().cells if cell.cell_type == "code" and word in cell.source]
    assert len(found) == 1
    return found[0]


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(cells) -> list:
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def pictures_of(outputs) -> list[Image.Image]:
    stored = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in stored]


@pytest.mark.slow
def test_the_notebook_runs_on_a_zip_of_clips(hub, tmp_path, monkeypatch):
    """From the zip to the Hub, the local one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    classes = ("electric", "hi-hat", "tabla")
    clips_zip = zip_instruments(tmp_path / "sounds.zip", classes)
    checkout = link_checkout(tmp_path / "checkout")
    parameters = {"PROJECT": str(checkout), "CLIPS_ZIP": str(clips_zip), "SETTINGS": SHORT, "PUSH_TO": "user/sounds"}
    executed = execute(parameters, tmp_path)

    outputs = outputs_of(executed.cells)
    assert not [output for output in outputs if output.output_type == "error"]
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    # A spectrogram per class, two plots of the run, the four hardest clips, and what the model looked at.
    pictures = pictures_of(outputs)
    assert len(pictures) == len(classes) + 2 + 4 + 1
    assert all(picture.width > 300 and len(picture.convert("RGB").getcolors(1 << 24)) > 20 for picture in pictures)
    assert sum(PLAYER in str(output) for output in outputs) == len(classes) + 4
    shown = "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert "train: 72 clips" in shown and "test: loss" in shown and "pushed to" in shown
    assert sum(f".flac\t{name}" in shown for name in classes) >= 1  # answers of predict_hf.py

    assert {"model.safetensors", "README.md", "confusion_matrix.png"} <= set(hub.files("user/sounds"))
    assert not [name for name in hub.files("user/sounds") if name.endswith((".flac", ".pt", ".zip"))]
    with zipfile.ZipFile(checkout / "runs" / "notebook" / "model.zip") as archive:
        assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= set(archive.namelist())


def unpack(path, monkeypatch, tmp_path):
    """Runs the cell that opens the zip, and returns its variables."""
    monkeypatch.chdir(tmp_path)
    found = {"CLIPS_ZIP": path}
    exec("import sys\nfrom pathlib import Path\n" + code_cell("zipfile.ZipFile(CLIPS_ZIP)"), found)
    return found


def write_zip(path, source, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*.*")):
            archive.write(file, prefix + str(file.relative_to(source)))
    return path


def test_zips_are_taken_as_file_managers_make_them(monkeypatch, tmp_path):
    source = write_class_folders(tmp_path / "source", 2)
    for number, prefix in enumerate(("", "my clips/", "a/b/")):
        path = write_zip(tmp_path / f"{number}.zip", source, prefix)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/high/._high_0.wav", b"no audio")
            archive.writestr(f"{prefix}high/.DS_Store", b"no audio")
        table = unpack(path, monkeypatch, tmp_path)["table"]
        assert table.groupby("class").size().to_dict() == {"high": 2, "low": 2}
    days = tmp_path / "days"  # the first folder is the class, as for train_hf.py
    for name in ("high", "low"):
        shutil.copytree(source / name, days / name / "day1")
    table = unpack(write_zip(tmp_path / "days.zip", days), monkeypatch, tmp_path)["table"]
    assert table.groupby("class").size().to_dict() == {"high": 2, "low": 2}
    splits = write_zip(tmp_path / "splits.zip", source, "train/")
    with zipfile.ZipFile(splits, "a") as archive:
        for name in ("high", "low"):
            archive.write(source / name / f"{name}_1.wav", f"test/{name}/other.wav")
    found = unpack(splits, monkeypatch, tmp_path)
    assert found["table"].groupby("class").size().to_dict() == {"high": 3, "low": 3}
    assert {path.name for path in found["CLIPS"].iterdir()} == {"train", "test"}


def test_a_zip_writes_nothing_outside_its_folder(monkeypatch, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = write_zip(tmp_path / "evil.zip", write_class_folders(tmp_path / "source", 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../../../escaped.txt", "no")
        archive.writestr(f"{tmp_path}/absolute.txt", "no")
    unpack(path, monkeypatch, inner)
    outside = [p for p in tmp_path.rglob("*.txt") if inner / "runs" / "notebook" / "clips" not in p.parents]
    assert not outside


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("text", "broken.zip is not a zip file"),
        ("missing", "missing.zip is not a zip file"),
        ("empty", "empty.zip holds no wav, flac, ogg, opus or mp3 files"),
        ("flat", "4 clips lie in no folder, such as high_0.wav; make a folder for each class"),
        ("one", "all clips lie in the folder 'high'; make a folder for each class"),
        ("none", "CLIPS_ZIP: name a zip file with one folder per class"),
    ],
)
def test_zips_that_cannot_be_used_are_told_why(layout, message, monkeypatch, tmp_path):
    source, path = write_class_folders(tmp_path / "source", 2), None
    if layout == "text":
        path = tmp_path / "broken.zip"
        path.write_text("no zip")
    elif layout == "missing":
        path = tmp_path / "missing.zip"
    elif layout == "empty":
        path = tmp_path / "empty.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes/readme.txt", "no audio")
    elif layout == "flat":
        path = tmp_path / "flat.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(source.rglob("*.wav")):
                archive.write(file, file.name)
    elif layout == "one":
        path = write_zip(tmp_path / "one.zip", source / "high", "high/")
    with pytest.raises(ValueError, match=message):
        unpack(path, monkeypatch, tmp_path)


def test_a_project_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "")  # to be as it was after the test
    with pytest.raises(FileNotFoundError, match="PROJECT: no train_hf.py there"):
        exec(code_cell("NEEDED ="), {"PROJECT": str(tmp_path), "CLIPS_ZIP": "", "CHECKPOINT": ""})


def test_the_stored_notebook_shows_pictures_and_nothing_of_a_machine():
    stored = notebook()
    nbformat.validate(stored)
    assert NOTEBOOK.stat().st_size < 500_000
    assert len(pictures_of(outputs_of(stored.cells))) == 4 + 2 + 4 + 1
    values = {}
    exec(code_cell("PUSH_TO = "), values)
    assert {name: values[name] for name in ("PROJECT", "CLIPS_ZIP", "CHECKPOINT", "SETTINGS", "PUSH_TO")} == {
        "PROJECT": "",
        "CLIPS_ZIP": "",
        "CHECKPOINT": "",
        "SETTINGS": {},
        "PUSH_TO": "",
    }
    shown = str([{**output.get("data", {}), "image/png": ""} for output in outputs_of(stored.cells)])
    assert "/tmp" not in shown and "site-packages" not in shown and "Traceback" not in shown
    assert not [output for output in outputs_of(stored.cells) if output.output_type in ("error", "stream")]
