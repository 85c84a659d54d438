"""Tests training/data/containers/: a recording is what is in the file, not what its header claims."""

import functools
import io
import re
import struct
import sys

import numpy as np
import pytest
import soundfile
from audio_encodings import encoded_by_pyav, length_by_pyav
from audio_files import encoded, patched
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.audio import audio_seconds, decode_audio, header_remark, is_audio, read_audio
from training.errors import InputError

BLOCK = 1152  # samples of an MP3 frame
ID3 = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
PICTURE = b"ID3\x04\0\0\0\x01\x00\0" + np.random.default_rng(1).bytes(1 << 14)
ID3V1 = b"TAG" + bytes(125)
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8)
JUNK = np.random.default_rng(2).bytes(700)


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Noise of a changing level: a variable bit rate varies."""
    count = round(seconds * rate)
    level = np.abs(np.sin(np.arange(count) / 9000))[:, None]
    samples = (0.2 * level * np.random.default_rng(0).standard_normal((count, channels))).astype(np.float32)
    return samples[:, 0] if channels == 1 else samples


@functools.cache
def mp3(mode: str = "VARIABLE", rate: int = 44100, channels: int = 1, seconds: float = 2.0) -> bytes:
    level = 0.7 if mode == "AVERAGE" else 0.5
    return encoded(
        sound(seconds, rate, channels), rate, "MP3", "MPEG_LAYER_III", bitrate_mode=mode, compression_level=level
    )


@functools.cache
def ogg(subtype: str, rate: int = 16000, seconds: float = 5.0, channels: int = 1) -> bytes:
    return encoded(sound(seconds, rate, channels), rate, "OGG", subtype)


@functools.cache
def pcm(format: str, subtype: str = "PCM_16") -> bytes:
    return encoded(sound(2.0, 16000), 16000, format, subtype)


def decoded(content: bytes, **times) -> np.ndarray:
    return decode_audio({"path": "clip", "bytes": content, **times})[0]


def remark(content: bytes) -> str:
    return header_remark({"path": "clip", "bytes": content})


def assert_length(content: bytes, right: float, tolerance: float = 0):
    """The same length by decoding and by looking."""
    samples, rate = decode_audio({"path": "clip", "bytes": content})
    assert abs(len(samples) - right) <= tolerance, (len(samples), right)
    assert audio_seconds({"path": "clip", "bytes": content}) == len(samples) / rate


def xing(content: bytes) -> int:
    """The place of the number of frames in the first frame."""
    return max(content[:200].find(b"Xing"), content[:200].find(b"Info")) + 8


def without_xing(content: bytes) -> bytes:
    return content[content.index(content[:2], 4) :]


MP3_DAMAGES = {
    "as it is": lambda content: content,
    "no count": without_xing,
    "count of zero": lambda content: patched(content, xing(content), bytes(4)),
    "half the count": lambda content: patched(content, xing(content), struct.pack(">I", 40)),
    "huge count": lambda content: patched(content, xing(content), b"\xff" * 4),
    "two joined": lambda content: content + content,
    "three joined with tags": lambda content: 2 * (content + ID3V1 + ID3) + content,
    "pictures between": lambda content: PICTURE + content + APE + PICTURE + content,
    "cut": lambda content: content[: len(content) * 2 // 5],
    "junk before": lambda content: JUNK + content,
    "zeros before": lambda content: bytes(3000) + content,
    "a line of text before": lambda content: b"HTTP/1.0 200 OK\r\n\r\n" + without_xing(content),
}
MP3_KINDS = [("VARIABLE", 44100, 1), ("CONSTANT", 48000, 2), ("AVERAGE", 22050, 1), ("VARIABLE", 8000, 1)]


@pytest.mark.parametrize("kind", MP3_KINDS, ids=str)
@pytest.mark.parametrize("damage", MP3_DAMAGES)
def test_mp3_is_as_long_as_its_frames(damage, kind):
    content = MP3_DAMAGES[damage](mp3(*kind))
    if damage in ("half the count", "huge count", "count of zero"):  # PyAV believes them
        assert_length(content, length_by_pyav(mp3(*kind)), BLOCK + 529)
    else:
        assert_length(content, length_by_pyav(content, "mp3"), BLOCK)


@pytest.mark.parametrize("kind", MP3_KINDS, ids=str)
def test_mp3_in_order_is_read_as_by_libsndfile(tmp_path, kind):
    """Also without a number of frames, as libsndfile reads a file by its name."""
    for content in (mp3(*kind), ID3 + mp3(*kind), without_xing(mp3(*kind, seconds=1.0))):
        (tmp_path / "a.mp3").write_bytes(content)
        with soundfile.SoundFile(tmp_path / "a.mp3") as file:
            expected = file.read(dtype="float32", always_2d=True)
        found = decode_audio(str(tmp_path / "a.mp3"))[0]
        if content[: len(ID3)] == ID3 or xing(content) > 8:
            np.testing.assert_array_equal(found, expected)
        else:  # libsndfile guesses where it ends
            shared = min(len(found), len(expected))
            np.testing.assert_array_equal(found[:shared], expected[:shared])


def free_format() -> bytes:
    """Layer III without sound: header of bit rate 0, side information, and a size of no standard rate."""
    frame = b"\xff\xfb\x00\xc4".ljust(500, b"\0")
    return frame * 100


def test_other_mpeg_files_are_as_long_as_their_frames():
    assert_length(free_format(), 100 * BLOCK)
    layer_two = encoded_by_pyav(sound(2.0, 44100), 44100, "mp2", "mp2")
    assert_length(layer_two, length_by_pyav(layer_two))
    in_wav = encoded_by_pyav(sound(2.0, 44100), 44100, "mp3", "wav")
    assert_length(in_wav, length_by_pyav(in_wav), BLOCK)
    # A count in the form of Fraunhofer's encoder, which libsndfile does not know.
    vbri = b"\xff\xfb\x90\xc4" + bytes(32) + b"VBRI" + bytes(10) + struct.pack(">I", 7)
    content = vbri.ljust(417, b"\0") + without_xing(mp3())
    assert_length(content, length_by_pyav(without_xing(mp3()), "mp3"), BLOCK)
    assert remark(content).startswith("the header gives 0.18 s, the file holds 2.0")


def test_parts_of_another_kind_are_converted_to_the_first():
    content = mp3() + mp3(rate=22050, channels=2)
    assert_length(content, 4 * 44100, 4 * BLOCK)
    assert "44100 Hz, 1 channels; 22050 Hz, 2 channels), all are converted to the first" in remark(content)
    chained = ogg("VORBIS", 44100, 1.0) + ogg("VORBIS", 16000, 2.0, 2)
    assert_length(chained, 3 * 44100)
    np.testing.assert_array_equal(decoded(chained, start=1.5, end=2.0), decoded(chained)[66150:88200])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_all_links_of_a_chained_ogg_are_read(subtype):
    one, two = ogg(subtype), ogg(subtype, seconds=1.5)
    assert_length(one, 80000)
    assert_length(one + two + one, 80000 * 2 + 24000)
    assert_length(one + JUNK + two, 104000)
    assert_length(JUNK + one, 80000)
    assert_length(ID3 + one, 80000)
    assert remark(one + two) == ""  # a chain is no fault
    np.testing.assert_array_equal(decoded(one + two), np.concatenate([decoded(one), decoded(two)]))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_what_is_left_of_a_cut_ogg_is_read(subtype):
    whole = ogg(subtype)
    for share in (0.4, 0.7, 0.95):
        cut = whole[: int(len(whole) * share)]
        rate = 48000 if subtype == "OPUS" else 16000  # in which PyAV counts
        assert_length(cut, length_by_pyav(cut) * 16000 / rate)
        samples = decoded(cut)
        np.testing.assert_allclose(samples, decoded(whole)[: len(samples)], atol=1e-6)
        assert remark(cut) == f"the file is cut off after {len(samples) / 16000:.2f} s"
    with pytest.raises(InputError, match="clip: not readable as audio .the file is cut off before its first samples"):
        decoded(whole[: len(whole) // 8])


def size_of(content: bytes, name: bytes, format: str) -> tuple[int, int]:
    """The place and the value of the size of a chunk."""
    place = content.index(name) + len(name)
    return place, struct.unpack_from(format, content, place)[0]


PCM_SUBTYPES = ("PCM_16", "PCM_24", "FLOAT", "ULAW", "GSM610", "IMA_ADPCM", "MS_ADPCM", "G721_32", "NMS_ADPCM_16")


@pytest.mark.parametrize("subtype", PCM_SUBTYPES)
def test_wav_files_of_crashed_recorders_are_read(subtype):
    whole = pcm("WAV", subtype)
    place, size = size_of(whole, b"data", "<I")
    right, tolerance = len(decoded(whole)), 2100  # samples of a block of MS ADPCM
    for claim in (0, size // 2, 2 * size, 0xFFFFFFFF):
        for riff in (whole[4:8], bytes(4), b"\xff" * 4):
            assert_length(patched(patched(whole, place, struct.pack("<I", claim)), 4, riff), right, tolerance)
    assert_length(whole[: place + 4 + size // 3], right / 3, tolerance)
    assert_length(whole[:12] + b"LIST\5\0\0\0abcde" + whole[12:], right)  # without the byte that pads
    # What follows the samples is no sound.
    for tail in (b"LIST\x64\0\0\0INFO" + bytes(96), ID3V1, bytes(4000)):
        assert_length(whole + tail, right)
    assert_length(whole + whole, 2 * right)


def test_any_number_of_joined_wav_files_is_read():
    one = encoded(sound(0.001, 16000), 16000, "WAV")
    number = sys.getrecursionlimit() + 1
    assert_length(one * number, 16 * number)


@pytest.mark.parametrize(("format", "name", "size_format"), [("RF64", b"ds64", "<Q"), ("CAF", b"data", ">Q")])
def test_sizes_of_64_bits(format, name, size_format):
    whole = pcm(format)
    place = whole.index(name) + (16 if name == b"ds64" else 4)
    for claim in (0, 24000, 640000, 2**64 - 1):
        assert_length(patched(whole, place, struct.pack(size_format, claim)), 32000, 2)
    assert_length(whole[: len(whole) // 2], 16000, 2100)


def test_aiff_and_au_of_unknown_or_wrong_size():
    whole = pcm("AIFF")
    place, size = size_of(whole, b"SSND", ">I")
    frames = whole.index(b"COMM") + 10
    for claim in (0, 8, size // 2, 2 * size, 0xFFFFFFFF):
        broken = patched(whole, place, struct.pack(">I", claim))
        assert_length(broken, 32000)
        assert_length(patched(broken, frames, bytes(4)), 32000)
    for order in ("BIG", "LITTLE"):
        buffer = io.BytesIO()
        soundfile.write(buffer, sound(2.0, 16000), 16000, format="AU", endian=order)
        for claim in (0, 30000, 200000, 0xFFFFFFFF):
            value = struct.pack(">I" if order == "BIG" else "<I", claim)
            assert_length(patched(buffer.getvalue(), 8, value), 32000)


def flac_with_total(content: bytes, total: int) -> bytes:
    """Writes the 36 bits of the number of samples (STREAMINFO)."""
    return patched(content, 21, bytes([content[21] & 0xF0 | total >> 32]) + struct.pack(">I", total & 0xFFFFFFFF))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_is_as_long_as_its_last_frame_says(subtype):
    whole = pcm("FLAC", subtype)
    for total in (0, 1000, 64000, 2**36 - 1):
        assert_length(flac_with_total(whole, total), 32000)
    np.testing.assert_array_equal(decoded(flac_with_total(whole, 0)), decoded(whole))
    assert remark(flac_with_total(whole, 0)) == ""  # it says that it does not know
    assert remark(flac_with_total(whole, 1000)) == "the header gives 0.06 s, the file holds 2.00 s"
    for content in (ID3 + whole, JUNK + whole, whole + ID3V1, whole + JUNK * 5, whole + bytes(20000)):
        assert_length(content, 32000)
    assert_length(whole + whole, 64000)
    assert_length(whole + encoded(sound(0.5, 16000), 16000, "FLAC", subtype), 40000)
    for total in (0, 32000):
        cut = flac_with_total(whole, total)[: len(whole) // 2]
        assert_length(cut, length_by_pyav(cut, "flac"), 4608)


REMARKS = {
    "mp3 count": (lambda: patched(mp3(), xing(mp3()), struct.pack(">I", 20)), "gives 0.52 s, the file holds 2.0"),
    "mp3 joined": (lambda: mp3() + mp3(), "gives 2.0. s, the file holds 4.0"),
    "wav": (lambda: patched(pcm("WAV"), size_of(pcm("WAV"), b"data", "<I")[0], bytes(4)), "gives 0.00 s, .* 2.00 s"),
    "wav cut": (lambda: pcm("WAV")[:32000], "gives 2.00 s, the file holds 1.00 s"),
    "flac joined": (lambda: pcm("FLAC") * 2, "gives 2.00 s, the file holds 4.00 s"),
}


@pytest.mark.parametrize("kind", REMARKS)
def test_disagreement_is_one_warning_with_both_lengths(tmp_path, warnings, kind):
    make, pattern = REMARKS[kind]
    path = tmp_path / "a.wav"
    path.write_bytes(make())
    for _ in range(2):
        audio_seconds(str(path))
        read_audio(str(path), 16000)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{path}: ") and warnings[0].endswith("; what it holds is read")
    assert re.search(pattern, warnings[0])


def test_files_in_order_have_no_remark():
    for content in (
        mp3(),
        ogg("VORBIS"),
        ogg("OPUS"),
        *(pcm(format) for format in ("WAV", "AIFF", "AU", "CAF", "W64")),
    ):
        assert remark(content) == ""


SEGMENTED = {
    **{f"mp3 {kind}": functools.partial(mp3, *kind, seconds=8.0) for kind in MP3_KINDS},
    "mp3 joined": lambda: mp3(seconds=4.0) + PICTURE + mp3(seconds=4.0),
    "mp3 without count": lambda: without_xing(mp3(rate=22050, seconds=8.0)),
    "vorbis": lambda: ogg("VORBIS", 44100, 8.0, 2),
    "vorbis chained": lambda: ogg("VORBIS", 16000, 5.0) * 2,
    "opus": lambda: ogg("OPUS", 48000, 12.0),
    "flac without count": lambda: flac_with_total(pcm("FLAC"), 0),
    "alac": lambda: encoded(sound(2.0, 16000), 16000, "CAF", "ALAC_16"),
    **{
        subtype: functools.partial(pcm, "WAV", subtype) for subtype in ("GSM610", "G721_32", "NMS_ADPCM_32", "MS_ADPCM")
    },
    "XI": lambda: encoded(sound(2.0, 44100), 44100, "XI", "DPCM_16"),
}


@pytest.mark.parametrize("kind", SEGMENTED)
def test_segments_are_slices_of_the_whole(kind):
    """To the last bit: also where libsndfile seeks to wrong places (Vorbis) or forgets bits of earlier frames (MP3)."""
    content = SEGMENTED[kind]()
    whole, rate = decode_audio({"path": "clip", "bytes": content})
    rng = np.random.default_rng(0)
    for start in [0.0, *rng.uniform(0, len(whole) / rate - 0.02, 30)]:
        end = start + rng.uniform(0.01, 0.3)
        expected = whole[round(start * rate) : round(end * rate)]
        np.testing.assert_array_equal(decoded(content, start=start, end=end), expected)


def test_headers_that_claim_more_than_the_bytes_can_hold_are_refused(tmp_path):
    claims = flac_with_total(pcm("FLAC"), 2**36 - 1)[:100]
    for content in (
        claims,
        patched(pcm("WAV"), 24, struct.pack("<I", 3)),
        patched(pcm("WAV"), 24, b"\xff\xff\xff\x7f"),
    ):
        with pytest.raises(InputError, match="^clip: .*; (convert|remove)[^\n]*$"):
            decoded(content)
    with pytest.raises(InputError, match="a sampling rate of 3 Hz, not 500 to 20000000 Hz"):
        decoded(patched(pcm("WAV"), 24, struct.pack("<I", 3)))


def test_text_and_chance_are_no_audio(tmp_path):
    rng = np.random.default_rng(0)
    for number, content in enumerate(
        [b"hello\n" * 1000, b"\xff" * 5000, rng.bytes(300_000), b"RIFF", bytes(5000), b""]
    ):
        path = tmp_path / f"{number}.mp3"
        path.write_bytes(content)
        assert not is_audio(path)
        with pytest.raises(InputError, match="^((?!resource fork).)*$"):  # libsndfile's last guess says nothing
            audio_seconds(str(path))


PIECES = [mp3(), without_xing(mp3()), ID3, PICTURE, ID3V1, mp3("CONSTANT")[:4000]]


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(range(len(PIECES))), min_size=1, max_size=6), st.integers(0, 500))
def test_any_joined_mp3_is_as_long_as_by_a_second_decoder(numbers, cut):
    content = b"".join(PIECES[number] for number in numbers)
    content = content[: len(content) - cut]
    try:
        expected = length_by_pyav(content, "mp3")
    except Exception:  # PyAV stops at what stands between
        return
    if not expected:
        return
    breaks = 1 + sum(number in (2, 3, 4, 5) for number in numbers)  # PyAV loses a frame or two at each
    assert_length(content, expected, 2 * BLOCK * breaks)
