"""Tests what a detector is trained on: its labels, the parts of recordings, and clips whose labels have no times."""

import dataclasses

import numpy as np
import pytest
from annotated_tones import write_annotated_tones
from audio_files import write_tone

from training.data.audio import segment_name
from training.data.events import Event
from training.data.labels import LabelSet
from training.detection.arguments import DetectionDataArguments
from training.detection.recordings import (
    PROBLEM_TYPE,
    Stretch,
    choose_labels,
    encode,
    load_splits,
    load_weak,
    part,
    with_known_labels,
)
from training.errors import InputError

LABELS = LabelSet(("high", "low"), PROBLEM_TYPE)


@pytest.fixture
def weak(tmp_path) -> DetectionDataArguments:
    tones = write_annotated_tones(tmp_path, num_recordings=3, seconds=0.5)
    (tmp_path / "r1.wav").write_bytes(b"no audio")
    (tmp_path / "weak.csv").write_text("file,label\nr0.wav,high|low\nr1.wav,low\nabsent.wav,low\nr2.wav,\n")
    return DetectionDataArguments(
        train_annotations=str(tones), weak_annotations=str(tmp_path / "weak.csv"), label_separator="|"
    )


def test_weak_clips_that_cannot_be_read_stop_the_run_before_its_first_step(weak):
    with pytest.raises(InputError, match=r"r1.wav.* \(and 1 more damaged files\)$"):
        load_weak(weak, LABELS)


def test_weak_clips_that_cannot_be_read_are_left_out_and_named(weak, tmp_path, caplog):
    skips = dataclasses.replace(weak, on_bad_audio="skip")
    found = load_weak(skips, LABELS)
    assert [source.rsplit("/", 1)[1] for source in found.sources] == ["r0.wav", "r2.wav"]
    assert np.array_equal(found.labels, [[1, 1], [0, 0]])
    assert "weak.csv: 2 of 4 clips cannot be read and are left out: " in caplog.text and "r1.wav" in caplog.text
    for name in ("r0.wav", "r2.wav"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="weak.csv: none of its 4 clips can be read, such as .*r0.wav"):
        load_weak(skips, LABELS)


def stretches_of(folder, *names: str, times: tuple = ()) -> list[Stretch]:
    wholes = [Stretch(str(folder / name), name, 0.5, ()) for name in names]
    return [part(whole, *times) for whole in wholes] if times else wholes


@pytest.mark.parametrize("times", [(), (0.4, 0.5)])
def test_weak_clips_of_the_validation_and_test_are_left_out_and_named(weak, tmp_path, caplog, times):
    """By their real paths, also where only a part of a recording is held out."""
    for name in ("r1.wav", "absent.wav"):
        write_tone(tmp_path / name, seconds=0.5)
    (tmp_path / "other.wav").symlink_to(tmp_path / "r0.wav")
    splits = {
        "train": stretches_of(tmp_path, "r2.wav"),
        "validation": stretches_of(tmp_path, "other.wav", times=times),
        "test": stretches_of(tmp_path, "r1.wav", times=times),
    }
    found = load_weak(weak, LABELS, splits)
    assert [source.rsplit("/", 1)[1] for source in found.sources] == ["absent.wav", "r2.wav"]
    (line,) = caplog.messages
    assert "2 of 4 clips are recordings of the validation or test and are left out, such as " in line
    assert line.endswith("r0.wav")
    splits["test"] += stretches_of(tmp_path, "absent.wav", "r2.wav")
    with pytest.raises(InputError, match="weak.csv: all of its 4 clips are recordings of the validation or test, such"):
        load_weak(weak, LABELS, splits)


def test_weak_clips_of_background_have_no_label(weak, tmp_path, caplog):
    (tmp_path / "weak.csv").write_text("file,label\nr0.wav,background\nr2.wav,low|background\n")
    assert np.array_equal(load_weak(weak, LABELS).labels, [[0, 0], [0, 1]])
    assert not caplog.messages


def test_weak_clips_that_are_longer_than_a_crop_are_counted(weak, tmp_path, caplog):
    (tmp_path / "weak.csv").write_text("file,label\nr0.wav,high\nr2.wav,low\n")
    write_tone(tmp_path / "r2.wav", seconds=0.7)
    load_weak(weak, LABELS, crop_s=0.495)  # whole frames of half a second
    (line,) = caplog.messages
    assert "1 of 2 clips are longer than a crop of 0.495 s, such as " in line and "r2.wav: " in line


