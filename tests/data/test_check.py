"""Tests training/check.py: it finds the planted faults of a data set, and no others."""

import json
import shutil

import numpy as np
import pandas
import pytest
import soundfile
from audio_files import ROOT, patched, run_program, tone, write_class_folders, write_tone

from training import check
from training.data.arguments import DataArguments
from training.errors import InputError

SPLITS = ("train", "validation", "test")


class Tables:
    """Clips and their tables, in order until a test plants a fault."""

    def __init__(self, folder):
        self.folder = folder
        self.rows = []
        for number, split in enumerate(SPLITS):
            for index in range(6):
                name = f"{split}_{index}.wav"
                write_tone(folder / name, seconds=0.2 + 0.01 * index, hz=200 + 50 * index, seed=10 * number + index)
                self.add(split, name, ("speech", "music")[index % 2], f"{split} {index // 2}")

    def add(self, split: str, name: str, label: str = "speech", group: str | None = None, **times):
        self.rows.append({"split": split, "file_name": name, "label": label, "group": group or name, **times})

    def arguments(self, *words: str) -> list[str]:
        table = pandas.DataFrame(self.rows)
        for split, own in table.groupby("split"):
            own.drop(columns="split").to_csv(self.folder / f"{split}.csv", index=False)
        files = [f"--{split}_file={self.folder / split}.csv" for split in SPLITS[1:]]
        return [str(self.folder / "train.csv"), *files, "--group_column", "group", *words]

    def check(self, *words: str) -> dict:
        return check.check(check.parse(self.arguments(*words)))

    def found(self, *words: str) -> dict[str, list]:
        """The kinds that have findings, and those."""
        findings = self.check(*words)["findings"]
        return {kind: own["items"] for kind, own in findings.items() if own["count"]}

    def path(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path)


def write(path, samples: np.ndarray, rate: int = 16000, subtype: str | None = None):
    soundfile.write(path, samples, rate, subtype=subtype)


def test_a_data_set_in_order_has_no_findings(tables):
    report = tables.check()
    assert report["errors"] == report["warnings"] == 0
    assert report["splits"]["test"] == {"clips": 6, "seconds": pytest.approx(1.35)}
    assert report["sampling_rates"] == {16000: 18} and report["channels"] == {1: 18}
    assert report["classes"] == {name: {"train": 3, "validation": 3, "test": 3} for name in ("music", "speech")}
    assert list(report["findings"]) == list(check.KINDS)


@pytest.mark.parametrize("name", ["voice_prompts", "instruments"])
def test_the_embedded_data_sets_have_no_errors(name):
    """Allows only warnings of the sounds themselves; test_data.py counts the clips in another way."""
    label, group, rate = {"voice_prompts": ("language", "prompt", 8000), "instruments": ("category", "group", 16000)}[
        name
    ]
    files = {f"{split}_file": str(ROOT / "data" / name / f"{split}.csv") for split in SPLITS}
    report = check.check(DataArguments(**files, label_column=label, group_column=group, sampling_rate=rate))
    found = {kind: own["count"] for kind, own in report["findings"].items() if own["count"]}
    sounds = {"clipped": 13, "dc_offset": 9, "shorter_than_a_frame": 1, "very_short": 2}
    assert found == {"voice_prompts": {}, "instruments": sounds}[name]
    assert sum(own["clips"] for own in report["splits"].values()) == {"voice_prompts": 437, "instruments": 154}[name]


def test_unreadable_clips(tables):
    (tables.folder / "empty.wav").write_bytes(b"")
    (tables.folder / "text.wav").write_text("notes" * 100)
    content = write_tone(tables.folder / "spoiled.flac", seconds=3.0).read_bytes()
    (tables.folder / "spoiled.flac").write_bytes(patched(content, 8000, bytes(8000)))
    samples = tone()
    samples[3:5] = np.nan, np.inf
    write(tables.folder / "nan.wav", samples, subtype="FLOAT")
    for name in ("empty.wav", "text.wav", "spoiled.flac", "nan.wav", "missing.wav"):
        tables.add("test", name)
    found = tables.found()
    assert list(found) == ["unreadable"]
    reasons = {item["clip"]: item["reason"] for item in found["unreadable"]}
    assert reasons.keys() == {
        tables.path(name) for name in ("empty.wav", "text.wav", "spoiled.flac", "nan.wav", "missing.wav")
    }
    assert reasons[tables.path("empty.wav")].startswith("the file is empty")
    assert reasons[tables.path("nan.wav")].startswith("holds 2 NaN or infinite samples")
    assert reasons[tables.path("missing.wav")].startswith("no such file")
    assert {item["split"] for item in found["unreadable"]} == {"test"}


