"""Tests benchmarks/pretraining_corpus.py on tiny packages."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import tone, write_tone
from benchmark_scripts import imported

MUSIC, SPEECH = "wesnoth-1.16-music", "asterisk-prompt-es-co"
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


@pytest.fixture(scope="module")
def script():
    with imported("pretraining_corpus") as scripts:
        yield scripts.pretraining_corpus


def build(packages: Path, name: str, files: dict, version: str = "1:2.0-1") -> Path:
    """Builds a .deb with files below usr/share/NAME: path -> samples of 16 kHz, bytes, or an existing file to copy."""
    root = packages.parent / "built" / name
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: odd\n"
    (root / "DEBIAN" / "control").write_text(control)
    for file, content in files.items():
        path = root / "usr/share" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            soundfile.write(path, content, 16000, subtype="FLOAT" if content.dtype == np.float64 else None)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copy(content, path)
    packages.mkdir(exist_ok=True)
    archive = packages / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, archive], check=True, capture_output=True)
    return archive


def read_rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content_of(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A package of music and one of speech, with a recording for each reason to be left out."""
    folder = tmp_path_factory.mktemp("corpus") / "packages"
    stereo = write_tone(folder.parent / "stereo.wav", seconds=1.25, rate=44100, channels=2)
    music = {
        "a/long.wav": tone(5.5),  # 2 s, 2 s and 1.5 s
        "a/tail.wav": tone(4.5, hz=500),  # the last 0.5 s are too short
        "b/copy.wav": tone(5.5),
        "b/short.wav": tone(0.5),
        "b/empty.wav": np.zeros(0, dtype=np.float32),
        "b/pause.wav": np.concatenate([np.zeros(32000, dtype=np.float32), tone(2.0, hz=700)]),
        "c/damaged.ogg": b"OggS and no more",
        "c/infinite.wav": np.array([0.1, np.inf] * 16000),
        "c/stereo.wav": stereo,
        "c/held.wav": tone(1.5, hz=300),
        "notes.txt": b"no sound",
    }
    build(folder, MUSIC, music)
    gsm = folder.parent / "one.gsm"
    soundfile.write(gsm, tone(3.0, rate=8000), 8000, format="RAW", subtype="GSM610")
    build(folder, SPEECH, {"one.gsm": gsm})
    build(folder, "hedgewars-data", {f"{part}.wav": tone(1.0, hz=hz) for part, hz in
                                     [("Music/a", 400), ("voices/b", 600), ("c", 800)]})  # fmt: skip
    held, held_wav = folder.parent / "held", folder.parent / "built" / MUSIC / "usr/share" / MUSIC / "c/held.wav"
    held.mkdir()
    soundfile.write(held / "prompt.flac", soundfile.read(held_wav, dtype="int16")[0], 16000)
    return folder


NAMES = (MUSIC, SPEECH, "hedgewars-data")


