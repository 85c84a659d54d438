"""Tests training/data/audio.py: files that soundfile reads, and one clear line for unreadable ones."""

import io
import re

import datasets
import numpy as np
import pytest
import soundfile
from audio_files import tone, write_tone

from training.data.audio import audio_name, check_audio, datasets_without_torchcodec, read_audio
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
    """Nothing else is decoded, and what is decoded are the samples of the whole recording."""
    path = str(tmp_path / f"long.{extension}")
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 16000 * 5).astype(np.float32), 16000)
    whole = read_audio(path, 16000)
    part = read_audio({"path": path, "start": 1.5, "end": 3.25}, 16000)
    # mp3 frames share bits with the ones before; the decoder finds its way back within a few of them.
    tolerance = 2e-2 if extension == "mp3" else 1e-6
    np.testing.assert_allclose(part, whole[24000:52000], atol=tolerance)
    np.testing.assert_array_equal(read_audio({"path": path, "start": None, "end": None}, 16000), whole)
    assert len(read_audio({"path": path, "start": 4.0, "end": None}, 16000)) == len(whole) - 64000
    assert len(read_audio({"path": path, "start": 4.5, "end": 60.0}, 8000)) == pytest.approx(4000, abs=800)
    assert audio_name({"path": "a.wav", "start": 1.5, "end": 3.25}) == "a.wav#t=1.5,3.25"


@pytest.mark.parametrize(
    ("times", "pattern"),
    [
        ({"start": 2.0, "end": 1.0}, r"long.wav#t=2,1: a part from 2 to 1 s holds nothing"),
        ({"start": 1.0, "end": None}, r"long.wav#t=1: begins after the recording's end at 0.5 s"),
        ({"start": -1.0, "end": 0.2}, "a part from -1 to 0.2 s holds nothing"),
    ],
)
def test_parts_that_are_none_are_told(tmp_path, times, pattern):
    path = write_tone(tmp_path / "long.wav", seconds=0.5)
    for read in (lambda source: read_audio(source, 16000), check_audio):
        with pytest.raises(InputError, match=pattern):
            read({"path": str(path), **times})


@pytest.mark.parametrize("read", [check_audio, lambda path: read_audio(path, 16000)])
def test_lengths_that_are_unknown_or_impossible_are_one_line(tmp_path, read):
    """Writes zeros or ones into the 36 bits of total samples of a FLAC file (STREAMINFO)."""
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(1.5), 16000)
    content = bytearray(path.read_bytes())
    content[21], content[22:26] = content[21] & 0xF0, bytes(4)
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.flac: does not tell its length, as if it was written to a pipe"):
        read(str(path))
    content[21], content[22:26] = content[21] | 0x0F, b"\xff" * 4
    path.write_bytes(content)
    if read is not check_audio:  # a header can say that
        with pytest.raises(InputError, match="a.flac: not readable as audio"):
            read(str(path))
