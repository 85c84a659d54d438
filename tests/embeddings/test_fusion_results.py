"""Tests benchmarks/fusion_results.py: its clips of packages, a small run of all it does, and the page."""

import csv
import json
import struct
import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from audio_files import write_tone
from benchmark_scripts import imported

MODULES = ("training_runs", "soundfont", "soundscape_tags", "package_clips", "fusion_page", "fusion_runs",
           "fusion_results")  # fmt: skip


@pytest.fixture(scope="module")
def scripts():
    """The modules of the benchmark."""
    with imported(*MODULES) as scripts:
        yield scripts


# ---- the page ----


def test_the_page_has_the_committed_figures(scripts):
    page = scripts.fusion_page
    report = json.loads(page.FIGURES.read_text(encoding="utf-8"))
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.split(page.BEGIN)[1].split(page.END)[0].strip() == page.text_of(report).strip()


def row(name: str, accuracy: float, difference: float | None = None, p_holm: float = 1.0, verdict: str = "") -> dict:
    found = {"configuration": name, "score": accuracy, "seeds": 2, "deviation_of_seeds": 0.01}
    if difference is None:
        return found
    ends = {"lower": difference - 0.1, "upper": difference + 0.1}
    return found | {"difference": difference, **ends, "p_holm": p_holm, "verdict": verdict}


def a_report() -> dict:
    """Two tables, and a sweep with a measure that is undefined."""
    base = {"encoder": "random", "test_clips": 20, "permutations": 9999, "metric": "accuracy", "resampled": "clips"}
    frozen = [row("last", 0.5), row("max", 0.75, 0.25, 0.001, "better"), row("min", 0.4, -0.1, 1.0, "not told apart")]
    tuned = [row("last", 0.6), row("max", 0.3, -0.3, 0.002, "worse")]
    unlabelled = {
        "readout": "patches", "pooling": "mean", "best_layer": 4,
        "effective_rank_correlation": 0.5, "effective_rank_layer": 2, "effective_rank_loss": 0.02,
        "iso_score_correlation": None, "iso_score_layer": None, "iso_score_loss": None,
    }  # fmt: skip
    chosen = {"fusion_layers": [2, 3], "readout": "patches", "pooling": ["mean", "max"], "pooling_combination": "sum"}
    sweep = {"data_set": "a", "encoder": "random", "clips": 40, "candidates": 9, "chosen": chosen, "score": 0.8,
             "nested": 0.7, "unlabelled": [unlabelled]}  # fmt: skip
    return {
        "versions": "torch 0",
        "seeds": 2,
        "tables": [
            {"data_set": "a", "half": "frozen", "rows": frozen, **base},
            {"data_set": "a", "half": "fine-tuned", "rows": tuned, **base},
        ],
        "sweeps": [sweep],
        "unmeasured": ["klettres-data"],
    }


