"""Tests unreadable clips: skipped before training, or a reason to stop."""

import json

import datasets
import numpy as np
import pandas
import pytest
import soundfile
from audio_files import launch, tone, write_tone
from tiny_models import save_tiny_classifier
from tiny_runs import TINY, write_recipe

from training import check, tasks
from training.classification import cross_validation, train
from training.data import screening
from training.data.arguments import ClipArguments, DataArguments
from training.data.audio import decode_audio, read_audio
from training.data.columns import Columns
from training.data.screening import decode, screen, try_to_decode
from training.data.splits import load_splits
from training.data.tables import load_table
from training.data.unreadable import UNREADABLE_CLIPS
from training.embeddings import probe, sweep
from training.errors import InputError

EPOCH = TINY | {
    "num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 5e-5, "validation_fraction": 0.1,
    "test_fraction": 0.1, "save_strategy": "no",
}  # fmt: skip
DAMAGES = {
    "empty": "the file is empty",
    "text": "not readable as audio",
    "spoiled": "not readable as audio",
    "nan": "holds 1 NaN or infinite samples",
    "missing": "no such file",
}


def damage(kind: str, path):
    """Writes a file with one thing wrong, and returns its path."""
    path = path.with_suffix(".flac" if kind == "spoiled" else ".wav")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are notes about a recording\n" * 20)
    elif kind == "spoiled":
        content = bytearray(write_tone(path, seconds=3.0).read_bytes())
        content[8000:16000] = bytes(8000)
        path.write_bytes(content)
    elif kind == "nan":
        samples = tone()
        samples[7] = np.nan
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path


def write_manifest(folder, num_clips: int = 100):
    """A table of clips in two classes, the last five damaged each in its own way, and those five, by kind."""
    rows, damaged = [], {}
    for index in range(num_clips - len(DAMAGES)):
        path = write_tone(folder / f"{index}.wav", seconds=0.1, hz=300 + 600 * (index % 2), seed=index)
        rows.append((path.name, ("low", "high")[index % 2]))
    for index, kind in enumerate(DAMAGES):
        damaged[kind] = str(damage(kind, folder / kind.replace(" ", "_")))
        rows.append((damaged[kind].rsplit("/", 1)[1], ("low", "high")[index % 2]))
    pandas.DataFrame(rows, columns=["file_name", "label"]).to_csv(folder / "clips.csv", index=False)
    return folder / "clips.csv", damaged


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def recipe(tmp_path):
    return lambda **values: write_recipe(tmp_path, values)


def run(task, path: str, *words: str):
    task.run(*tasks.parse([path, *words])[1:])


def logged(output) -> dict[str, str]:
    lines = (output / UNREADABLE_CLIPS).read_text().splitlines()
    return {entry["clip"]: entry["reason"] for entry in map(json.loads, lines)}


def assert_all_are_listed(output, damaged: dict[str, str]):
    found = logged(output)
    assert sorted(found) == sorted(damaged.values())
    for kind, clip in damaged.items():
        assert found[clip].startswith(DAMAGES[kind]) and clip not in found[clip], kind


def test_a_training_leaves_damaged_clips_out_and_lists_them(manifest, recipe, warnings):
    table, damaged = manifest
    path, output = recipe(**EPOCH, train_file=table, on_bad_audio="skip", compute_statistics=True)
    run(train, path)
    assert_all_are_listed(output, damaged)
    results = json.loads((output / "results.json").read_text())
    assert sum(results["clips"].values()) == 95 and set(results["clips"]) == {"train", "validation", "test"}
    assert len(warnings) == 1 and warnings[0].startswith("5 of 100 clips are unreadable and left out: ")
    assert warnings[0].count(str(table.parent)) == 3 and str(output / UNREADABLE_CLIPS) in warnings[0]


def test_the_list_of_an_earlier_run_does_not_stay(manifest, tmp_path):
    splits = load_splits(DataArguments(train_file=str(manifest[0])))
    in_order = {"train": splits["train"].select(range(95))}
    for choice in ("skip", "error"):
        data_arguments = DataArguments(train_file="x.csv", on_bad_audio=choice)
        (tmp_path / UNREADABLE_CLIPS).write_text('{"clip": "earlier.wav", "reason": "no such file"}\n')
        assert screening.screen(in_order, data_arguments, tmp_path)["train"] is in_order["train"]
        assert not (tmp_path / UNREADABLE_CLIPS).exists()