def test_background_is_no_event(tmp_path, caplog):
    """Events of this label are never found, so a detector that learnt them would have another score afterwards."""
    events = (Event(0.0, 1.0, "owl"), Event(1.0, 2.0, "background"), Event(2.0, 3.0, "bat"))
    splits = {"train": [Stretch("x.wav", "x.wav", 4.0, events)]}
    arguments = DetectionDataArguments(train_annotations="x.csv")
    labels = choose_labels(splits, arguments, None)
    assert labels.names == ("bat", "owl")
    (kept,) = with_known_labels("train", splits["train"], labels)
    assert kept.events == (events[0], events[2])
    (line,) = caplog.messages
    assert "train: 1 events are called background" in line and "rename them with label_map" in line
    (tmp_path / "labels.txt").write_text("owl\nbackground\n")
    with pytest.raises(InputError, match="labels.txt: background stands for no event; leave it out, or rename it"):
        choose_labels(splits, dataclasses.replace(arguments, label_file=str(tmp_path / "labels.txt")), None)


def test_every_event_is_in_a_part_of_its_recording():
    events = tuple(Event(*times, "owl") for times in ((0.0, 0.0), (1.0, 1.0), (0.5, 1.5), (1.2, 1.2), (2.0, 3.0)))
    whole = Stretch("x.wav", "x.wav", 4.0, events)
    parts = [part(whole, *times) for times in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0))]
    times = [[event[:2] for event in one.events] for one in parts]
    assert times == [[(0.0, 0.0), (0.5, 1.0)], [(0.0, 0.0), (0.0, 0.5), (pytest.approx(0.2),) * 2], [(0.0, 1.0)]]


def test_an_event_without_duration_at_the_end_of_a_recording_is_in_the_last_part(tmp_path):
    """And in the crops that end there: it has the last frame."""
    path = write_tone(tmp_path / "x.wav", seconds=4.0)
    whole = Stretch(str(path), "x.wav", 4.0, (Event(4.0, 4.0, "low"),))
    first, last = (part(whole, *times) for times in ((0.0, 2.0), (2.0, 4.0)))
    assert first.events == () and last.events == (Event(2.0, 2.0, "low"),)
    (encoded,) = encode([last], LABELS, 16000)
    assert encoded.num_samples == 32000 and encoded.intervals.tolist() == [[31999, 32000]]


def test_parts_far_from_the_beginning_have_their_own_names():
    """By the names of all clips of a run: `segment_name`."""
    whole = Stretch("x.wav", "x.wav", 2e4, ())
    for times in ((0.0, 1.5), (12345.1, 12345.14)):
        assert part(whole, *times).name == segment_name("x.wav", *times)


def test_recordings_that_are_annotated_in_several_splits_are_told(tmp_path, caplog):
    names = [write_tone(tmp_path / name, seconds=1.0).name for name in ("a.wav", "b.wav", "c.wav")]
    for split, own in {"train": names[:2], "test": names}.items():
        rows = [f"{name},0,0.5,owl" for name in own]
        (tmp_path / f"{split}.csv").write_text("\n".join(["file,onset,offset,label", *rows]))
    tables = {f"{split}_annotations": str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    load_splits(DetectionDataArguments(**tables, validation_fraction=0.0), seed=0)
    (line,) = caplog.messages
    assert line.startswith("2 recordings are annotated in more than one split, such as ") and "a.wav: is that" in line


def test_a_split_by_sites_needs_the_site_of_every_recording(tmp_path):
    names = [write_tone(tmp_path / f"{name}.wav", seconds=1.0).name for name in "abcd"]

    def split_by_site(*sites: str, **keys):
        rows = [f"{name},0,0.5,owl,{site}" for name, site in zip(names, sites)]
        (tmp_path / "t.csv").write_text("\n".join(["file,onset,offset,label,place", *rows]))
        keys = {"train_annotations": str(tmp_path / "t.csv"), "split_by": "site", "site": "place"} | keys
        return load_splits(DetectionDataArguments(**keys), seed=0)

    with pytest.raises(InputError, match=r"t.csv: 1 of 4 annotated .* no site by 'place', such as .*d.wav"):
        split_by_site("pond", "lake", "sea", "")
    split_by_site("pond", "lake", "sea", "", validation_fraction=0.0, test_fraction=0.0)
    with pytest.raises(InputError, match="^site: no table has a column 'plase'"):
        split_by_site("pond", "lake", "sea", "sea", site="plase")
    splits = split_by_site("pond", "lake", "sea", "sea")
    assert sorted(len({one.site for one in own}) for own in splits.values()) == [1, 1, 1]