def test_duplicates_across_splits_are_found_by_their_samples(tables):
    """A copy under another name, and the same samples as flac."""
    shutil.copy(tables.path("train_0.wav"), tables.path("copy.wav"))
    samples, rate = soundfile.read(tables.path("train_1.wav"), dtype="int16")
    write(tables.path("as_flac.flac"), samples, rate)
    tables.add("test", "copy.wav")
    tables.add("validation", "as_flac.flac", "speech")
    tables.add("test", "validation_2.wav", group="validation 1")  # the same file in two splits
    found = tables.found()
    assert set(found) == {"duplicates_across_splits", "listed_twice", "groups_across_splits"}
    path = tables.path
    assert found["duplicates_across_splits"] == [
        {"clips": [f"train: {path('train_0.wav')}", f"test: {path('copy.wav')}"], "labels": ["speech"],
         "identical_bytes": True},
        {"clips": [f"train: {path('train_1.wav')}", f"validation: {path('as_flac.flac')}"],
         "labels": ["music", "speech"], "identical_bytes": False},
        {"clips": [f"validation: {path('validation_2.wav')}", f"test: {path('validation_2.wav')}"],
         "labels": ["speech"], "identical_bytes": True},
    ]  # fmt: skip
    assert found["listed_twice"] == [{"clip": path("validation_2.wav"), "validation": 1, "test": 1}]


def test_other_audio_is_no_duplicate(tables):
    """One sample, the rate, the channels or the length: all make it another clip. Digital silence is all alike."""
    samples, rate = soundfile.read(tables.path("train_0.wav"), dtype="int16")
    changed = samples.copy()
    changed[100] += 1
    for name, audio, own_rate in (
        ("changed.wav", changed, rate), ("slower.wav", samples, 8000),
        ("stereo.wav", np.stack([samples, samples], axis=1), rate), ("shorter.wav", samples[:-1], rate),
    ):  # fmt: skip
        write(tables.path(name), audio, own_rate)
        tables.add("test", name)
    for split in SPLITS:
        write(tables.path(f"{split}_silence.wav"), np.zeros(3200))
        tables.add(split, f"{split}_silence.wav")
    assert not {"duplicates_across_splits", "duplicates_within_splits"} & set(tables.found())


def test_duplicates_within_a_split_and_what_is_listed_twice(tables):
    shutil.copy(tables.path("train_0.wav"), tables.path("copy.wav"))
    tables.add("train", "copy.wav")
    tables.add("train", "./train_3.wav", "music")
    found = tables.found()
    assert set(found) == {"duplicates_within_splits", "listed_twice"}
    clips = [item["clips"] for item in found["duplicates_within_splits"]]
    assert clips == [[f"train: {tables.path('train_0.wav')}", f"train: {tables.path('copy.wav')}"]]
    assert found["listed_twice"] == [{"clip": tables.path("train_3.wav"), "train": 2}]


def test_parts_of_a_recording_are_clips_of_their_own(tables):
    """Equal parts are duplicates, others of the same recording are not; a part beyond the end is unreadable."""
    for row in tables.rows:
        row |= {"start": 0.0, "end": ""}
    write_tone(tables.folder / "long.wav", seconds=1.0)
    tables.add("train", "long.wav", group="a", start=0.0, end=0.3)
    tables.add("train", "long.wav", group="a", start=0.3, end=0.6)
    tables.add("test", "long.wav", group="b", start=0.6, end=0.9)
    tables.add("test", "long.wav", group="b", start=1.5, end=2.0)
    tables.add("validation", "long.wav", group="c", start=0.3, end=0.6)
    tables.add("validation", "long.wav", group="c", start=0.7, end=700)
    found = tables.found("--start_column", "start", "--end_column", "end")
    assert set(found) == {"unreadable", "duplicates_across_splits", "listed_twice", "cut_parts"}
    assert found["cut_parts"] == [{"split": "validation", "clip": tables.path("long.wav#t=0.7,700"), "end": 700.0}]
    assert found["unreadable"][0]["clip"] == tables.path("long.wav#t=1.5,2")
    name = tables.path("long.wav#t=0.3,0.6")
    assert found["duplicates_across_splits"][0]["clips"] == [f"train: {name}", f"validation: {name}"]


