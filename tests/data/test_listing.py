"""Tests training/data/listing.py: every file of a folder is a clip or is left out with a reason, in every program."""

import inspect
import io
import os
import shutil
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from audio_files import num_left_out, tone, write_class_folders, write_tone

from training import check
from training.base.outputs import written_alone
from training.data import listing as listing_module
from training.data.audio import read_audio
from training.data.listing import COMPANION_EXTENSIONS, find_audio_files, list_audio_files
from training.data.unlabelled_sources import UnlabelledSource, open_source
from training.errors import InputError
from training.inference.inputs import open_inputs

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
WAV = io.BytesIO()
soundfile.write(WAV, tone(0.05), 16000, format="WAV")
WAV = WAV.getvalue()


def put(path, content: bytes = WAV):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(listing) -> list[str]:
    return [path.relative_to(listing.folder).as_posix() for path in listing.files]


def reasons(listing) -> dict[str, str]:
    return {path.relative_to(listing.folder).as_posix(): reason for path, reason in listing.left_out.items()}


def files_there(folder) -> int:
    """Counts all files by another way than the listing: without links to folders."""
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.parametrize(
    "folder",
    [
        *(
            ".git/annex/objects/a",
            ".Trash-1000/files",
            ".ipynb_checkpoints",
            ".cache",
            ".Spotlight-V100",
            ".AppleDouble",
        ),
        *("$RECYCLE.BIN/S-1-5", "$Recycle.Bin", "@eaDir", "@EADIR/x", "__MACOSX/dog", "System Volume Information"),
        *("lost+found", "#recycle", "#snapshot", "__pycache__", "dog/.hidden", "dog/deep/@eaDir", "dog/__MACOSX"),
    ],
)
def test_hidden_and_service_folders_are_not_entered(tmp_path, folder):
    put(tmp_path / "dog" / "a.wav")
    put(tmp_path / folder / "b.wav")
    put(tmp_path / folder / "deep" / "c.wav")
    found = list_audio_files(tmp_path)
    assert names(found) == ["dog/a.wav"] and not found.report()
    assert len(found.left_out) == 1 and set(found.left_out.values()) == {listing_module.HIDDEN}
    assert num_left_out(found) == 2 and files_there(tmp_path) == 3


@pytest.mark.parametrize("name", ["._a.wav", ".a.wav", "Thumbs.db", "desktop.ini", ".DS_Store", "Icon\r"])
def test_hidden_and_service_files_are_no_clips(tmp_path, name):
    put(tmp_path / "dog" / name)
    assert names(list_audio_files(tmp_path)) == [] and num_left_out(list_audio_files(tmp_path)) == 1


def test_a_hidden_root_is_listed(tmp_path):
    put(tmp_path / ".cache" / "mine" / "a.wav")
    assert names(list_audio_files(tmp_path / ".cache" / "mine")) == ["a.wav"]


UNUSUAL = {
    "aifc": "AIFF", "snd": "AU", "wave": "WAV", "bwf": "WAV", "mpga": "MP3", "mp2": "MP3", "voc": "VOC",
    "sph": "NIST", "nist": "NIST", "rf64": "RF64", "w64": "W64", "avr": "AVR", "htk": "HTK", "sf": "IRCAM",
    "paf": "PAF", "pvf": "PVF", "iff": "SVX", "sds": "SDS", "xi": "XI", "mat": "MAT5", "wve": "WVE", "caf": "CAF",
    "xyz": "WAV", "WAV": "WAV", "AiF": "AIFF", "SPH": "NIST", "2024-05-01": "FLAC", "wav_": "OGG",
}  # fmt: skip


@pytest.mark.parametrize(("extension", "kind"), UNUSUAL.items())
def test_what_soundfile_reads_is_a_clip_under_any_extension(tmp_path, extension, kind):
    with open(tmp_path / f"a.{extension}", "wb") as file:
        soundfile.write(file, tone(0.2), 8000 if kind == "WVE" else 16000, format=kind)
    assert names(list_audio_files(tmp_path)) == [f"a.{extension}"]


@pytest.mark.parametrize(
    "name", ["clip", "mp3_in.wav", "wav_in.mp3", "UPPER.WAV", "a b.wav", "zeile\nnew.wav", "Übung.wav"]
)
def test_odd_names_are_clips(tmp_path, name):
    soundfile.write(tmp_path / "x.mp3", tone(0.2), 16000)
    put(tmp_path / name, (tmp_path / "x.mp3").read_bytes() if name.startswith("mp3") else WAV)
    (tmp_path / "x.mp3").unlink()
    assert names(list_audio_files(tmp_path)) == [name]
    assert len(read_audio(str(tmp_path / name), 16000)) > 100