def test_by_default_a_training_stops_at_the_first_damaged_clip(manifest, recipe):
    table, damaged = manifest
    path, output = recipe(**EPOCH, train_file=table)
    # Headers say nothing of the NaN and of what is spoiled.
    message = f"{damaged['empty']}: the file is empty; remove it or copy it again .and 2 more damaged files."
    with pytest.raises(InputError, match=f"^{message}$"):
        run(train, path)
    with pytest.raises(InputError, match=f"{damaged['empty']}: the file is empty.*and 4 more damaged files"):
        run(train, path, "--check_samples", "true")
    assert not output.exists()


def test_given_splits_keep_their_readable_clips(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        write_manifest(tmp_path / split, 20)
    files = {f"{split}_file": str(tmp_path / split / "clips.csv") for split in ("train", "validation", "test")}
    data_arguments = DataArguments(**files, on_bad_audio="skip", max_unreadable_share=0.25)
    kept = screening.screen(load_splits(data_arguments), data_arguments, tmp_path)
    assert {split: len(data) for split, data in kept.items()} == {"train": 15, "validation": 15, "test": 15}
    assert kept["test"]["audio"][:] == [str(tmp_path / "test" / f"{index}.wav") for index in range(15)]
    assert len(logged(tmp_path)) == 15
    data_arguments.max_unreadable_share = 0.2
    with pytest.raises(InputError, match="15 of 60 clips are unreadable .max_unreadable_share is 0.2.*lists them all"):
        screening.screen(load_splits(data_arguments), data_arguments, tmp_path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("encoder"), initializer_range=0.2)


def test_a_sweep_leaves_damaged_clips_out(manifest, recipe, encoder):
    table, damaged = manifest
    path, output = recipe(task="sweep", model_name_or_path=encoder, train_file=table, num_folds=2, readouts=["prefix"])
    with pytest.raises(InputError, match=f"{damaged['empty']}: the file is empty"):
        run(sweep, path)
    run(sweep, path, "--on_bad_audio", "skip")
    assert_all_are_listed(output, damaged)
    assert json.loads((output / "results.json").read_text())["clips"] == 85  # and ten for the test of the fine-tuning
    # The fine-tuning that it recommends meets the same clips.
    _, _, data_arguments, *_ = tasks.parse([str(output / "finetune.yaml")])
    assert data_arguments.on_bad_audio == "skip"


def test_a_probe_leaves_damaged_clips_out(manifest, recipe, encoder):
    table, damaged = manifest
    settings = {"methods": ["linear"], "num_epochs": 2, "learning_rates": [0.01], "num_seeds": 1}
    path, output = recipe(task="probe", model_name_or_path=encoder, train_file=table, **settings)
    with pytest.raises(InputError, match=f"{damaged['empty']}: the file is empty"):
        run(probe, path)
    run(probe, path, "--on_bad_audio", "skip")
    assert_all_are_listed(output, damaged)
    assert sum(json.loads((output / "results.json").read_text())["clips"].values()) == 95


@pytest.mark.slow
def test_a_cross_validation_leaves_damaged_clips_out(manifest, recipe, tmp_path):
    table, damaged = manifest
    common = {"train_file": table, "on_bad_audio": "skip"}
    path, _ = recipe(task="cross_validation", **EPOCH, num_folds=2, output_dir=str(tmp_path / "folds"), **common)
    run(cross_validation, path)
    assert_all_are_listed(tmp_path / "folds", damaged)
    predictions = pandas.read_csv(tmp_path / "folds" / "predictions.csv")
    assert len(predictions) == 95 and not set(predictions["file"]) & set(damaged.values())


def write_parts(folder):
    """Parts of two recordings, of which two begin after the end and one is turned round; and those three."""
    rows = []
    for name, hz in (("low", 300), ("high", 900)):
        write_tone(folder / f"{name}.wav", seconds=4.0, hz=hz)
        rows += [(f"{name}.wav", name, 0.1 * part, 0.1 * part + 0.3) for part in range(30)]
    bad = [("low.wav", "low", 4.5, 5.0), ("high.wav", "high", 100.0, ""), ("low.wav", "low", 2.0, 1.0)]
    table = pandas.DataFrame(rows + bad, columns=["file_name", "label", "start", "end"])
    table.to_csv(folder / "parts.csv", index=False)
    return folder / "parts.csv", [f"{folder}/{name}" for name in ("low.wav#t=4.5,5", "high.wav#t=100", "low.wav#t=2,1")]


def test_parts_beyond_the_end_of_a_recording_are_left_out(tmp_path, recipe):
    table, bad = write_parts(tmp_path)
    times = {"start_column": "start", "end_column": "end"}
    path, output = recipe(**EPOCH, train_file=table, **times, on_bad_audio="skip")
    run(train, path)
    found = logged(output)
    assert sorted(found) == sorted(bad)
    assert found[bad[0]].startswith("begins after the recording's end at 4 s")
    assert found[bad[2]].startswith("a part from 2 to 1 s holds nothing")
    assert sum(json.loads((output / "results.json").read_text())["clips"].values()) == 60
    with pytest.raises(InputError, match=f"^{bad[0]}: begins after the recording's end.*and 2 more damaged files"):
        run(train, path, "--overwrite", "true", "--on_bad_audio", "error")


@pytest.mark.parametrize("on_bad_audio", ["error", "skip"])
def test_parts_that_end_after_their_recordings_are_counted(tmp_path, warnings, on_bad_audio):
    """Times in milliseconds made every part that begins at 0 the whole recording."""
    path = str(write_tone(tmp_path / "a.wav", seconds=1.0))
    times = {"start": [0.0, 0.0, 0.5, None, 0.5], "end": [1000.0, 1.02, 1.2, 0.5, None]}
    data = datasets.Dataset.from_dict({"audio": [path] * 5, "label": list("ababa"), **times})
    screen({"train": data}, ClipArguments(on_bad_audio=on_bad_audio), tmp_path / "run")
    assert warnings == [f"2 parts end after their recordings, such as {path}#t=0,1000: are the times in seconds?"]
    assert check.make_table({"train": data}, 1)["end"].dropna().tolist() == [1000.0, 1.2]


def test_a_part_of_a_damaged_recording_has_its_own_name_in_the_list(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    source = {"path": str(tmp_path / "a.wav"), "start": 1.0, "end": 2.0}
    assert try_to_decode(source) == (None, "the file is empty; remove it or copy it again")


def test_too_many_damaged_clips_stop_the_run(manifest, recipe):
    table, damaged = manifest
    path, output = recipe(**EPOCH, train_file=table, on_bad_audio="skip", max_unreadable_share=0.04)
    with pytest.raises(InputError, match="5 of 100 clips are unreadable .max_unreadable_share is 0.04.: ") as caught:
        run(train, path)
    assert "\n" not in str(caught.value)
    assert_all_are_listed(output, damaged)


@pytest.mark.parametrize(
    ("labels", "pattern"),
    [
        (["low", "high"] * 47 + ["low"] + ["rare"] * 5, "class 'rare': all its training clips are unreadable; repair"),
        ([["low"], ["high"]] * 47 + [["low"]] + [["rare", "low"]] * 5, "class 'rare': all its training clips"),
    ],
)
def test_a_class_that_loses_all_its_clips_stops_the_run(manifest, recipe, labels, pattern):
    table, _ = manifest
    texts = [label if isinstance(label, str) else ";".join(label) for label in labels]
    pandas.read_csv(table).assign(label=texts).to_csv(table.with_name("rare.csv"), index=False)
    path, _ = recipe(**EPOCH, train_file=table.with_name("rare.csv"), on_bad_audio="skip")
    with pytest.raises(InputError, match=pattern):
        run(train, path, *(["--label_separator", ";"] if isinstance(labels[0], list) else []))


def test_a_split_that_loses_all_its_clips_stops_the_run(manifest, recipe):
    table, _ = manifest
    pandas.read_csv(table)[95:].to_csv(table.with_name("only_damaged.csv"), index=False)
    only_damaged = table.with_name("only_damaged.csv")
    path, _ = recipe(**EPOCH, train_file=table, test_file=only_damaged, on_bad_audio="skip", max_unreadable_share=0.5)
    with pytest.raises(InputError, match="all 5 test clips are unreadable; repair them"):
        run(train, path)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--on_bad_audio", "ignore"], "on_bad_audio: must be error or skip, got 'ignore'"),
        (["--max_unreadable_share", "2"], "max_unreadable_share: must be from 0 to 1, got 2.0"),
    ],
)
def test_impossible_settings_are_told(recipe, words, pattern):
    path, _ = recipe(dataset_name="clips")
    with pytest.raises(InputError, match=pattern):
        tasks.parse([path, *words])


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_decoded_before_training_is_what_training_reads(tmp_path, kind):
    """The same reason, to the letter; and for a clip in order, the same samples."""
    path = str(damage(kind, tmp_path / "clip"))
    with pytest.raises(InputError) as in_training:
        read_audio(path, 16000)
    assert f"{path}: {try_to_decode(path)[1]}" == str(in_training.value)
    whole = str(write_tone(tmp_path / "whole.wav", channels=2))
    decoded = decode(whole)
    np.testing.assert_array_equal(decoded.mono, read_audio(whole, 16000))
    np.testing.assert_array_equal(decoded.samples, decode_audio(whole)[0])
    assert decoded.samples.shape == (8000, 2) and decoded.sampling_rate == 16000