def test_groups_that_several_splits_share(tables):
    tables.rows[0]["group"] = "test 1"
    assert tables.found() == {"groups_across_splits": [{"group": "test 1", "train": 1, "test": 2}]}
    with pytest.raises(InputError, match="group_column: .* has class folders and no columns; use a table"):
        folder = write_class_folders(tables.folder / "folders", 3)
        check.check(check.parse([str(folder), "--group_column", "speaker"]))


def test_rates_and_channels(tables):
    write_tone(tables.folder / "low.wav", rate=8000, seconds=0.2)
    write_tone(tables.folder / "stereo.wav", channels=2, seconds=0.2)
    tables.add("train", "low.wav")
    tables.add("test", "stereo.wav")
    assert tables.found() == {
        "other_sampling_rate": [{"split": "train", "clip": tables.path("low.wav"), "sampling_rate": 8000}],
        "mixed_sampling_rates": [
            {"sampling_rate": 8000, "clips": 1, "such as": tables.path("low.wav")},
            {"sampling_rate": 16000, "clips": 19, "such as": tables.path("train_0.wav")},
        ],
        "mixed_channels": [
            {"channels": 1, "clips": 19, "such as": tables.path("train_0.wav")},
            {"channels": 2, "clips": 1, "such as": tables.path("stereo.wav")},
        ],
    }
    assert len(tables.found("--sampling_rate", "8000")["other_sampling_rate"]) == 19


def test_headers_that_disagree_with_their_content(tables):
    path = tables.folder / "crashed.wav"
    content = write_tone(path, seconds=1.0, seed=50).read_bytes()
    path.write_bytes(patched(content, 40, bytes(4)))  # the size of the data chunk
    tables.add("train", "crashed.wav")
    remark = "the header gives 0.00 s, the file holds 1.00 s"
    assert tables.found()["header_disagrees"] == [{"split": "train", "clip": str(path), "header": remark}]
    assert tables.check()["splits"]["train"]["seconds"] == pytest.approx(2.35)