TEXT = b"speaker\tsentence\n" + 'Ein Übungssatz, 12" lang\n'.encode() * 200


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, TEXT) for name in ("README", "a.txt", "a.unknown", "LICENSE", "a.TextGrid", "a.wav.lab", "a.csv")),
        *(("a.unknown", TEXT.decode().encode(code)) for code in ("utf-16", "utf-8-sig", "latin-1")),
        *(("a.unknown", content) for content in (b"", b"\n", "é".encode() * 300)),
        *((f"a{extension}", WAV) for extension in (".png", ".npy", ".safetensors", ".pt", ".parquet", ".json")),
    ],
)
def test_companions_are_counted_in_silence(tmp_path, name, content):
    put(tmp_path / "dog" / "a.wav")
    put(tmp_path / "dog" / name, content)
    found = list_audio_files(tmp_path)
    assert reasons(found) == {f"dog/{name}": listing_module.COMPANION} and not found.report()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.m4a", b"\0\0\0\x20ftypM4A ", "1 .m4a file in dog is not readable"),
        ("a.WMA", b"no audio at all" * 9, "1 .wma file in dog is not readable"),
        ("a.raw", bytes(3200), "1 .raw file in dog is not readable"),
        ("a.vox", TEXT, "1 .vox file in dog is not readable"),
        ("a.gsm", TEXT, "1 .gsm file in dog is not readable"),
        ("a.snd", TEXT, "1 .snd file in dog is not readable"),
        ("a.zip", b"PK\3\4", "1 .zip file in dog is an archive: unpack it"),
        ("a.unknown", bytes(range(256)) * 9, "1 .unknown file in dog is not readable as audio: convert or remove it"),
        ("noise", bytes(range(256)) * 9, "1 file without extension in dog is not readable as audio"),
        (
            "a.wav.part",
            WAV,
            "1 .part file in dog is not a clip, because another extension follows: rename",
        ),
        ("a.WAV.bak", WAV, "1 .bak file in dog is not a clip, because"),
        ("a.wav~", WAV, "1 .wav~ file in dog is not a clip"),
    ],
)
def test_what_could_be_a_clip_is_told(tmp_path, name, content, line):
    put(tmp_path / "dog" / "a.wav")
    put(tmp_path / "dog" / name, content)
    found = list_audio_files(tmp_path)
    assert names(found) == ["dog/a.wav"] and list(reasons(found)) == [f"dog/{name}"]
    (told,) = found.report()
    assert told.startswith(line)


def test_a_wave_that_was_saved_twice_is_a_clip(tmp_path):
    put(tmp_path / "a.wav.wav")
    put(tmp_path / "b.mp3.aifc")
    assert len(list_audio_files(tmp_path).files) == 2


def test_the_remedy_is_the_missing_package(tmp_path, monkeypatch):
    for index in range(5):
        put(tmp_path / "bird" / f"{index}.m4a", b"\0\0\0\x20ftypM4A ")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(listing_module, "_has_formats", lambda: False)
    assert list_audio_files(tmp_path).report() == [
        "5 .m4a files in bird are not readable: convert them, or install PyAV with "
        'pip install "modeling-dual-ssast[formats]"'
    ]


def test_a_report_is_short(tmp_path):
    for index in range(20):
        put(tmp_path / f"class_{index % 5}" / f"{index}.m4a", b"x")
        put(tmp_path / "many" / f"a.x{index}", bytes(range(256)))
    lines = list_audio_files(tmp_path).report()
    assert lines[0].startswith("20 .m4a files in class_0, class_1, class_2 and 2 more folders are not readable")
    assert len(lines) == listing_module.MOST_LINES + 1 and lines[-1] == "files of 13 more kinds are left out"


def test_links_are_followed_but_not_in_circles(tmp_path):
    elsewhere = put(tmp_path / "elsewhere" / "owl" / "deep" / "a.wav").parents[1]
    root = tmp_path / "data"
    put(root / "dog" / "a.wav")
    (root / "owl").symlink_to(elsewhere)
    (root / "again").symlink_to(root / "owl")  # a link to a link
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "self").symlink_to("self")
    (elsewhere / "back").symlink_to(root)
    (root / "dog" / "b.wav").symlink_to(elsewhere / "deep" / "a.wav")
    (root / "dog" / "gone.wav").symlink_to("/nowhere/x.wav")
    found = list_audio_files(root)
    assert names(found) == ["again/deep/a.wav", "dog/a.wav", "dog/b.wav", "owl/deep/a.wav"]
    assert reasons(found) == {
        "again/back": listing_module.CIRCLE,
        "dog/gone.wav": listing_module.DANGLING,
        "dog/loop": listing_module.CIRCLE,
        "dog/self": listing_module.CIRCLE,
        "owl/back": listing_module.CIRCLE,
    }
    assert "3 folders (again/back, dog/loop, owl/back) are links in a circle: remove them" in found.report()


