"""Tests that the same clips in every format give the same features and scores, to the last bit."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import datasets
import pandas
import pytest
import soundfile
import torch
from audio_files import write_class_folders
from tiny_models import save_tiny_classifier
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from training.classification.labelled_stream import open_streams, read_whole
from training.data.arguments import DataArguments
from training.data.audio import datasets_without_torchcodec
from training.data.columns import clip_names
from training.data.dataset import ClipDataset, Collator
from training.data.labels import find_labels
from training.data.screening import check_files
from training.data.splits import load_splits
from training.data.unlabelled_sources import UnlabelledSource, open_source


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("clips"), 3)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), labels=("high", "low"))


def rows_of(clips) -> list[dict]:
    return [{"file_name": str(path), "label": path.parent.name} for path in sorted(clips.rglob("*.wav"))]


def class_folders(clips, folder):
    return {"dataset_name": str(clips)}


def folder_with_metadata(clips, folder):
    for row in rows_of(clips):
        name = row["file_name"].rsplit("/", 1)[-1]
        (folder / name).write_bytes(Path(row["file_name"]).read_bytes())
    table = pandas.DataFrame(rows_of(clips))
    table["file_name"] = table["file_name"].str.rsplit("/", n=1).str[-1]
    table.to_csv(folder / "metadata.csv", index=False)
    return {"dataset_name": str(folder)}


def table_of(extension: str):
    def write(clips, folder):
        table, path = pandas.DataFrame(rows_of(clips)), folder / f"clips.{extension}"
        {
            "csv": lambda: table.to_csv(path, index=False),
            "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
            "json": lambda: path.write_text(table.to_json(orient="records")),
            "jsonl": lambda: path.write_text(table.to_json(orient="records", lines=True)),
            "parquet": lambda: table.to_parquet(path),
        }[extension]()
        return {"train_file": str(path)}

    return write


def ssast_json(clips, folder):
    data = [{"wav": row["file_name"], "labels": row["label"]} for row in rows_of(clips)]
    (folder / "train.json").write_text(json.dumps({"data": data}))
    return {"train_file": str(folder / "train.json"), "problem_type": "single_label_classification"}


def parquet_of_the_hub(as_bytes: bool):
    def write(clips, folder):
        rows = rows_of(clips)
        audio = [
            {"path": row["file_name"], "bytes": Path(row["file_name"]).read_bytes() if as_bytes else None}
            for row in rows
        ]
        features = datasets.Features(
            {"audio": datasets.Audio(), "label": datasets.ClassLabel(names=["low", "high"])}  # not in our order
        )
        with datasets_without_torchcodec():
            data = datasets.Dataset.from_dict({"audio": audio, "label": [row["label"] for row in rows]}, features)
        (folder / "data").mkdir()
        data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        return {"dataset_name": str(folder)}

    return write


def webdataset(label: str):
    def write(clips, folder):
        with tarfile.open(folder / "train-000000.tar", "w") as tar:
            for number, row in enumerate(rows_of(clips)):
                audio = Path(row["file_name"]).read_bytes()
                text = {"json": json.dumps({"label": row["label"], "speaker": 1}), "txt": row["label"]}[label]
                for extension, content in (("wav", audio), (label, text.encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return {"dataset_name": str(folder)}

    return write


FORMATS = {
    "class folders": class_folders,
    "folder with metadata": folder_with_metadata,
    **{extension: table_of(extension) for extension in ("csv", "tsv", "json", "jsonl", "parquet")},
    "SSAST's JSON": ssast_json,
    "Parquet with audio": parquet_of_the_hub(as_bytes=True),
    "Parquet with paths": parquet_of_the_hub(as_bytes=False),
    "Parquet with audio, streamed": lambda clips, folder: parquet_of_the_hub(True)(clips, folder) | {"streaming": True},
    "WebDataset with json": webdataset("json"),
    "WebDataset with txt": webdataset("txt"),
}


def scores(words: dict, model_folder) -> dict[str, list]:
    """Returns features and logits by class name and clip length; these identify a clip here."""
    arguments = DataArguments(**words)
    if arguments.streaming:
        stream = open_streams(arguments)["train"]
        assert set(stream.class_names()) == {"high", "low"}
        clips = read_whole(stream)
    else:
        clips = load_splits(arguments)["train"]
    check_files({"train": clips})
    labels = find_labels(clips["label"], words.get("problem_type"))
    assert labels.names == ("high", "low") and labels.problem_type == "single_label_classification"
    extractor = AutoFeatureExtractor.from_pretrained(model_folder)
    dataset = ClipDataset(clips, extractor, labels)
    batch = Collator(extractor)([dataset[index] for index in range(len(dataset))])
    names = batch.pop("labels")
    with torch.no_grad():
        logits = AutoModelForAudioClassification.from_pretrained(model_folder).eval()(**batch).logits
    return {"labels": names, **batch, "logits": logits}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_scores(clips, model_folder, tmp_path, name):
    expected = scores(class_folders(clips, None), model_folder)
    (tmp_path / "data").mkdir()
    found = scores(FORMATS[name](clips, tmp_path / "data"), model_folder)
    assert len(expected["labels"]) == 6 and found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", ["json", "paths"])
def test_a_stream_reads_what_a_loaded_data_set_has(clips, tmp_path, name):
    """A stream left out the .json members of a WebDataset, and sought relative paths in the current folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    if name == "json":
        webdataset("json")(clips, folder)
    else:
        (tmp_path / "clips").symlink_to(clips)
        rows = [row | {"audio": f"../clips/{Path(row['file_name']).relative_to(clips)}"} for row in rows_of(clips)]
        pandas.DataFrame(rows)[["audio", "label"]].to_parquet(folder / "train-00000-of-00001.parquet")
    loaded = load_splits(DataArguments(dataset_name=str(folder)))["train"]
    arguments = DataArguments(dataset_name=str(folder), streaming=True)
    streamed = read_whole(open_streams(arguments)["train"])
    assert streamed["label"][:] == loaded["label"][:] and len(set(loaded["label"])) == 2
    assert clip_names(streamed) == clip_names(loaded)
    check_files({"train": streamed})
    source = open_source(UnlabelledSource(str(folder), streaming=True))
    source = pickle.loads(pickle.dumps(source))  # as for workers of a data loader
    assert [clip["path"] for clip in source.in_order()] == clip_names(loaded)


def test_flac_and_wav_give_the_same_scores(clips, model_folder, tmp_path):
    """The same 16-bit samples in either container; the lossy formats are read in test_audio.py."""
    for path in clips.rglob("*.wav"):
        samples, rate = soundfile.read(path, dtype="int16")
        for extension in ("wav", "flac"):
            target = tmp_path / extension / path.parent.name / f"{path.stem}.{extension}"
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, samples, rate, subtype="PCM_16")
    wav, flac = (scores({"dataset_name": str(tmp_path / extension)}, model_folder) for extension in ("wav", "flac"))
    assert all(torch.equal(wav[key], flac[key]) for key in wav)