def test_tables_mark_what_is_told_apart(scripts, tmp_path):
    page, report = scripts.fusion_page, a_report()
    text = page.text_of(report)
    assert "| last | 0.500 | 0.010 |  |  | baseline |" in text
    assert "| max | 0.750 | 0.010 | +0.250 (+0.150 to +0.350) | 0.0010 | **better** |" in text
    assert "| min | 0.400 | 0.010 | -0.100 (-0.200 to +0.000) | 1.0000 | not told apart |" in text
    # Counts of better, worse and not told apart, and the mean difference, of both halves.
    assert "| max | 0, 1, 0 | -0.300 | 1, 0, 0 | +0.250 |" in text
    assert "| min |  |  | 0, 0, 1 | -0.100 |" in text
    assert "| a | random weights | +0.50 (1 of 1 positive) | 0.020 |  |  |" in text
    assert "    | a | random weights | patches mean | 4 | +0.50 | 2: 0.020 |  |  |" in text
    assert "klettres-data" in text and "20 test clips, 2 seeds." in text
    assert "**only 2 of 5 planned seeds are finished**" in page.text_of(report | {"seeds": 5})
    tags = report["tables"][0] | {"metric": "mean_average_precision", "resampled": "groups"}
    tagged = page.text_of(report | {"tables": [tags]})
    assert "| configuration | mean average precision |" in tagged and "2 seeds, compared by groups." in tagged
    target = tmp_path / "page.md"
    target.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write(report, target)
    page.write(report, target)  # the second time in the place of the first
    assert target.read_text() == f"before\n{page.BEGIN}\n\n{text}\n{page.END}\nafter\n"
    page.plot(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


# ---- clips of packages ----


def read_rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_letters_lie_in_one_split_for_all_languages(scripts, tmp_path, monkeypatch):
    clips = scripts.package_clips
    monkeypatch.setattr(clips, "FEWEST", 3)
    monkeypatch.setattr(clips, "MOST", 20)
    letters = [f"letter{number}" for number in range(24)]
    for language in ("de", "fr"):
        for letter in letters:
            write_tone(tmp_path / f"klettres-data/usr/share/klettres/{language}/alpha/{letter}.ogg", seconds=0.1)
    write_tone(tmp_path / "klettres-data/usr/share/klettres/id/alpha/a.ogg", seconds=0.1)  # too few
    folder = tmp_path / "out"
    assert clips.make_clips(tmp_path, "klettres-data", folder)
    tables = {split: read_rows(folder / f"{split}.csv") for split in clips.SPLITS}
    groups = {split: {found["group"] for found in rows} for split, rows in tables.items()}
    assert all(groups.values()) and sum(map(len, groups.values())) == len(set.union(*groups.values()))
    rows = [found for part in tables.values() for found in part]
    assert Counter(found["label"] for found in rows) == {"de": 20, "fr": 20}
    assert all((folder / found["file_name"]).exists() and found["licence"] for found in rows)
    before = (folder / "train.csv").stat().st_mtime_ns
    assert clips.make_clips(tmp_path, "klettres-data", folder)
    assert (folder / "train.csv").stat().st_mtime_ns == before
    assert not clips.make_clips(tmp_path / "empty", "klettres-data", tmp_path / "none")


def test_drums_are_named_by_the_kits_and_divided_by_their_authors(scripts, tmp_path):
    clips = scripts.package_clips
    root = tmp_path / "hydrogen-drumkits/usr/share/hydrogen/data/drumkits"
    names = ("Kick 1", "Snare Rock", "Tom Hi", "Closed HH", "Hi Hat Open", "Ride Jazz", "Cowbell")
    for kit in clips.KITS:
        instruments = "".join(
            f"<instrument><name>{name}</name><layer><filename>{index}.wav</filename></layer>"
            "<layer><filename>missing.wav</filename></layer></instrument>"
            for index, name in enumerate(names)
        )
        for index in range(len(names)):
            write_tone(root / kit / f"{index}.wav", seconds=3.0 if index == 5 else 0.1, rate=44100, channels=2)
        text = f'<drumkit_info xmlns="http://example.org/drumkit" xmlns:x="y">{instruments}</drumkit_info>'
        (root / kit / "drumkit.xml").write_text(text)
    folder = tmp_path / "out"
    assert clips.make_clips(tmp_path, "hydrogen-drumkits", folder)
    tables = {split: read_rows(folder / f"{split}.csv") for split in clips.SPLITS}
    kinds = {"bass drum": 1, "snare": 1, "tom": 1, "hi-hat": 2, "cymbal": 1}  # a kit's; no cowbell
    found_authors, authors = [], {author for author, _, _ in clips.KITS.values()}
    for split, rows in tables.items():
        kits = sum(place == split for _, _, place in clips.KITS.values())
        assert Counter(found["label"] for found in rows) == {kind: count * kits for kind, count in kinds.items()}
        found_authors += {found["group"] for found in rows}
    assert sorted(found_authors) == sorted(authors)  # none in two splits
    facts = [soundfile.info(path) for path in (folder / "audio").iterdir()]
    assert {found.samplerate for found in facts} == {clips.RATE} and {found.channels for found in facts} == {1}
    assert max(found.frames for found in facts) == clips.MAX_S * clips.RATE


# ---- notes of a SoundFont ----


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def write_soundfont(path, samples: list[tuple], instruments: list[list[int]], programs: list[tuple]):
    """
    Writes a SoundFont 2 file.

    Args:
        samples: name, int16 samples, rate in Hz, kind (1 mono, 2 right, 4 left)
        instruments: places of the samples that each has, in zones of their own
        programs: name, program, bank, places of its instruments
    """
    wave, headers = b"", b""
    for name, values, rate, kind in samples:
        begin = len(wave) // 2
        wave += np.asarray(values, dtype="<i2").tobytes()
        ends = begin, len(wave) // 2, begin, len(wave) // 2
        headers += struct.pack("<20s5IBbHH", name.encode(), *ends, rate, 60, 0, 0, kind)
        wave += bytes(2 * 46)  # as the format wants it
    headers += struct.pack("<20s5IBbHH", b"EOS", *[0] * 9)

    def zones(owners: list[list[int]], kind: int) -> tuple[list[int], bytes, bytes]:
        """Returns the first zone of each owner, bags and generators; each zone begins with another generator."""
        firsts, bags, generators = [], [], b""
        for targets in owners:
            firsts.append(len(bags))
            for target in targets:
                bags.append(len(generators) // 4)
                generators += struct.pack("<HhHH", 48, -5, kind, target)
        bags.append(len(generators) // 4)
        packed = b"".join(struct.pack("<HH", first, 0) for first in bags)
        return [*firsts, len(bags) - 1], packed, generators + bytes(4)

    firsts, ibag, igen = zones(instruments, 53)
    inst = b"".join(struct.pack("<20sH", b"any", first) for first in firsts)
    firsts, pbag, pgen = zones([targets for _, _, _, targets in programs], 41)
    names = [*[(name, program, bank) for name, program, bank, _ in programs], ("EOP", 0, 0)]
    phdr = b"".join(
        struct.pack("<20s3H3I", name.encode(), program, bank, first, 0, 0, 0)
        for (name, program, bank), first in zip(names, firsts)
    )
    tables = {b"phdr": phdr, b"pbag": pbag, b"pmod": bytes(10), b"pgen": pgen, b"inst": inst, b"ibag": ibag,
              b"imod": bytes(10), b"igen": igen, b"shdr": headers}  # fmt: skip
    info = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"odd"))
    sdta = chunk(b"LIST", b"sdta" + chunk(b"smpl", wave))
    pdta = chunk(b"LIST", b"pdta" + b"".join(chunk(name, content) for name, content in tables.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(chunk(b"RIFF", b"sfbk" + info + sdta + pdta))


def test_a_soundfont_says_which_programs_play_a_sample(scripts, tmp_path):
    path = tmp_path / "a.sf2"
    samples = [("left", [1, -2, 3], 8000, 4), ("right", [4, 5], 8000, 2), ("mono", [-32768, 32767], 44100, 1)]
    programs = [("Piano", 0, 0, [0, 1]), ("Other", 5, 0, [1]), ("Drums", 0, 128, [2])]
    write_soundfont(path, samples, [[0, 1], [2], [0]], programs)
    found, names = scripts.soundfont.read_soundfont(path)
    assert names == {0: "Piano", 5: "Other"}  # a bank of drums is no program of General MIDI
    assert [(one.name, one.samples.tolist(), one.rate, one.is_right, set(one.programs)) for one in found] == [
        ("left", [1, -2, 3], 8000, False, {0}),
        ("right", [4, 5], 8000, True, {0}),
        ("mono", [-32768, 32767], 44100, False, {0, 5}),
    ]
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cut off"):
        scripts.soundfont.read_soundfont(path)
    path.write_bytes(b"RIFF" + whole[4:8] + b"WAVE" + whole[12:])
    with pytest.raises(ValueError, match=r"a\.sf2: is no SoundFont 2 file"):
        scripts.soundfont.read_soundfont(path)


def test_notes_of_programs_that_share_samples_lie_in_one_split(scripts, tmp_path, monkeypatch):
    clips, rng = scripts.package_clips, np.random.default_rng(0)
    monkeypatch.setattr(clips, "FEWEST_NOTES", 9)
    monkeypatch.setattr(clips, "MOST_NOTES", 24)

    def noise(seconds: float) -> np.ndarray:
        return rng.integers(-9000, 9000, round(seconds * 8000))

    samples, instruments, programs = [], [], []

    def add(program: int, *own: tuple):
        """Gives a program an instrument of new samples."""
        instruments.append(list(range(len(samples), len(samples) + len(own))))
        samples.extend(own)
        programs.append((f"program {program}", program, 0, [len(instruments) - 1]))

    for program in (*range(8), *range(24, 32), 16, 17):  # pianos, guitars, and two organs: too few
        add(program, *((f"{program} {index}", noise(0.3), 8000, 1) for index in range(5)))
    add(40, *((f"40 {index}", noise(0.3), 8000, 1) for index in range(5)))  # strings: one group is too few
    programs[1] = ("program 1", 1, 0, [1, 0])  # shares the samples of program 0
    samples[0] = ("long", noise(3.0), 8000, 4)
    samples[10] = ("right", noise(0.3), 8000, 2)
    samples[15] = ("short", noise(0.1), 8000, 1)
    samples[20] = ("copy", samples[25][1], 8000, 1)  # programs 4 and 5 have the same under two names
    programs[8] = ("program 24", 24, 0, [8, 16])  # an organ's samples: of two families
    write_soundfont(tmp_path / "fluid-soundfont-gm/usr/share/sounds/sf2/FluidR3_GM.sf2", samples, instruments, programs)
    folder = tmp_path / "out"
    assert clips.make_clips(tmp_path, "fluid-soundfont-gm", folder)
    tables = {split: read_rows(folder / f"{split}.csv") for split in clips.SPLITS}
    groups = {split: {found["group"] for found in rows} for split, rows in tables.items()}
    assert all(groups.values()) and sum(map(len, groups.values())) == len(set.union(*groups.values()))
    for rows in tables.values():
        assert {found["label"] for found in rows} == {"piano", "guitar"}
    rows = [found for part in tables.values() for found in part]
    own = Counter(found["group"] for found in rows if found["label"] == "piano")
    # 24 clips over six groups are at most four each; programs 0 and 1 are one group, and 4 and 5.
    assert own == {f"program {program}": 4 for program in (0, 2, 3, 4, 6, 7)}
    own = Counter(found["group"] for found in rows if found["label"] == "guitar")
    assert own == {f"program {program}": 3 for program in range(24, 32)}
    sources = {found["source"].partition(": ")[2] for found in rows}
    assert not sources & {"right", "short", *(f"16 {index}" for index in range(5))}
    assert {found["licence"] for found in rows} == {clips.FLUID_LICENCE}
    facts = [soundfile.info(folder / found["file_name"]) for found in rows]
    assert {found.samplerate for found in facts} == {clips.RATE}
    assert max(found.frames for found in facts) <= clips.MAX_S * clips.RATE


# ---- syllables of Mandarin ----


def write_syllables(scripts, root):
    """Writes all pairs of six consonants and finals in four tones by both voices, and what is left out."""
    consonants, finals = "ㄅㄆㄉㄊㄐㄓ", ["ㄚ", "ㄠ", "ㄧㄢ", "ㄨㄢ", "ㄤ", "ㄥ"]
    folder = root / "gcin-voice/usr/share/gcin-voice/ogg"
    names = [consonant + final + tone for consonant in consonants for final in finals for tone in ("", "2", "3", "4")]
    others = ["ㄢ", "ㄢ4", "ㄓ", "ㄓ4", "ㄅ", "ㄉ1", "ㄅㄚ1"]  # two begin with no consonant, three are left out
    for name in names + others:
        for voice in scripts.package_clips.VOICES:
            write_tone(folder / name / f"{voice}.ogg", seconds=0.1)
    return len(names)


def test_a_syllable_lies_in_one_split(scripts, tmp_path):
    clips = scripts.package_clips
    count = write_syllables(scripts, tmp_path)
    folder = tmp_path / "out"
    assert clips.make_clips(tmp_path, "mandarin-initials", folder)
    tables = {split: read_rows(folder / f"{split}.csv") for split in clips.SPLITS}
    groups = {split: {found["group"] for found in rows} for split, rows in tables.items()}
    assert all(groups.values()) and sum(map(len, groups.values())) == len(set.union(*groups.values()))
    rows = [found for part in tables.values() for found in part]
    assert len(rows) == 2 * (count + 2)  # ㄓ and ㄓ4
    assert Counter(found["label"] for found in rows) == {
        "b": 48, "p": 48, "d": 48, "t": 48, "j": 48, "zh": 52,
    }  # fmt: skip
    assert "p-i-an" in {found["group"] for found in rows}
    assert {found["source"].rsplit("/", 1)[1]: found["licence"] for found in rows} == {
        f"{voice}.ogg": licence for voice, licence in clips.VOICES.items()
    }
    assert len({found["file_name"] for found in rows}) == len(rows)
    assert all(found["file_name"].isascii() and (folder / found["file_name"]).exists() for found in rows)


def test_tones_are_tested_by_another_speaker(scripts, tmp_path):
    clips = scripts.package_clips
    write_syllables(scripts, tmp_path)
    folder = tmp_path / "out"
    assert clips.make_clips(tmp_path, "mandarin-tones", folder)
    tables = {split: read_rows(folder / f"{split}.csv") for split in clips.SPLITS}
    voices = {split: {found["source"].rsplit("/", 1)[1] for found in rows} for split, rows in tables.items()}
    assert voices == {"train": {"3.ogg"}, "validation": {"3.ogg"}, "test": {"5.ogg"}}
    groups = {split: {found["group"] for found in rows} for split, rows in tables.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values()))
    for rows in tables.values():
        assert {found["label"] for found in rows} == {"tone 1", "tone 2", "tone 3", "tone 4"}
    for found in tables["train"]:
        name = found["source"].split("/")[-2]
        assert found["label"] == f"tone {name[-1] if name[-1] in '234' else 1}"


def test_the_program_names_packages_that_are_missing(scripts, tmp_path, monkeypatch):
    write_syllables(scripts, tmp_path)
    words = ["package_clips.py", "--packages", str(tmp_path), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="run: apt-get download fluid-soundfont-gm hydrogen-drumkits klettres-data$"):
        scripts.package_clips.main()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mandarin-initials", "mandarin-tones"}


# ---- tags of soundscapes ----


def test_soundscapes_are_cut_into_clips_with_the_labels_of_their_events(scripts, tmp_path):
    source = tmp_path / "soundscapes"
    for split in ("train", "validation", "test"):
        write_tone(source / split / f"{split}_01.flac", seconds=9.0)
        write_tone(source / split / f"{split}_02.flac", seconds=4.0)  # has no events
        lines = ["onset\toffset\tevent_label", "0.5\t2.2\tvoice", "1.81\t2.19\tsnare", "3.0\t3.4\tvoice"]
        lines += ["5.8\t6.19\tbass drum", "8.0\t9.0\tvoice"]
        (source / split / f"{split}_01.txt").write_text("\n".join(lines) + "\n")
    scripts.soundscape_tags.make_tags(tmp_path / "out", source)
    rows = read_rows(tmp_path / "out" / "test.csv")
    assert {found["file_name"] for found in rows} == {str(path) for path in (source / "test").glob("*.flac")}
    found = [(line["group"], float(line["start"]), float(line["end"]), line["labels"]) for line in rows]
    # Exactly 0.2 s count, 0.19 s do not; the last second of nine is no clip.
    assert found == [
        ("test_01", 0.0, 2.0, "voice"),
        ("test_01", 2.0, 4.0, "voice"),
        ("test_01", 4.0, 6.0, "bass drum"),
        ("test_01", 6.0, 8.0, ""),
        ("test_02", 0.0, 2.0, ""),
        ("test_02", 2.0, 4.0, ""),
    ]


def test_the_soundscapes_of_the_repository_have_every_class_in_every_split(scripts, tmp_path):
    scripts.soundscape_tags.make_tags(tmp_path)
    for split, count in (("train", 75), ("validation", 120), ("test", 150)):
        rows = read_rows(tmp_path / f"{split}.csv")
        labels = {name for line in rows for name in line["labels"].split(";") if name}
        assert len(rows) == count and labels == {"bass drum", "cymbal", "hi-hat", "snare", "voice"}
        assert any(";" in line["labels"] for line in rows) and not all(line["labels"] for line in rows)


def some_words(folder, **other) -> SimpleNamespace:
    """The arguments of the program by default, and others."""
    return SimpleNamespace(**{"output": folder, "encoder": None, "json": None, "page": None, "picture": None} | other)


@pytest.mark.parametrize(
    "words, report",
    [
        ({}, {"unmeasured": ["klettres-data"]}),
        ({}, {"unmeasured": [], "seeds": 2}),  # two of five
        ({"encoder": "ssast"}, {"unmeasured": [], "seeds": 5}),
    ],
)
def test_a_run_that_is_not_complete_leaves_the_page_of_the_repository(scripts, tmp_path, monkeypatch, words, report):
    page, script = scripts.fusion_page, scripts.fusion_results
    report = a_report() | report
    for table in report["tables"]:
        for line in table["rows"]:
            line["seeds"] = report["seeds"]
    for name in ("FIGURES", "PAGE", "PICTURE"):
        path = tmp_path / "docs" / getattr(page, name).name
        monkeypatch.setattr(page, name, tmp_path / "docs" / "images" / path.name if name == "PICTURE" else path)
    out = tmp_path / "out"
    script.write(report, some_words(out, **words))
    assert not (tmp_path / "docs").exists()
    assert json.loads((out / "fusion_results.json").read_text()) == report
    assert page.text_of(report) in (out / "fusion_results.md").read_text()
    assert (out / "images" / "fusion_results.png").exists()
    script.write(report, some_words(out, **words, json=tmp_path / "named.json"))  # a name given
    assert (tmp_path / "named.json").exists()
    (tmp_path / "docs").mkdir()
    for line in (line for table in report["tables"] for line in table["rows"]):
        line["seeds"] = 5
    script.write(report | {"unmeasured": []}, some_words(out))
    assert len(list((tmp_path / "docs").rglob("fusion_results.*"))) == 3


def test_the_page_says_which_tables_are_left_out(scripts, tmp_path, monkeypatch):
    """A data set and a half by choice, and a table that is not finished; the packages of the rest are not there."""
    script = scripts.fusion_results
    monkeypatch.setattr(script, "prepare", lambda args: [script.OWN["instruments"]])
    frozen = script.Cell(script.OWN["instruments"], tmp_path, "voice_prompts", "frozen")
    monkeypatch.setattr(script, "is_finished", lambda cell, args: cell.place == frozen.place)
    monkeypatch.setattr(script, "figures_of", lambda cell, titles, args: a_report()["tables"][0])
    monkeypatch.setattr(script, "titles_of", lambda cell: {})
    words = ["--output", tmp_path, "--data_sets", "instruments", "--halves", "frozen", "--finished"]
    monkeypatch.setattr(sys, "argv", ["fusion_results.py", *map(str, words)])
    script.main()
    assert json.loads((tmp_path / "fusion_results.json").read_text())["unmeasured"] == [
        "voice_prompts", "soundscapes", "hydrogen-drumkits", "klettres-data", "fluid-soundfont-gm",
        "instruments, fine-tuned, encoder trained on the voice prompts", "instruments, frozen, encoder random weights",
    ]  # fmt: skip
    monkeypatch.setattr(script, "is_finished", lambda cell, args: False)
    with pytest.raises(SystemExit, match="no table is finished; nothing is written"):
        script.main()


# ---- runs ----


def test_finished_runs_are_not_repeated_and_failed_ones_name_their_log(scripts, tmp_path):
    runs = scripts.training_runs
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "results.json").write_text("{}")
    runs.train_here(tmp_path / "done", tmp_path / "missing.yaml")
    assert not (tmp_path / "done.log").exists()
    before = list(sys.argv), list(sys.path)
    with pytest.raises(SystemExit, match=r"stopped with 1; .*new\.log says why"):
        runs.train_here(tmp_path / "new", tmp_path / "missing.yaml")
    assert "missing.yaml" in (tmp_path / "new.log").read_text()
    assert (sys.argv, sys.path) == before


def tiny_clips(scripts, folder, name: str):
    """Two classes of tones in three splits."""
    for split, count in (("train", 8), ("validation", 4), ("test", 6)):
        rows = [["file_name", "label"]]
        for index in range(count):
            label = ("high", "low")[index % 2]
            file = f"{split}_{index}.wav"
            write_tone(folder / file, seconds=0.3, hz=(900.0, 300.0)[index % 2], seed=index)
            rows.append([file, label])
        with open(folder / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return scripts.fusion_runs.Clips(name, folder, "label", epochs=1, own_epochs=1)


def tiny_soundscapes(folder):
    """Three recordings of three clips in each split: a sound, another, and both."""
    for split in ("train", "validation", "test"):
        for number in range(3):
            write_tone(folder / split / f"{split}_{number}.flac", seconds=6.0, seed=number)
            lines = ["onset\toffset\tevent_label", "0.5\t1.5\tvoice", "2.5\t3.5\tsnare"]
            lines += ["4.2\t5.0\tvoice", "4.8\t5.6\tsnare"]
            (folder / split / f"{split}_{number}.txt").write_text("\n".join(lines) + "\n")


def times_of_runs(folder) -> dict:
    """When each run was finished; the models of probes have a file of their own."""
    files = [path for path in folder.rglob("results.json") if path.parent.name != "model"]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_two_configurations_from_clips_to_page(scripts, tmp_path, monkeypatch):
    """Encoders, sweeps, probes, fine-tunings, comparison, page and picture; the second time nothing is run again."""
    script, runs = scripts.fusion_results, scripts.fusion_runs
    own = {name: tiny_clips(scripts, tmp_path / name, name) for name in ("voice_prompts", "instruments")}
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    patched = runs.ENCODER | size
    for module in (script, runs):
        monkeypatch.setattr(module, "OWN", own)
        monkeypatch.setattr(module, "ENCODER", patched)

    tiny_soundscapes(tmp_path / "soundscapes")
    monkeypatch.setattr(script, "make_tags", partial(script.make_tags, source=tmp_path / "soundscapes"))

    def some(everything, *names: str):
        return lambda num_layers: {name: everything(num_layers)[name] for name in names}

    monkeypatch.setattr(script, "configurations", some(runs.configurations, "last-mean", "sweep"))
    monkeypatch.setattr(script, "probes", some(runs.probes, "last-mean", "dual-max"))
    page = tmp_path / "page.md"
    page.write_text(f"{scripts.fusion_page.BEGIN}\n{scripts.fusion_page.END}\n")
    words = ["fusion_results.py", "--output", tmp_path / "out", "--json", tmp_path / "figures.json", "--page", page]
    words += ["--picture", tmp_path / "picture.png", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    script.main()
    report = json.loads((tmp_path / "figures.json").read_text())
    assert len(report["tables"]) == 9  # three data sets: frozen with two encoders each, and fine-tuned
    for table in report["tables"]:
        names = [found["configuration"] for found in table["rows"]]
        assert names[0] == "last layer, mean"
        is_tagged = table["data_set"] == "soundscapes"
        assert table["metric"] == ("mean_average_precision" if is_tagged else "accuracy")
        assert table["resampled"] == ("groups" if is_tagged else "clips")
        assert table["test_clips"] == (9 if is_tagged else 6)
        if table["half"] == "fine-tuned":
            assert names == ["last layer, mean", "best of the sweep"]
        else:
            assert names[1:] == ["last layer, attention", "all layers, gated, mean",
                                 "all layers, weighted, attention", "dual, max"]  # fmt: skip
    assert {found["data_set"] for found in report["sweeps"]} == {*own, "soundscapes"}
    assert report["unmeasured"] == ["hydrogen-drumkits", "klettres-data", "fluid-soundfont-gm"]
    text = page.read_text()
    assert scripts.fusion_page.text_of(report) in text and (tmp_path / "picture.png").exists()
    written = times_of_runs(tmp_path / "out")
    assert len(written) == 2 + 6 + 12 + 6  # encoders, sweeps, probes, fine-tunings
    script.main()
    assert times_of_runs(tmp_path / "out") == written
    assert page.read_text() == text
