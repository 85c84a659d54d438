"""Tests training/data/formats.py: the formats of phones and browsers, which PyAV decodes."""

import functools
import io
import sys

import av
import numpy as np
import pytest
import soundfile
from audio_encodings import encoded_by_pyav, length_by_pyav
from audio_files import tone

from training.data.audio import audio_format, audio_seconds, decode_audio, header_remark, is_audio, read_audio
from training.errors import InputError

KINDS = {  # extension -> encoder, container, sampling rate in Hz
    "m4a": ("aac", "ipod", 44100),
    "mp4": ("aac", "mp4", 16000),
    "mov": ("alac", "mov", 44100),
    "3gp": ("libopencore_amrnb", "3gp", 8000),
    "aac": ("aac", "adts", 44100),
    "webm": ("libopus", "webm", 48000),
    "mka": ("libopus", "matroska", 48000),
    "amr": ("libopencore_amrnb", "amr", 8000),
    "wma": ("wmav2", "asf", 44100),
    "ts": ("aac", "mpegts", 44100),
    "flv": ("aac", "flv", 44100),
    "avi": ("mp3", "avi", 44100),
    "wv": ("wavpack", "wv", 44100),
    "tta": ("tta", "tta", 44100),
    "ac3": ("ac3", "ac3", 44100),
    "wav": ("adpcm_g726", "wav", 8000),  # a codec that libsndfile does not know
}


@functools.cache
def encoded(extension: str, seconds: float = 2.0) -> bytes:
    codec, container, rate = KINDS[extension]
    return encoded_by_pyav(tone(seconds, rate), rate, codec, container)


@pytest.mark.parametrize("extension", KINDS)
def test_every_format_is_read_whole_and_in_parts(tmp_path, extension):
    content, rate = encoded(extension), KINDS[extension][2]
    path = tmp_path / f"a.{extension}"
    path.write_bytes(content)
    assert is_audio(path)
    whole, found_rate = decode_audio(str(path))
    assert whole.dtype == np.float32 and whole.shape == (length_by_pyav(content), 1) and found_rate == rate
    assert audio_seconds(str(path)) == len(whole) / rate and header_remark(str(path)) == ""
    assert audio_format(str(path)) == (rate, 1)
    assert abs(audio_seconds(str(path)) - 2.0) < 0.2
    samples = read_audio(str(path), 16000)
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(spectrum.argmax() * 16000 / len(samples) - 440) < 5 and 0.1 < np.abs(samples).max() < 0.6
    np.testing.assert_array_equal(read_audio({"path": "clip", "bytes": content}, 16000), samples)
    rng = np.random.default_rng(0)
    for start in (0.0, *rng.uniform(0, 1.7, 8)):
        part = decode_audio({"path": str(path), "start": start, "end": start + 0.2})[0]
        np.testing.assert_array_equal(part, whole[round(start * rate) : round((start + 0.2) * rate)])


@pytest.mark.parametrize("extension", ["aac", "webm", "wma", "amr", "ts", "wv"])
def test_what_is_left_of_a_cut_file_is_read(extension):
    content = encoded(extension)
    whole = decode_audio({"path": "clip", "bytes": content})[0]
    cut = {"path": "clip", "bytes": content[: len(content) * 2 // 3]}
    part, rate = decode_audio(cut)
    assert 0.3 * len(whole) < len(part) < len(whole) and audio_seconds(cut) == len(part) / rate


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_cut_caf_that_libsndfile_refuses_is_told(share):
    buffer = io.BytesIO()
    samples = 0.1 * np.random.default_rng(0).standard_normal((44100, 2))
    soundfile.write(buffer, samples, 44100, format="CAF", subtype="ALAC_16")
    content = buffer.getvalue()
    cut = {"path": "clip", "bytes": content[: int(len(content) * share)]}
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(io.BytesIO(cut["bytes"]))
    found, rate = decode_audio(cut)
    assert header_remark(cut) == f"the header gives 1.00 s, the file holds {len(found) / rate:.2f} s"
    assert header_remark({"path": "clip", "bytes": content}) == ""


def m4a_with_its_index_first(tmp_path) -> bytes:
    path = tmp_path / "first.m4a"
    with av.open(io.BytesIO(encoded("m4a"))) as source, av.open(path, "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()


def test_a_cut_m4a_is_told(tmp_path):
    content = m4a_with_its_index_first(tmp_path)
    cut = {"path": "clip", "bytes": content[: len(content) // 2]}
    seconds = audio_seconds(cut)
    assert 0.5 < seconds < 1.5
    assert header_remark(cut) == f"the header gives 2.02 s, the file holds {seconds:.2f} s"
    with pytest.raises(InputError, match="^clip: not readable as audio .MPEG-4 file: .*; convert or remove it$"):
        decode_audio({"path": "clip", "bytes": encoded("m4a")[:5000]})  # the index is missing


def test_without_pyav_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for extension in ("m4a", "webm", "aac"):
        path = tmp_path / f"a.{extension}"
        path.write_bytes(encoded(extension))
        assert not is_audio(path)
        with pytest.raises(InputError, match=rf"^{path}: .* needs PyAV: pip install .modeling-dual-ssast\[formats\]"):
            read_audio(str(path), 16000)


def test_a_video_without_sound_and_a_playlist_are_no_audio(tmp_path):
    with av.open(tmp_path / "silent.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode(None))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:2,\na.aac\n#EXT-X-ENDLIST\n")  # would open another file
    (tmp_path / "a.aac").write_bytes(encoded("aac"))
    for name in ("silent.mp4", "list.m3u8"):
        assert not is_audio(tmp_path / name)
        with pytest.raises(InputError, match=f"^{tmp_path / name}: not readable as audio"):
            audio_seconds(str(tmp_path / name))