def test_threads_keep_the_order_of_the_clips(manifest):
    table, _ = manifest
    data = load_table(table, Columns())
    found = screening.for_each_clip({"train": data, "test": data.select(range(3))}, lambda source: source, 4)
    assert found == {"train": list(data["audio"]), "test": list(data["audio"])[:3]}


def test_threads_run_ahead_of_what_is_taken_by_a_bound(manifest):
    """The results may be decoded clips, which must not fill the memory."""
    data, begun = load_table(manifest[0], Columns()), []
    data = data.select([index % len(data) for index in range(100)])
    for taken, _ in enumerate(screening.each_clip(data, begun.append, "counting", 2), start=1):
        assert taken <= len(begun) < taken + 2 * screening.CLIPS_AHEAD
    assert len(begun) == 100


def test_clips_that_are_stored_as_bytes_are_told_apart_by_their_places(tmp_path):
    """Names within one split may return in another, where the clip is in order."""
    good, bad = write_tone(tmp_path / "a.wav").read_bytes(), b"RIFFrubbish"
    stored = {
        split: [{"audio": {"path": "a.wav", "bytes": content}, "label": f"{index % 2}"} for index, content in rows]
        for split, rows in {
            "train": list(enumerate([good] * 20)),
            "test": list(enumerate([good, bad, good, bad])),
        }.items()
    }
    for split, rows in stored.items():
        pandas.DataFrame(rows).to_parquet(tmp_path / f"{split}.parquet")
    data_arguments = DataArguments(
        train_file=str(tmp_path / "train.parquet"), test_file=str(tmp_path / "test.parquet"), on_bad_audio="skip",
        max_unreadable_share=0.1,
    )  # fmt: skip
    kept = screening.screen(load_splits(data_arguments), data_arguments, tmp_path)
    assert {split: len(data) for split, data in kept.items()} == {"train": 20, "test": 2}
    assert list(logged(tmp_path)) == ["a.wav (clip 1 of test)", "a.wav (clip 3 of test)"]


@pytest.mark.slow
def test_two_processes_leave_out_the_same_clips(manifest, recipe):
    table, damaged = manifest
    path, output = recipe(**EPOCH, train_file=table, on_bad_audio="skip", use_cpu=True)
    process = launch(2, "train_hf.py", path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_all_are_listed(output, damaged)
    results = json.loads((output / "results.json").read_text())
    assert sum(results["clips"].values()) == 95
