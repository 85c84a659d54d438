"""Tests training/data/decoded_cache.py: the same bits as decoding, changed files, shared folders, full disks."""

import errno
import os
import pickle
import shutil
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from audio_files import tone, write_tone

from modeling_dual_ssast import DualSSASTFeatureExtractor
from training.base.loading import compute_statistics
from training.data import decoded_cache
from training.data.audio import read_audio
from training.data.augmentation import AugmentationArguments
from training.data.columns import audio_of
from training.data.dataset import ClipDataset, Collator
from training.data.decoded_cache import DecodedCache
from training.data.labels import LabelSet
from training.errors import InputError

LABELS = LabelSet(("high", "low"), "single_label_classification")
ALL = AugmentationArguments(
    frequency_mask_bins=24, time_mask_frames=10, mixup_rate=0.5, noise=True, time_shift_frames=5, gain_db=6.0
)
RATE = 16000


@pytest.fixture
def extractor():
    return DualSSASTFeatureExtractor(max_length=40)  # 0.4 s: most clips are cropped at random


@pytest.fixture
def clips(tmp_path):
    """Clips of several rates, formats and channels, and two segments of one recording."""
    shapes = [
        ("a.wav", 16000, 1, "FLOAT"), ("b.wav", 44100, 2, "PCM_16"), ("c.flac", 8000, 1, "PCM_24"),
        ("d.ogg", 44100, 1, "VORBIS"), ("e.mp3", 22050, 2, None), ("f.wav", 16000, 2, "PCM_16"),
    ]  # fmt: skip
    paths = []
    for seed, (name, rate, channels, subtype) in enumerate(shapes):
        path = tmp_path / "clips" / name
        write_tone(path, subtype, seconds=0.3 + 0.2 * seed, rate=rate, channels=channels, seed=seed, hz=300 + 90 * seed)
        paths.append(str(path))
    rows = {"audio": [*paths, paths[1], paths[1]], "label": ["high", "low"] * 4}
    return datasets.Dataset.from_dict(rows | {"start": [None] * 6 + [0.1, None], "end": [None] * 6 + [0.4, 0.2]})


@pytest.fixture
def cache(tmp_path):
    return DecodedCache(tmp_path / "cache", RATE)


@pytest.fixture
def no_decoding(monkeypatch):
    """Returns a function from whose call on nothing is decoded: a test fails if something is."""

    def stop():
        monkeypatch.setattr(decoded_cache, "read_audio", lambda *args: pytest.fail("a stored clip was decoded"))
        monkeypatch.setattr("training.data.dataset.read_audio", decoded_cache.read_audio)

    return stop


def stored_files(cache: DecodedCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.name != ".lock")


def test_a_clip_has_the_bits_of_its_decoding(clips, cache):
    decoded = cache.open("train", clips)
    assert len(decoded) == len(clips)
    for index, clip in enumerate(clips):
        expected = read_audio(audio_of(clip), RATE)
        assert decoded[index].dtype == expected.dtype == np.float32
        assert decoded[index].tobytes() == expected.tobytes()
        assert not decoded[index].flags.writeable


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("augmentation", [None, AugmentationArguments(), ALL])
def test_batches_are_equal_with_and_without(clips, cache, extractor, augmentation, num_workers, no_decoding):
    windows = (6400, 3200)
    plain = ClipDataset(clips, extractor, LABELS, augmentation, seed=3, windows=windows)
    decoded = cache.open("train", clips)
    stored = ClipDataset(clips, extractor, LABELS, augmentation, seed=3, windows=windows, decoded=decoded)
    batches = []
    for dataset in (plain, stored):
        if dataset is stored:
            no_decoding()
        for epoch in (0, 5):
            dataset.epoch.fill_(epoch)
            loader = torch.utils.data.DataLoader(dataset, 4, collate_fn=Collator(extractor), num_workers=num_workers)
            batches.extend(loader)
    assert len(batches) == 8
    for before, after in zip(batches[:4], batches[4:]):
        assert before.keys() == after.keys()
        for name in before:
            assert torch.equal(before[name], after[name]), name
    if augmentation is not None:  # crops of another epoch are others
        assert not torch.equal(batches[4]["input_values"], batches[6]["input_values"])