def test_levels(tables):
    """Measures silence on the mono clip without its mean: channels that cancel are silent, too."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(3200)
    planted = {
        "digital.wav": np.zeros(3200),
        "offset_only.wav": np.full(3200, 0.25),
        "faint.wav": 10 ** (-61 / 20) * noise / noise.std(),
        "cancelled.wav": np.stack([0.3 * noise, -0.3 * noise], axis=1).clip(-0.9, 0.9),
        "not_quite_silent.wav": 10 ** (-59 / 20) * noise / noise.std(),
        "clipped.wav": (0.5 * noise).clip(-1, 1),
        "normalised.wav": 0.2 * noise / np.abs(noise).max(),
        "offset.wav": 0.1 * noise + 0.1,
    }
    planted["normalised.wav"][:2] = 1.0, -1.0  # peaks that touch full scale do not clip
    for name, samples in planted.items():
        write(tables.path(name), samples)
        tables.add("train", name)
    found = tables.found()
    names = {kind: [item.get("clip", "").rsplit("/", 1)[-1] for item in items] for kind, items in found.items()}
    assert names["silent"] == ["digital.wav", "offset_only.wav", "faint.wav", "cancelled.wav"]
    assert names["clipped"] == ["clipped.wav"] and names["dc_offset"] == ["offset_only.wav", "offset.wav"]
    assert set(found) == {"silent", "clipped", "dc_offset", "mixed_channels"}
    levels = {item["clip"].rsplit("/", 1)[1]: item["level_dbfs"] for item in found["silent"]}
    assert levels["digital.wav"] == check.LOWEST_DBFS and levels["faint.wav"] == pytest.approx(-61, abs=0.05)
    share = np.mean(np.abs(0.5 * noise) >= 32767 / 32768)
    assert found["clipped"][0]["clipped_share"] == pytest.approx(share, abs=1e-4)


def test_lengths(tables):
    for name, seconds in (("tick.wav", 0.0249), ("frame.wav", 0.0251), ("short.wav", 0.021), ("long.wav", 2.5)):
        write_tone(tables.folder / name, seconds=seconds)
        tables.add("train", name)
    assert tables.found() == {
        "shorter_than_a_frame": [
            {"split": "train", "clip": tables.path("tick.wav"), "seconds": pytest.approx(0.0249, abs=1e-4)},
            {"split": "train", "clip": tables.path("short.wav"), "seconds": pytest.approx(0.021, abs=1e-4)},
        ],
        "very_long": [{"split": "train", "clip": tables.path("long.wav"), "seconds": 2.5}],
    }
    for index in range(40):
        write_tone(tables.folder / f"x{index}.wav", seconds=0.3, seed=100 + index)
        tables.add("train", f"x{index}.wav")
    assert [item["clip"] for item in tables.found()["very_short"]] == [tables.path("frame.wav")]


def plant_classes(tables, counts: dict[str, int]):
    """Clips of further classes, in all splits as long as they last."""
    number = 0
    for label, count in counts.items():
        for index in range(count):
            number += 1
            write_tone(tables.folder / f"class_{number}.wav", seconds=0.2, seed=1000 + number)
            tables.add(SPLITS[index % 3], f"class_{number}.wav", label)


def test_classes_that_look_like_slips(tables):
    """In case and spaces, or in a few letters where one is rare; words that are alike and frequent are words."""
    plant_classes(tables, {"Bass drum": 12, "bass_drum": 3, "bass  DRUM": 3, "speach": 1, "tree": 30, "three": 30})
    plant_classes(tables, {"speech": 3, "digit 1": 30, "digit 2": 3})
    found = tables.found()
    assert [(item["class"], item["like"], item["differ in"]) for item in found["similar_classes"]] == [
        ("bass  DRUM", "Bass drum", "case, spaces or underscores"),
        ("bass_drum", "Bass drum", "case, spaces or underscores"),
        ("speach", "speech", "a few letters"),
    ]
    assert found["similar_classes"][2] | {"clips": 1, "clips of that": 12} == found["similar_classes"][2]
    assert found["single_clip_classes"] == [{"class": "speach", "split": "train"}]
    assert found["missing_classes"] == [{"class": "speach", "missing_from": ["validation", "test"], "clips": 1}]


def test_labels_at_which_a_training_stops(tables):
    write_tone(tables.folder / "unknown.wav", seconds=0.2, seed=99)
    tables.add("test", "unknown.wav", "birdsong")
    found = tables.found()
    assert set(found) == {"bad_labels", "single_clip_classes", "missing_classes"}
    assert found["missing_classes"][0]["missing_from"] == ["train", "validation"]
    assert found["bad_labels"][0]["clip"] == tables.path("unknown.wav")
    assert found["bad_labels"][0]["reason"].startswith("label 'birdsong' is not in the label set of the training data")
    (tables.folder / "labels.txt").write_text("birdsong\nmusic\nspeech\n")
    assert "bad_labels" not in tables.found("--label_file", str(tables.folder / "labels.txt"))
    assert len(tables.found("--problem_type", "regression")["bad_labels"]) == 19
    for row in tables.rows:
        row["label"] = "speech"
    assert "a classifier needs at least two classes" in tables.found()["bad_labels"][0]["reason"]


def test_several_labels_count_for_each_class(tables):
    for row in tables.rows:
        row["label"] += ";all"
    report = tables.check("--label_separator", ";")
    assert report["classes"]["all"] == {"train": 6, "validation": 6, "test": 6}
    assert report["errors"] == report["warnings"] == 0


def test_numbers_as_labels_are_no_classes(tables):
    for index, row in enumerate(tables.rows):
        row["label"] = 0.1 * index
    report = tables.check("--problem_type", "regression")
    assert report["classes"] == {} and report["errors"] == report["warnings"] == 0


def test_nothing_is_readable(tables):
    for row in tables.rows:
        (tables.folder / row["file_name"]).write_bytes(b"")
    report = tables.check()
    assert report["errors"] == report["findings"]["unreadable"]["count"] == 18 and report["warnings"] == 0
    check.print_report(report)


def test_clips_stored_as_bytes(tmp_path):
    """Names may repeat; equal samples identify duplicates."""
    rows = [
        {
            "audio": {"path": "a.wav", "bytes": write_tone(tmp_path / "a.wav", seed=seed).read_bytes()},
            "label": f"{seed % 2}",
        }
        for seed in (0, 1, 2, 3, 1)
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "clips.parquet")
    findings = check.check(DataArguments(train_file=str(tmp_path / "clips.parquet")))["findings"]
    assert {kind: own["count"] for kind, own in findings.items() if own["count"]} == {"duplicates_within_splits": 1}
    assert findings["duplicates_within_splits"]["items"] == [
        {"clips": ["train: a.wav (clip 1 of train)", "train: a.wav (clip 4 of train)"], "labels": ["1"],
         "identical_bytes": True}
    ]  # fmt: skip


@pytest.mark.slow
def test_the_program_prints_tables_and_writes_everything(tables, tmp_path):
    """In a fresh process: the first ten of a kind, all of them in the file, the same file every time."""
    for index in range(12):
        tables.add("train", f"missing_{index:02}.wav")
    words = ["-m", "training.check", *tables.arguments("--output", str(tmp_path / "report.json"))]
    process = run_program(*words)
    assert process.returncode == 1 and not process.stderr, process.stderr
    assert "which --on_bad_audio skip leaves out of a training (12)" in process.stdout
    assert "missing_09.wav" in process.stdout and "missing_10.wav" not in process.stdout
    assert "... and 2 more" in process.stdout and "12 errors, 0 warnings" in process.stdout
    written = (tmp_path / "report.json").read_text()
    report = json.loads(written)
    assert report["errors"] == len(report["findings"]["unreadable"]["items"]) == 12
    assert report["sampling_rates"] == {"16000": 18}
    assert not list(tmp_path.glob(".*"))
    assert check.main(tables.arguments("--output", str(tmp_path / "again.json"), "--num_workers", "5")) == 1
    assert (tmp_path / "again.json").read_text() == written


def test_what_all_clips_share_is_one_line(tmp_path, capsys):
    """Also finds energy above 8 kHz in white noise, but not in low tones."""
    rng = np.random.default_rng(0)
    for index in range(4):
        write_tone(tmp_path / "low" / f"{index}.wav", rate=32000, seconds=0.2 + 0.01 * index, hz=300)
        (tmp_path / "noise").mkdir(exist_ok=True)
        write(tmp_path / "noise" / f"{index}.wav", 0.1 * rng.standard_normal(8000), 32000)
    assert check.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "which are resampled whenever read: all 8 (sampling_rate 32000)" in out
    assert "above half of sampling_rate, which the model does not receive (4)" in out
    high = check.check(check.parse([str(tmp_path)]))["findings"]["high_frequencies"]
    assert high["examined"] == 8 and all("noise" in item["clip"] for item in high["items"])
    assert all(item["energy_share"] == pytest.approx(0.5, abs=0.05) for item in high["items"])


@pytest.mark.parametrize(
    ("errors", "warnings", "words"), [(1, 0, "1 error, 0 warnings"), (2, 1, "2 errors, 1 warning")]
)
def test_one_is_no_plural(errors, warnings, words, capsys):
    nothing = {"sampling_rates": {}, "channels": {}, "classes": {}, "findings": {}}
    splits = {"train": {"clips": 1, "seconds": 60}}
    check.print_report({"splits": splits, "errors": errors, "warnings": warnings, **nothing})
    printed = capsys.readouterr().out
    assert printed.startswith("train: 1 clip, 1.0 min\n") and printed.endswith(f"\n{words}\n")


def test_warnings_do_not_fail(tables, capsys):
    write_tone(tables.folder / "low.wav", rate=8000, seconds=0.2)
    tables.add("train", "low.wav")
    assert check.main(tables.arguments()) == 0
    assert "0 errors, 3 warnings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ([], "usage: python -m training.check DATA"),
        (["--output", "x.json"], "data: set either dataset_name or train_file"),
        (["clips", "--lable_column", "x"], "command line: unknown key lable_column; did you mean label_column?"),
        (["clips", "--num_workers", "0"], "num_workers: must be 1 or more, got 0"),
        (["clips", "more_clips"], "command line: unexpected words"),
        (["clips.csv"], "clips.csv: no such file"),
        (["clips", "--output", "nowhere/x.json"], "nowhere/x.json: the folder nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(words, pattern, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check.main(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {pattern}")


def test_data_is_a_folder_or_a_manifest(tmp_path, capsys):
    folder = write_class_folders(tmp_path / "clips", 4)
    assert check.parse([str(folder)]).dataset_name == str(folder)
    assert check.parse([str(tmp_path / "a.csv")]).train_file == str(tmp_path / "a.csv")
    assert check.main([str(folder)]) == 0
    assert "train: 8 clips" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        check.main(["--help"])
    help_text = capsys.readouterr().out
    assert stopped.value.code == 0 and "--num_workers" in help_text and "--group_column" in help_text
    assert "a folder with train.csv" in help_text and "--check_samples" not in help_text
