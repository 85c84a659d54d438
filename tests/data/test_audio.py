"""Tests training/data/audio.py: files that soundfile reads, and one clear line for unreadable ones."""

import io
import os
import re

import datasets
import numpy as np
import pytest
import soundfile
from audio_files import tone, write_tone

from training.data.audio import (
    audio_name,
    audio_seconds,
    check_audio,
    datasets_without_torchcodec,
    is_audio,
    read_audio,
)
from training.data.listing import find_audio_files
from training.errors import InputError

RATE = 16000


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("a.wav", "PCM_16", 16000, 1),
        ("a.wav", "PCM_U8", 16000, 1),
        ("a.wav", "FLOAT", 16000, 1),
        ("a.wav", "DOUBLE", 44100, 2),
        ("a.wav", "PCM_16", 8000, 8),
        ("a.wav", "PCM_24", 192000, 1),
        ("a.flac", None, 22050, 2),
        ("a.ogg", "VORBIS", 16000, 1),
        ("a.opus", "OPUS", 48000, 1),
        ("a.mp3", None, 44100, 2),
    ],
)
def test_every_format_rate_and_channel_count_gives_mono_at_the_wanted_rate(tmp_path, name, subtype, rate, channels):
    path = tmp_path / name
    container = {"format": "OGG"} if name.endswith("opus") else {}
    soundfile.write(path, tone(0.5, rate, channels=channels), rate, subtype=subtype, **container)
    check_audio(str(path))
    samples = read_audio(str(path), RATE)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - RATE // 2) <= RATE * 0.08  # mp3 pads its frames
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(spectrum.argmax() * RATE / len(samples) - 440) < 5


def test_channels_are_averaged(tmp_path):
    samples = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(str(tmp_path / "a.wav"), RATE), 0.125)


@pytest.mark.parametrize("rate", [8000, 16000, 192000])
def test_a_single_sample_is_a_clip(tmp_path, rate):
    path = tmp_path / "one.wav"
    soundfile.write(path, np.array([0.5]), rate, subtype="FLOAT")
    assert len(read_audio(str(path), RATE)) >= 1


def test_bytes_read_like_files(tmp_path):
    path = write_tone(tmp_path / "a.flac")
    source = {"path": "inside.tar/a.flac", "bytes": path.read_bytes()}
    np.testing.assert_array_equal(read_audio(source, RATE), read_audio(str(path), RATE))
    assert audio_name(source) == "inside.tar/a.flac"


def _corrupt(path):
    path.write_bytes(b"RIFF" + bytes(range(200)))


def _truncated(path):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), RATE, format="FLAC")
    path.write_bytes(buffer.getvalue()[:60])