def test_statistics_are_equal_with_and_without(clips, cache, extractor, recwarn):
    plain, stored = ClipDataset(clips, extractor, LABELS), ClipDataset(clips, extractor, LABELS)
    stored.decoded = cache.open("train", clips)
    found = [compute_statistics(one.waveforms(), len(one), extractor) for one in (plain, stored)]
    assert (found[0].mean, found[0].std) == (found[1].mean, found[1].std)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_a_second_run_decodes_nothing_and_folds_share(clips, cache, no_decoding, capsys):
    cache.open("train", clips)
    files = stored_files(cache)
    assert [name.partition("-")[0] for name in files] == ["train", "train"]  # samples and index
    capsys.readouterr()
    expected = [read_audio(audio_of(clip), RATE) for clip in clips]
    no_decoding()
    again, rows = DecodedCache(cache.folder, RATE), [5, 2, 7]
    fold = again.open("test", clips.select(rows))
    assert [fold[place].tobytes() for place in range(3)] == [expected[row].tobytes() for row in rows]
    assert stored_files(cache) == files
    size = sum(4 * len(expected[row]) for row in rows) / 1e6
    assert capsys.readouterr().out == f"decoded test clips: 3 in {cache.folder}, {size:.3g} MB, 0 new\n"


def test_what_is_missing_is_added(clips, cache):
    cache.open("train", clips.select([0, 1]))
    decoded = cache.open("train", clips.select([1, 3, 0, 3]))  # one of them twice
    assert len(stored_files(cache)) == 4
    ends = [np.load(cache.folder / name)["ends"] for name in stored_files(cache) if name.endswith(".npz")]
    assert sorted(map(len, ends)) == [1, 2]
    for place, row in enumerate([1, 3, 0, 3]):
        np.testing.assert_array_equal(decoded[place], read_audio(audio_of(clips[row]), RATE))


def test_a_changed_file_is_decoded_again(tmp_path, cache):
    path = write_tone(tmp_path / "a.wav", seed=1)
    clips = datasets.Dataset.from_dict({"audio": [str(path)]})
    before, facts = np.array(cache.open("train", clips)[0]), path.stat()
    write_tone(path, seed=2)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)  # looks unchanged
    after = cache.open("train", clips)[0]
    np.testing.assert_array_equal(after, read_audio(str(path), RATE))
    assert not np.array_equal(before, after)
    other = write_tone(tmp_path / "other.wav", seed=3)
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(other, path)
    np.testing.assert_array_equal(cache.open("train", clips)[0], read_audio(str(path), RATE))


def test_a_key_holds_all_that_decides_the_samples(tmp_path, cache, monkeypatch):
    path = str(write_tone(tmp_path / "a.wav"))
    content = Path(path).read_bytes()
    sources = [
        path, {"path": path, "start": 0.1}, {"path": path, "end": 0.1}, {"path": path, "start": 0.1, "end": 0.2},
        {"bytes": content, "path": "a.wav"}, {"bytes": content + b"\0", "path": "a.wav"},
    ]  # fmt: skip
    keys = [cache.key(source) for source in sources]
    assert len(set(keys)) == len(sources) and set(map(len, keys)) == {32}
    assert cache.key({"path": path, "bytes": None}) == keys[0]
    assert cache.key({"bytes": content, "path": "b.wav"}) == keys[4]  # the name decides nothing
    assert DecodedCache(cache.folder, 8000).key(path) != keys[0]
    monkeypatch.setattr(soundfile, "__libsndfile_version__", "0.0")
    assert DecodedCache(cache.folder, RATE).key(path) != keys[0]
    with pytest.raises(InputError, match="b.wav: cannot be opened"):
        cache.key(str(tmp_path / "b.wav"))


def test_clips_of_a_data_set_as_bytes(tmp_path, cache):
    content = [write_tone(tmp_path / f"{seed}.wav", seed=seed, rate=8000).read_bytes() for seed in (1, 2)]
    audio = [{"bytes": one, "path": None} for one in content]
    clips = datasets.Dataset.from_dict({"audio": audio, "label": ["high", "low"]})
    clips = clips.cast_column("audio", datasets.Audio(decode=False))
    decoded = cache.open("train", clips)
    for index in (0, 1):
        np.testing.assert_array_equal(decoded[index], read_audio({"bytes": content[index]}, RATE))


def test_recordings_with_an_address_are_not_stored(tmp_path, cache, extractor, capsys):
    path = write_tone(tmp_path / "a.wav")
    rows = {"audio": [f"file://{path}", str(path)], "label": ["high", "low"]}
    clips = datasets.Dataset.from_dict(rows)
    decoded = cache.open("train", clips)
    assert decoded[0] is None and len(decoded[1]) == 8000
    assert "1 in" in (said := capsys.readouterr().out) and "; 1 with an address are decoded at each use" in said
    dataset = ClipDataset(clips, extractor, LABELS, decoded=decoded)
    np.testing.assert_array_equal(dataset.waveform(0), dataset.waveform(1))