def test_folders_that_link_to_each_other_end(tmp_path):
    """There are 1,956 ways through the orders of 6 folders."""
    for one in range(6):
        put(tmp_path / f"{one}" / "a.wav")
        for two in range(6):
            (tmp_path / f"{one}" / f"to_{two}").symlink_to(tmp_path / f"{two}")
    found = list_audio_files(tmp_path)
    assert {f"{one}/a.wav" for one in range(6)} <= set(names(found))
    assert len(found.files) < 6**3


def test_links_of_git_annex(tmp_path):
    (tmp_path / "dog").mkdir()
    for index in range(6):
        key = f"SHA256E-s1--{index}.wav"
        (tmp_path / "dog" / f"{index}.wav").symlink_to(f"../.git/annex/objects/xx/yy/{key}/{key}")
    assert list_audio_files(tmp_path).report() == ["6 .wav files in dog are links to nothing (git-annex: datalad get)"]
    for index in range(6):
        put(tmp_path / "dog" / os.readlink(tmp_path / "dog" / f"{index}.wav"))
    found = list_audio_files(tmp_path)
    assert len(found.files) == 6 and num_left_out(found) == 6 and not found.report()


def test_pipes_and_sockets_are_not_opened(tmp_path, monkeypatch):
    put(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe.m4a").symlink_to("pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.wav")
        found = list_audio_files(tmp_path)
    assert names(found) == ["a.wav"]
    assert set(found.left_out.values()) == {listing_module.NOT_A_FILE} and len(found.left_out) == 4


def test_names_that_are_not_utf8_are_told(tmp_path):
    put(tmp_path / "dog" / "a.wav")
    for name in (b"caf\xe9.wav", b"\xff.wav", b"notes\xe9.txt"):
        shutil.copy(tmp_path / "dog" / "a.wav", os.fsencode(tmp_path / "dog") + b"/" + name)
    os.mkdir(os.fsencode(tmp_path) + b"/v\xf6gel")
    shutil.copy(tmp_path / "dog" / "a.wav", os.fsencode(tmp_path) + b"/v\xf6gel/b.wav")
    found = list_audio_files(tmp_path)
    assert names(found) == ["dog/a.wav"]
    assert num_left_out(found) == 4 and set(found.left_out.values()) == {"its name is not UTF-8; rename it"}
    assert found.report()[0] == "1 .txt file in dog is left out: its name is not UTF-8; rename it"
    assert "1 folder (v\\udcf6gel) is left out: its name is not UTF-8; rename it" in found.report()
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/v\xf6gel")
    assert (
        "its name is not UTF-8" in list_audio_files(broken).report()[0] and num_left_out(list_audio_files(broken)) == 1
    )


@pytest.mark.skipif(IS_ROOT, reason="root may read everything")
def test_what_may_not_be_read_is_told(tmp_path):
    put(tmp_path / "dog" / "a.wav")
    put(tmp_path / "cat" / "a.unknown").chmod(0)
    put(tmp_path / "owl" / "a.wav").parent.chmod(0)
    try:
        found = list_audio_files(tmp_path)
    finally:
        (tmp_path / "owl").chmod(0o700)
    assert names(found) == ["dog/a.wav"]
    assert reasons(found) == dict.fromkeys(
        ("cat/a.unknown", "owl"), "not readable (permission denied): check it, or remove it"
    )


def test_a_folder_that_cannot_be_opened_does_not_end_the_others(tmp_path, monkeypatch):
    """The same without depending on who runs the test."""
    put(tmp_path / "dog" / "a.wav")
    put(tmp_path / "owl" / "a.wav")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "owl":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list_audio_files(tmp_path)
    assert names(found) == ["dog/a.wav"]
    assert found.report() == ["1 folder (owl) is not readable (permission denied): check it, or remove it"]


def test_folders_deeper_than_the_limit_of_recursion_are_listed(tmp_path):
    put(tmp_path.joinpath(*["d"] * 300, "a.wav"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        found = list_audio_files(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert len(found.files) == 1


def test_files_found_and_files_reported_are_all_files(tmp_path):
    rng = np.random.default_rng(0)
    parts = ["dog", "cat", ".git", "@eaDir", "deep", "train"]
    ends = ["a.wav", "b.m4a", "c.txt", ".d.wav", "e", "f.zip", "g.raw", "h.xyz", "Thumbs.db"]
    for _ in range(150):
        folder = tmp_path.joinpath(*rng.choice(parts, rng.integers(0, 4)))
        put(folder / rng.choice(ends), rng.choice([WAV, TEXT, b""]))
    found = list_audio_files(tmp_path)
    assert len(found.files) + num_left_out(found) == files_there(tmp_path)
    assert list_audio_files(tmp_path) == found
    assert found.files == sorted(found.files) and all(not path.exists() or path.is_file() for path in found.files)


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_no_folder_is_an_answer(tmp_path, kind):
    if kind == "file":
        put(tmp_path / kind)
    elif kind == "empty":
        (tmp_path / kind).mkdir()
    found = list_audio_files(tmp_path / kind)
    assert found.files == [] and list(found.left_out) == [tmp_path / kind]


def test_known_companions_are_not_opened(tmp_path, monkeypatch):
    for extension in COMPANION_EXTENSIONS:
        put(tmp_path / f"a{extension}")
    monkeypatch.setattr(listing_module, "is_audio", lambda path: pytest.fail(f"{path} was opened"))
    assert num_left_out(list_audio_files(tmp_path)) == len(COMPANION_EXTENSIONS)


def test_the_warning_comes_once_of_several_processes(tmp_path, warnings, monkeypatch):
    put(tmp_path / "dog" / "a.zip", b"PK")
    find_audio_files(tmp_path)
    monkeypatch.setenv("RANK", "1")
    find_audio_files(tmp_path)
    assert warnings == [f"{tmp_path}: 1 .zip file in dog is an archive: unpack it"]


def test_pretraining_and_embedding_tell_the_same(tmp_path, warnings):
    write_tone(tmp_path / "dog" / "a.wav")
    shutil.copy(tmp_path / "dog" / "a.wav", tmp_path / "b.aifc.unusual")
    put(tmp_path / "dog" / "x.raw", bytes(100))
    line = f"{tmp_path}: 1 .raw file in dog is not readable as audio: convert or remove it"
    assert len(open_source(UnlabelledSource(str(tmp_path)))) == 1 + 0
    assert [len(clips) for clips in open_inputs([str(tmp_path)], streaming=False)] == [1]
    assert [text for text in warnings if ".raw" in text] == [line, line]


def test_a_recording_with_an_unusual_extension_can_be_embedded(tmp_path):
    for name in ("a.aifc", "b.unusual", "noext"):
        put(tmp_path / name)
    words = [str(tmp_path / name) for name in ("a.aifc", "b.unusual", "noext")]
    (clips,) = open_inputs(words, streaming=False)
    assert clips.names() == words


def test_a_folder_without_audio_says_what_it_holds(tmp_path):
    put(tmp_path / "dog" / "a.zip", b"PK")
    with pytest.raises(InputError, match=r"holds no audio \(1 .zip file in dog is an archive: unpack it\)"):
        open_source(UnlabelledSource(str(tmp_path)))


def test_the_check_lists_what_is_left_out(tmp_path):
    write_class_folders(tmp_path, 3)
    put(tmp_path / "high" / "a.raw", bytes(100))
    put(tmp_path / "low" / "notes.txt", TEXT)
    put(tmp_path / "docs" / "notes.txt", TEXT)
    found = check.check(check.parse([str(tmp_path)]))["findings"]["left_out"]
    assert found["severity"] == "warning" and found["items"] == [
        {"files": 1, "kind": ".raw", "in": "high", "reason": listing_module.UNREADABLE},
        {"files": 1, "kind": "folder", "in": "docs", "reason": "no class: it holds no audio"},
    ]


def test_the_folder_of_a_running_task_is_no_class_without_clips(tmp_path):
    write_class_folders(tmp_path, 2)
    with written_alone([SimpleNamespace(output_dir=tmp_path / "runs" / "first")]):
        assert check.check(check.parse([str(tmp_path)]))["splits"]["train"]["clips"] == 4


def test_one_odd_name_does_not_end_the_others(tmp_path, warnings):
    write_class_folders(tmp_path, 2)
    shutil.copy(tmp_path / "high" / "high_0.wav", os.fsencode(tmp_path / "high") + b"/caf\xe9.wav")
    report = check.check(check.parse([str(tmp_path)]))
    assert report["splits"]["train"]["clips"] == 4
    assert [item["reason"] for item in report["findings"]["left_out"]["items"]] == [listing_module.NOT_UTF8]
    assert [len(clips) for clips in open_inputs([tmp_path])] == [4]
    assert warnings == [f"{tmp_path}: 1 .wav file in high is left out: its name is not UTF-8; rename it"]