BROKEN = {
    "corrupt": (_corrupt, "not readable as audio .*; convert or remove it"),
    "truncated": (_truncated, "(not readable as audio|holds no samples).*; "),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty; remove it"),
    "no_samples": (lambda path: soundfile.write(path, np.zeros(0), RATE), "holds no samples; remove it"),
    "missing": (lambda path: None, "no such file; correct the path"),
    "a_folder": (lambda path: path.mkdir(), "not readable as audio"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("read", [check_audio, lambda path: read_audio(path, RATE)], ids=["header", "decode"])
def test_what_the_header_tells_is_one_line_with_file_and_remedy(tmp_path, kind, read):
    make, pattern = BROKEN[kind]
    path = tmp_path / f"{kind}.wav"
    make(path)
    with pytest.raises(InputError, match=pattern) as caught:
        read(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_counted(tmp_path, value):
    samples = tone()
    samples[[3, 5]] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=re.escape("a.wav: holds 2 NaN or infinite samples; repair or remove it")):
        read_audio(str(tmp_path / "a.wav"), RATE)


def test_find_audio_files_looks_deep_and_skips_other_files(tmp_path):
    for name in ("b/deep/x.FLAC", "a.wav", "notes.txt", "._a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_audio_files(tmp_path)] == ["a.wav", "b/deep/x.FLAC"]


def test_datasets_builds_audio_columns_without_torchcodec(tmp_path):
    path = str(write_tone(tmp_path / "a.wav"))
    stored = {"path": None, "bytes": (tmp_path / "a.wav").read_bytes()}
    array = {"array": tone(0.1), "sampling_rate": RATE}
    original = datasets.Audio.encode_example
    with datasets_without_torchcodec():
        features = datasets.Features({"audio": datasets.Audio()})
        data = datasets.Dataset.from_dict({"audio": [path, stored, array]}, features=features)
    assert datasets.Audio.encode_example is original
    sources = data.cast_column("audio", datasets.Audio(decode=False))["audio"]
    np.testing.assert_array_equal(read_audio(sources[0], RATE), read_audio(sources[1], RATE))
    np.testing.assert_allclose(read_audio(sources[2], RATE), tone(0.1), atol=1e-7)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_a_part_of_a_recording_is_that_part(tmp_path, extension):
    """What is decoded are the samples of the whole recording; more kinds in test_containers.py."""
    path = str(tmp_path / f"long.{extension}")
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 16000 * 5).astype(np.float32), 16000)
    whole = read_audio(path, 16000)
    part = read_audio({"path": path, "start": 1.5, "end": 3.25}, 16000)
    np.testing.assert_array_equal(part, whole[24000:52000])
    np.testing.assert_array_equal(read_audio({"path": path, "start": None, "end": None}, 16000), whole)
    assert len(read_audio({"path": path, "start": 4.0, "end": None}, 16000)) == len(whole) - 64000
    assert len(read_audio({"path": path, "start": 4.5, "end": 60.0}, 8000)) == pytest.approx(4000, abs=800)
    assert audio_name({"path": "a.wav", "start": 1.5, "end": 3.25}) == "a.wav#t=1.5,3.25"
    # With six digits in all, parts of long recordings had one name, and most were lost from the list of failures.
    assert audio_name({"path": "a.wav", "start": 12345.10, "end": 12345.14}) == "a.wav#t=12345.1,12345.14"


@pytest.mark.parametrize(
    ("times", "pattern"),
    [
        ({"start": 2.0, "end": 1.0}, r"long.wav#t=2,1: a part from 2 to 1 s holds nothing"),
        ({"start": 1.0, "end": None}, r"long.wav#t=1: begins after the recording's end at 0.5 s"),
        ({"start": 0.49998, "end": None}, r"long.wav#t=0.49998: begins after the recording's end at 0.5 s"),
        ({"start": -1.0, "end": 0.2}, "a part from -1 to 0.2 s holds nothing"),
        ({"start": -1.0, "end": None}, r"long.wav#t=-1: a part from -1 s to the end holds nothing; correct its times"),
    ],
)
def test_parts_that_are_none_are_told(tmp_path, times, pattern):
    path = write_tone(tmp_path / "long.wav", seconds=0.5)
    for read in (lambda source: read_audio(source, 16000), check_audio):
        with pytest.raises(InputError, match=pattern):
            read({"path": str(path), **times})


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_named_and_not_opened(tmp_path, kind):
    path = tmp_path / "a.wav"
    if kind == "pipe":
        os.mkfifo(path)  # to open it would wait for a writer
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    assert not is_audio(path)
    for read in (check_audio, lambda path: read_audio(path, RATE)):
        with pytest.raises(InputError, match=f"^{path}: not readable as audio .it is a {kind}, not a file.; name an"):
            read(str(path))


def test_denied_permission_is_named(tmp_path, monkeypatch):
    path = write_tone(tmp_path / "a.wav")
    original = open

    def refusing(name, *words, **settings):
        if name == str(path):
            raise PermissionError(13, "Permission denied")
        return original(name, *words, **settings)

    monkeypatch.setattr("builtins.open", refusing)  # the tests may run as root, who may read anything
    with pytest.raises(InputError, match=f"^{path}: permission denied; change the file's permissions or remove"):
        read_audio(str(path), RATE)
    assert not is_audio(path)


@pytest.mark.parametrize("name", [b"caf\xe9.wav", "\N{SNOWMAN} \n'\".wav".encode(), b"-".ljust(200, b"x") + b".wav"])
def test_any_name_is_read(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write(write_tone(tmp_path / "good.wav").read_bytes())
    path = os.fsdecode(path)
    assert is_audio(path) and audio_seconds(path) == 0.5
    np.testing.assert_array_equal(read_audio(path, RATE), read_audio(str(tmp_path / "good.wav"), RATE))


@pytest.mark.parametrize("extension", ["raw", "au", "snd", "vox", "gsm"])
def test_samples_without_a_header_are_refused(tmp_path, extension):
    """libsndfile would read any text under these names."""
    path = tmp_path / f"a.{extension}"
    path.write_bytes(b"some notes\n" * 50)
    assert not is_audio(path)
    with pytest.raises(InputError, match=f"^{path}: not readable as audio"):
        read_audio(str(path), RATE)


def test_content_counts_not_the_extension(tmp_path):
    path = write_tone(tmp_path / "a.wav")
    for name in ("a.txt", "a", "a.mp3", "a.m4a"):
        (tmp_path / name).write_bytes(path.read_bytes())
        assert is_audio(tmp_path / name)
        np.testing.assert_array_equal(read_audio(str(tmp_path / name), RATE), read_audio(str(path), RATE))


@pytest.mark.parametrize(
    ("scale", "is_read"), [(1.0, True), (32768.0, True), (2.0**31, True), (1e10, False), (3e38, False)]
)
@pytest.mark.parametrize("rate", [RATE, 8000])
def test_samples_beyond_any_recording_are_refused(tmp_path, scale, is_read, rate):
    path = tmp_path / "a.wav"
    soundfile.write(
        path, np.sign(tone(0.2, rate, channels=2)) * scale, rate, subtype="DOUBLE" if scale > 1e9 else "FLOAT"
    )
    if is_read:
        samples = read_audio(str(path), RATE)
        assert np.isfinite(samples).all() and samples.max() > 0.5 * scale
        return
    pattern = (
        f"^{path}: holds samples of {scale:.3g}".replace("+", "[+]") + ", beyond the range of recordings .at most 2.15e"
    )
    with pytest.raises(InputError, match=pattern):
        read_audio(str(path), RATE)


def test_resampling_is_checked(tmp_path, monkeypatch):
    path = write_tone(tmp_path / "a.wav", rate=8000)
    monkeypatch.setattr("soxr.resample", lambda samples, *rates: np.full(3, np.inf, dtype=np.float32))
    with pytest.raises(InputError, match=f"^{path}: holds 3 NaN or infinite samples after resampling; repair or"):
        read_audio(str(path), RATE)