def test_an_unreadable_clip_stops_and_stores_nothing(tmp_path, cache):
    (tmp_path / "bad.wav").write_bytes(b"RIFF nonsense")
    paths = [str(write_tone(tmp_path / "a.wav")), str(tmp_path / "bad.wav")]
    with pytest.raises(InputError, match="bad.wav: not readable as audio"):
        cache.open("train", datasets.Dataset.from_dict({"audio": paths}))
    assert stored_files(cache) == []


def test_a_disk_without_enough_space(clips, cache, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match="train clips take .* MB, and 0.001 MB are free; free some space, .* leave it"):
        cache.open("train", clips)
    assert stored_files(cache) == []


def test_a_disk_that_gets_full_while_decoding(clips, cache):
    """The system's limit on the size of a file fails like a full disk: a write comes back with an error."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            cache.open("train", clips)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reason = os.strerror(errno.EFBIG)
    assert str(caught.value) == (
        f"{cache.folder}: cannot store the decoded train clips ({reason}); free some space, name another folder as "
        "decoded_cache, or leave it out"
    )
    assert stored_files(cache) == []
    assert cache.open("train", clips)[0] is not None  # once there is space


def test_a_folder_that_is_a_file(clips, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match=r"cache: cannot store the decoded train clips \(.*exists\); free some"):
        DecodedCache(tmp_path / "cache", RATE).open("train", clips)


def test_one_decodes_and_the_others_wait(clips, cache, monkeypatch, capsys):
    began, go_on, decoded = threading.Event(), threading.Event(), []

    def slow(source, rate):
        began.set()
        assert go_on.wait(30)
        decoded.append(source)
        return read_audio(source, rate)

    monkeypatch.setattr(decoded_cache, "read_audio", slow)
    waits = threading.Event()

    class Waiting(DecodedCache):
        def _find(self, keys):
            waits.set()
            return super()._find(keys)

    found = {}
    first = threading.Thread(target=lambda: found.update(first=cache.open("train", clips)))
    second = threading.Thread(target=lambda: found.update(second=Waiting(cache.folder, RATE).open("train", clips)))
    first.start()
    assert began.wait(30)
    second.start()
    assert waits.wait(30)
    second.join(0.5)
    assert second.is_alive()  # the clips are not there yet
    go_on.set()
    first.join(30)
    second.join(30)
    assert len(decoded) == len(clips)
    for index in range(len(clips)):
        np.testing.assert_array_equal(found["first"][index], found["second"][index])
    said = capsys.readouterr().out
    assert said.count("waiting for another process") == said.count(", 8 new\n") == said.count(", 0 new\n") == 1


def test_what_a_killed_process_left_is_removed(clips, cache):
    cache.folder.mkdir()
    left = cache.folder / ".train-0123.99999.unfinished.f32"
    left.write_bytes(b"half")
    (cache.folder / "train-0123.f32").write_bytes(b"samples without an index")
    cache.open("train", clips)
    assert not left.exists()


@pytest.mark.parametrize("damage", ["cut", "missing", "index", "arrays"])
def test_damaged_files_are_refused(clips, cache, damage):
    cache.open("train", clips)
    index, samples = next(cache.folder.glob("*.npz")), next(cache.folder.glob("*.f32"))
    if damage == "cut":
        os.truncate(samples, samples.stat().st_size - 4)
    elif damage == "missing":
        samples.unlink()
    elif damage == "index":
        index.write_bytes(index.read_bytes()[:40])
    else:
        np.savez(index, keys=np.arange(3), ends=np.arange(3))
    wanted = "does not list decoded clips" if damage in ("index", "arrays") else "are missing or cut off; remove both"
    with pytest.raises(InputError, match=wanted):
        cache.open("train", clips)


def test_a_read_only_folder_serves_what_it_holds(clips, cache, no_decoding, monkeypatch):
    cache.open("train", clips)
    monkeypatch.setattr("filelock.FileLock", lambda *args: pytest.fail("locked, which writes"))
    no_decoding()
    assert cache.open("train", clips)[0] is not None


def test_workers_map_the_files_themselves(tmp_path, cache):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(seconds=20), RATE)
    decoded = cache.open("train", datasets.Dataset.from_dict({"audio": [str(path)]}))
    pickled = pickle.dumps(decoded)
    assert len(pickled) < 5000 < decoded[0].nbytes
    np.testing.assert_array_equal(pickle.loads(pickled)[0], decoded[0])