@needs_dpkg
def test_cuts_and_what_is_left_out(script, packages, tmp_path):
    folder = tmp_path / "corpus"
    report = script.make_corpus(packages, folder, NAMES, [packages.parent / "held"], script.Cutting(2.0, 1.0))
    assert json.loads((folder / "corpus.json").read_text()) == report
    rows, left_out = read_rows(folder / "train.csv"), read_rows(folder / "left_out.csv")
    lengths = Counter((row["source"].split(row["package"] + "/")[1], float(row["seconds"])) for row in rows)
    assert lengths == {
        ("one.gsm", 2.0): 1, ("one.gsm", 1.0): 1,
        ("Music/a.wav", 1.0): 1, ("voices/b.wav", 1.0): 1, ("c.wav", 1.0): 1,
        ("a/long.wav", 2.0): 2, ("a/long.wav", 1.5): 1, ("a/tail.wav", 2.0): 2, ("b/pause.wav", 2.0): 1,
        ("c/stereo.wav", 1.25): 1,
    }  # fmt: skip
    for row in rows:
        found = soundfile.info(folder / row["file_name"])
        assert (found.samplerate, found.channels, found.frames) == (16000, 1, 16000 * float(row["seconds"]))
    assert len({row["file_name"] for row in rows}) == len(rows) == len(list((folder / "audio").rglob("*.flac")))
    assert {row["version"] for row in rows} == {"1:2.0-1"} and all(row["licence"] for row in rows)
    kinds = {row["source"].rsplit("/", 1)[1]: row["kind"] for row in rows if row["package"] == "hedgewars-data"}
    assert kinds == {"a.wav": "music", "b.wav": "speech", "c.wav": "effects"}
    # The samples are those of the recording, to half a step of 16 bits and the step of the file that was read.
    first = next(row for row in rows if row["source"].endswith("long.wav"))
    samples, _ = soundfile.read(folder / first["file_name"])
    np.testing.assert_allclose(samples, tone(5.5)[:32000], rtol=0, atol=2**-15)

    reasons = {(row["source"].rsplit("/", 1)[1], float(row["start_s"]), row["reason"]) for row in left_out}
    assert reasons == {
        ("tail.wav", 4.0, "too short"), ("short.wav", 0.0, "too short"), ("empty.wav", 0.0, "too short"),
        ("pause.wav", 0.0, "silent"), ("copy.wav", 0.0, "duplicate"), ("held.wav", 0.0, "held out"),
        ("damaged.ogg", 0.0, "unreadable"), ("infinite.wav", 0.0, "not finite"),
    }  # fmt: skip
    details = {row["reason"]: row["detail"] for row in left_out}
    assert details["duplicate"].endswith(f"{MUSIC}: usr/share/{MUSIC}/a/long.wav")
    assert details["held out"] == "is held/prompt.flac"
    assert details["unreadable"] and str(Path("/tmp")) not in details["unreadable"]
    counts = {reason: found["count"] for reason, found in report["left_out"].items()}
    assert counts == Counter(row["reason"] for row in left_out)

    assert report["cuts"] == len(rows)
    assert report["hours"] == pytest.approx(sum(float(row["seconds"]) for row in rows) / 3600, abs=5e-5)  # 4 digits
    for name, found in report["packages"].items():
        archive = packages / found["file"]
        assert found["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest() and archive.name.startswith(name)
        assert found["cuts"] == sum(row["package"] == name for row in rows)
    assert set(report["packages"]) == set(NAMES) and report["packages"][MUSIC]["recordings"] == 10


@needs_dpkg
def test_the_same_bytes_on_any_number_of_threads_and_in_any_order_of_names(script, packages, tmp_path):
    found = [
        (
            script.make_corpus(packages, tmp_path / str(threads), names, threads=threads),
            content_of(tmp_path / str(threads)),
        )
        for threads, names in ((1, NAMES), (3, NAMES[::-1]))
    ]
    assert found[0] == found[1] and len(found[0][1]) > len(NAMES)


@needs_dpkg
def test_an_interrupted_corpus_does_not_appear(script, packages, tmp_path, monkeypatch):
    folder = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(script, "report_on", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            script.make_corpus(packages, folder, [SPEECH])
    assert not folder.exists()
    script.make_corpus(packages, folder, [SPEECH])
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    with pytest.raises(SystemExit, match="corpus: exists; remove it or name another folder"):
        script.make_corpus(packages, folder, [SPEECH])


@needs_dpkg
def test_a_damaged_package_is_named(script, packages, tmp_path):
    archive = next(packages.glob(f"{SPEECH}_*.deb"))
    (tmp_path / archive.name).write_bytes(archive.read_bytes()[:200])
    with pytest.raises(SystemExit, match=rf"{SPEECH}.*cannot be taken apart \(.+\); download it again"):
        script.make_corpus(tmp_path, tmp_path / "corpus", [SPEECH])


def test_packages_are_refused_or_missing_in_one_line(script, tmp_path):
    with pytest.raises(SystemExit) as refusal:
        script.check_names([SPEECH, MUSIC], tmp_path)  # in the order of the table
    assert str(refusal.value).endswith(f"lacks 2 packages; there, run: apt-get download {SPEECH} {MUSIC}")
    clashes = ("klettres-data", "hydrogen-drumkits", "hydrogen-drumkits-effects", "fluid-soundfont-gm",
               "fluid-soundfont-gs", "gcin-voice", "sonic-pi-samples")  # fmt: skip
    for name in clashes:
        with pytest.raises(SystemExit, match=f"{name}: labelled clips are made of it"):
            script.check_names([name], tmp_path)
    with pytest.raises(SystemExit, match="no-such: has no row in CORPUS"):
        script.check_names(["no-such"], tmp_path)


def test_the_table_clashes_with_no_check(script, tmp_path):
    for name in script.CORPUS:
        (tmp_path / f"{name}_1_all.deb").touch()
    assert script.check_names(script.CORPUS, tmp_path) == list(script.CORPUS)
    for name, package in script.CORPUS.items():
        kinds = {package.kind, *package.others.values()}
        assert kinds <= {script.MUSIC, script.EFFECTS, script.SPEECH} and package.licence, name
        assert bool(package.languages) == (script.SPEECH in kinds) or name == "megaglest-data", name


@needs_dpkg
def test_the_program(script, packages, tmp_path, monkeypatch, capsys):
    words = ["pretraining_corpus.py", "--packages", packages, "--output", tmp_path / "corpus", "--names", SPEECH, MUSIC]
    words += ["--held_out", "--seconds", "2", "--threads", "2"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    script.main()
    printed = capsys.readouterr().out
    rows = read_rows(tmp_path / "corpus" / "train.csv")
    assert f"corpus: {len(rows)} cuts" in printed and "left out, duplicate: 1" in printed
    assert any(row["source"].endswith("held.wav") for row in rows)  # nothing is held out
    refused = {
        ("--shortest", "3"): r"--shortest 3\.0: must be above 0 and at most --seconds, 2\.0",
        ("--threads", "0"): "--threads 0: must be at least 1",
        ("--output", str(tmp_path / "b"), "--held_out", str(tmp_path / "none")): "none: has no clips to hold out",
    }
    for more, message in refused.items():
        monkeypatch.setattr(sys, "argv", [*map(str, words), *more])
        with pytest.raises(SystemExit, match=message):
            script.main()
