"""Tests training/data/tables.py, text_tables.py and columns.py: every kind of table, and what is wrong in one."""

import csv
import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import openpyxl
import pandas
import pytest
from audio_files import tone, write_tone
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.arguments import DataArguments
from training.data.audio import as_stored, audio_name, read_audio
from training.data.clips import LocalClips, StreamedClips
from training.data.columns import Columns, audio_of
from training.data.labels import find_labels, read_label_file
from training.data.screening import check_files, screen
from training.data.sources import standardise
from training.data.tables import load_named_rows, load_table, load_table_as_it_stands
from training.data.text_tables import read_rows
from training.errors import InputError
from training.inference.tables import open_table

ROWS = "file_name,label\na.wav,dog\nb.wav,cat\n"
EXPECTED = [("a.wav", "dog"), ("b.wav", "cat")]


def _table(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _pairs(data) -> list[tuple]:
    return [(audio_name(row["audio"]).rsplit("/", 1)[-1], row["label"]) for row in data]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", ROWS),
        ("a.csv", "file_name,label\na.wav,dog,\nb.wav,cat,\n"),
        ("a.csv", "file_name,label,\na.wav,dog\nb.wav,cat,\n"),
        ("a.csv", "file_name,label\na.wav,dog,,\nb.wav,cat\n"),
        ("a.csv", "file_name,label,\na.wav,dog,a note\nb.wav,cat,\n"),
        ("a.csv", ",file_name,label\n0,a.wav,dog\n1,b.wav,cat\n"),
        ("a.csv", ROWS.replace(",", ";")),
        ("a.csv", ROWS.replace(",", "\t")),
        ("a.csv", ROWS.replace(",", "|")),
        ("a.csv", "file_name;label;size (m, s)\na.wav;dog;1,5\nb.wav;cat;2\n"),
        ("a.csv", "sep=;\n" + ROWS.replace(",", ";")),
        ("a.tsv", ROWS),
        ("a.tsv", '"file_name"\t"label"\n"a.wav"\t"dog"\n"b.wav"\t"cat"\n'),
        ("a.tsv", 'file_name\ttext\tlabel\na.wav\t"Hello\tdog\nb.wav\t12" vinyl\tcat\n'),
        ("a.txt", ROWS.replace(",", "\t")),
        ("a.csv", ROWS.replace("\n", "\r")),
        ("a.csv", "file_name,label\r\na.wav,dog\nb.wav,cat\r"),
        ("a.csv", "\n# a comment, or two\n\n" + ROWS.replace("\n", "\n\n")),
        ("a.csv", "\ufeff\ufeff" + ROWS),
        ("a.csv", ROWS.encode("utf-16")),
        ("a.csv", ROWS.encode("utf-32")),
        ("a.csv", " File_Name , LABEL \na.wav, dog \nb.wav,cat\t\n"),
        ("a.csv", 'file_name, text, label\na.wav, "x, y", dog\nb.wav, "z", cat\n'),
        ("a.csv", 'file_name,text,label\na.wav,"Hello, you,\nI, too",dog\nb.wav,12" vinyl,cat\n'),
        ("a.json", '{"file": ["a.wav", "b.wav"], "label": ["dog", "cat"]}'),
        ("a.json", '{"file": {"3": "a.wav", "7": "b.wav"}, "label": {"3": "dog", "7": "cat"}}'),
        ("a.json", '{"3": {"file": "a.wav", "label": "dog"}, "7": {"file": "b.wav", "label": "cat"}}'),
        ("a.json", '[["file", "label"], ["a.wav", "dog"], ["b.wav", "cat"]]'),
        ("a.json", '{"columns": ["file", "label"], "index": [0, 1], "data": [["a.wav", "dog"], ["b.wav", "cat"]]}'),
        ("a.json", '[{"audio": {"path": "a.wav"}, "label": "dog"}, {"audio": {"path": "b.wav"}, "label": "cat"}]'),
        ("a.jsonl", '\n{"file": "a.wav", "label": "dog "}\n\n{"file": "b.wav", "label": "cat\\n"}'),
    ],
)
def test_one_table_written_in_many_ways(tmp_path, name, text):
    path = _table(tmp_path / name, text)
    assert _pairs(load_table(path, Columns())) == EXPECTED
    names = [audio_name(audio).rsplit("/", 1)[-1] for audio in load_table_as_it_stands(path)[0]["audio"]]
    assert names == ["a.wav", "b.wav"]


@pytest.mark.parametrize("index", ["none", "text", "filtered", "several", "nameless"])
def test_parquet_with_any_index(tmp_path, index):
    table = pandas.DataFrame({"file": ["x.wav", "a.wav", "b.wav"], "label": ["no", "dog", "cat"]})[1:]
    table = {
        "none": lambda: table.reset_index(drop=True),
        "text": lambda: table.set_index("file"),
        "filtered": lambda: table,
        "several": lambda: table.set_index(["label", "file"]),
        "nameless": lambda: table.set_index(pandas.Index(["p", "q"])),
    }[index]()
    table.to_parquet(tmp_path / "a.parquet")
    assert _pairs(load_table(tmp_path / "a.parquet", Columns())) == EXPECTED


def test_a_row_is_named_by_its_number_after_a_filter(tmp_path):
    table = pandas.DataFrame({"file": list("abcde"), "label": ["x", "x", "y", None, "y"]})
    table[table["file"] != "b"].to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet: row 3 has no file or no label"):
        load_table(tmp_path / "a.parquet", Columns())


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ('a.wav,"Hello,dog\nb.wav,text,cat\nc.wav,text,cow\n', "line 2 has a quote that is not closed or not doubled"),
        ('a.wav,x,dog\nb.wav,"Hello,cat\nc.wav,x,cow\nd.wav,World",emu\n', "line 3 .* over line 4, which looks like"),
        ('a.wav,"Hello,dog\nb.wav,World",cat\nc.wav,x,cat\n', "line 2 .* over line 3, which looks like"),
        ('"a.wav,Hello,dog\nb.wav",World,cat\nc.wav,x,cat\n', "line 2 .* over line 3, which looks like"),
        ('a.wav,"12" vinyl",dog\n', "line 2 has a quote that is not closed or not doubled"),
        ('a.wav,"a \\"b\\" c",dog\n', "line 2 has a quote that is not closed or not doubled"),
    ],
)
def test_unbalanced_quotes_are_told_with_their_line(tmp_path, text, pattern):
    with pytest.raises(InputError, match=pattern):
        load_table(_table(tmp_path / "a.csv", f"file_name,text,label\n{text}"), Columns())


CELL = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" ,;\t|\n'\""), max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6),
    extension=st.sampled_from(("csv", "tsv")),
    quoting=st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    ends=st.sampled_from(("\n", "\r\n")),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(("utf-8", "utf-8-sig", "utf-16")),
)
def test_cells_survive(tmp_path_factory, cells, extension, quoting, ends, separator, encoding):
    if separator == "\t" and extension == "tsv":  # tables with tabs have no quotes
        cells = [tuple(cell.translate(dict.fromkeys(map(ord, '\t\n"'))) for cell in pair) for pair in cells]
    rows = [[f"c{index}.wav", *pair] for index, pair in enumerate(cells)]
    header = ["file_name", "label", "text"]
    file = io.StringIO()
    csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=ends).writerows([header, *rows])
    path = tmp_path_factory.getbasetemp() / f"cells.{extension}"
    path.write_bytes(file.getvalue().encode(encoding))
    names, found, _ = read_rows(path, "\t" if extension == "tsv" else ",", header)
    assert names == header
    assert [[cell.strip() for cell in row] for row in found] == [[cell.strip() for cell in row] for row in rows]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), number=st.integers(2, 7), separator=st.sampled_from(",\t;"), num_columns=st.integers(1, 3))
def test_no_quote_swallows_a_row(tmp_path_factory, data, number, separator, num_columns):
    """Quotes at any place: all rows are read, or an error names a line."""
    rows = [["file_name", "text", "label"], *([f"c{index}.wav", "some words", "dog"] for index in range(number))]
    text = "\n".join(separator.join(row[:num_columns]) for row in rows) + "\n"
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text = text[:place] + '"' + text[place:]
    path = tmp_path_factory.getbasetemp() / f"quotes.{'tsv' if separator == chr(9) else 'csv'}"
    path.write_text(text)
    try:
        found = read_rows(path, "\t" if separator == "\t" else ",", ("file_name",))[1]
    except InputError as error:
        assert "line " in str(error) and "\n" not in str(error)
    else:
        assert len(found) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("é,ß".encode("latin-1"), "é,ß"),
        (b"\x93dog\x94", "“dog”"),
        (b"a \x81 \xe9", "a \x81 é"),
        ("é".encode(), "é"),
    ],
)
def test_old_encodings_are_read_with_a_warning(tmp_path, warnings, text, expected):
    path = _table(tmp_path / "a.tsv", b"file_name\tlabel\na.wav\t" + text)
    assert load_table(path, Columns())["label"][:] == [expected]
    told = f"{path}: is not UTF-8 and is read as Windows-1252 (Latin-1); save it as UTF-8 if names look wrong"
    assert warnings == ([] if text == "é".encode() else [told])


def test_one_bad_byte_is_damage(tmp_path):
    _table(tmp_path / "a.csv", "file_name,label\r\na.wav,é\r\nb.wav,".encode() + b"\xe9\r\n")
    with pytest.raises(InputError, match="a.csv: line 3 holds bytes that are not UTF-8, unlike the rest"):
        load_table(tmp_path / "a.csv", Columns())


def test_empty_rows_are_counted(tmp_path, warnings):
    path = _table(tmp_path / "a.csv", ROWS + ",\n , \n\n")
    assert _pairs(load_table(path, Columns())) == EXPECTED
    assert warnings == [f"{path}: 2 rows without any filled cell are left out, the first in line 4"]


def _workbook(path, *sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for rows in sheets:
        sheet = book.create_sheet()
        for number, row in enumerate(rows, start=1):
            for column, value in enumerate(row, start=1):
                sheet.cell(number, column, value)
    book.save(path)
    return path


def test_excel(tmp_path, warnings):
    day = pandas.Timestamp("2024-05-01").to_pydatetime()
    rows = [("file_name", "label", "note"), ("a", 1), (), ("b", 1.0, "x"), ("c", 0.5), ("d", "01"), ("e", day)]
    path = _workbook(tmp_path / "a.xlsx", rows, [])
    assert load_table(path, Columns())["label"][:] == ["1", "1", "0.5", "01", "2024-05-01"]
    assert warnings == [f"{path}: only the first sheet, Sheet, is read; it has 1 more"]
    _workbook(path, [*rows, (), ("f", "#N/A")])
    with pytest.raises(InputError, match=r"row 6 \(line 9\) has no file_name or no label"):
        load_table(path, Columns())


def test_excel_without_openpyxl_has_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match="a.xlsx: Excel files need openpyxl; pip install openpyxl, or save the sheet"):
        load_table(_table(tmp_path / "a.xlsx", "x"), Columns())


RAVEN = """Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tSpecies
1\tWaveform 1\t1\t10.5\t11.25\tx.wav\t0.5\towl
1\tSpectrogram 1\t1\t10.5\t11.25\tx.wav\t0.5\towl
2\tSpectrogram 1\t1\t12.5\t13\ty.wav\t0.25\tjay
"""


def test_selection_tables_of_raven(tmp_path, warnings):
    for name in ("x", "y"):
        write_tone(tmp_path / f"{name}.wav", seconds=2.0)
    path = _table(tmp_path / "a.txt", RAVEN)
    data = load_table(path, Columns())
    assert [[row["label"], row["start"], row["end"]] for row in data] == [["owl", 0.5, 1.25], ["jay", 0.25, 0.75]]
    assert [len(read_audio(audio_of(row), 16000)) for row in data] == [12000, 8000]
    assert warnings == [f"{path}: 1 rows of other views than Spectrogram 1 are left out"]
    elsewhere = RAVEN.replace("Begin File", "Begin File\tBegin Path").replace(".wav\t", ".wav\tD:\\field\\x.wav\t")
    _table(path, elsewhere)
    data = load_table(path, Columns())
    assert data["audio"][:] == [str(tmp_path / "x.wav"), str(tmp_path / "y.wav")]
    for text, pattern in [
        (RAVEN.replace("Species", "Sp"), "which column is the label\\? Set label_column to one of .* Sp$"),
        (RAVEN.replace("Begin File", "x"), "which column is the audio\\? Set audio_column to one of"),
        (RAVEN.replace("File Offset", "y"), "its times count from the first of several files; export it with"),
        (RAVEN.replace("12.5", "late"), r"row 2 \(line 4\) has 'late' in Begin Time"),
        (RAVEN.replace("12.5", ""), "a selection has no time; fill in Begin Time"),
    ]:
        with pytest.raises(InputError, match=pattern):
            load_table(_table(path, text), Columns())
    with pytest.raises(InputError, match="a.txt: lists parts of recordings"):
        load_table_as_it_stands(path)


@pytest.mark.parametrize("times", ["start,end", "Start_s,End_s", "onset,offset", "onset_s, offset_s"])
def test_a_table_of_parts_is_no_table_of_whole_recordings(tmp_path, times):
    path = _table(tmp_path / "a.csv", f"file_name,{times}\nx.wav,0,1\nx.wav,1,2\n")
    with pytest.raises(
        InputError, match="a.csv: lists parts of recordings; name the recordings, or their folder, or rename its"
    ):
        load_table_as_it_stands(path)
    assert len(load_table_as_it_stands(_table(tmp_path / "b.csv", "file_name,start\nx.wav,0\nx.wav,1\n"))[0]) == 2
    path = _table(tmp_path / "a.csv", f"file_name,{times}\nx.wav,,\ny.wav,,5\n")  # each recording once
    with pytest.raises(InputError, match="if they are no times in these files, but in others"):
        load_table_as_it_stands(path)
    assert len(load_table_as_it_stands(path, reads_times=True)[0]) == 2


def test_whole_clips_may_have_columns_of_times(tmp_path):
    """Times may be empty, or be beside stored audio: those of the recording that it was cut from."""
    path = _table(tmp_path / "a.csv", "file_name,onset,offset,start,end\nx.wav,, ,,\ny.wav,,,,\n")
    assert len(load_table_as_it_stands(path)[0]) == 2
    stored = {"audio": [{"bytes": WAV, "path": "x.wav"}] * 2, "start": [10.0, 20.0], "end": [20.0, 30.0]}
    datasets.Dataset.from_dict(stored).to_parquet(tmp_path / "a.parquet")
    assert len(load_table_as_it_stands(tmp_path / "a.parquet")[0]) == 2


def test_a_table_of_parts_is_trained_on_with_their_times(tmp_path, caplog):
    """Of a file with several times, they are its own. A file that stands there once may be cut from another."""
    text = "file_name,label,start,end\nx.wav,a,0,1\nx.wav,b,1,2\n"
    path = _table(tmp_path / "a.csv", text)
    pattern = "a.csv: lists parts of recordings, .*; set start_column to start and end_column to end, or rename these"
    with pytest.raises(InputError, match=pattern):
        load_table(path, Columns())
    assert load_table(path, Columns(start="start", end="end"))["end"][:] == [1, 2]
    data = datasets.Dataset.from_csv(str(path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="set: lists parts of recordings"):
        standardise("set", data, Columns())
    assert not caplog.text
    for rows in ("x.wav,a,0,1\ny.wav,b,1,2\n", "x.wav,a,0,1\nx.wav,b,0,1\n"):
        caplog.clear()
        load_table(_table(path, f"file_name,label,start,end\n{rows}"), Columns())
        assert "a.csv: 2 clips have times in start and end, which are not read" in caplog.text
    caplog.clear()
    load_table(_table(path, "file_name,label,start,end\nx.wav,a,,\nx.wav,b,,\n"), Columns())
    assert not caplog.text


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_column_file_goes_first_in_tables_of_programs_alone(tmp_path, ending):
    """In tables of others it may name the recordings that clips were cut from."""
    for name in ("clip.wav", "long.wav"):
        write_tone(tmp_path / name, seconds=0.05)
    path, rows = tmp_path / f"t.{ending}", {"file_name": ["clip.wav"], "label": ["a"], "file": ["long.wav"]}

    def name() -> str:
        return Path(load_table(path, Columns())["audio"][0]).name

    getattr(pandas.DataFrame(rows), f"to_{ending}")(path, index=False)
    assert name() == "clip.wav"
    with open_table(path, {"program": "predict_hf.py"}) as write:
        write(list(rows.items()))
    assert name() == "long.wav"


def test_a_table_of_a_program_is_read_from_its_working_directory(tmp_path, monkeypatch):
    """It names the recordings as the program found them; files beside the table go first."""
    for name in ("clips/x.wav", "clips/y.wav", "run/clips/y.wav"):
        write_tone(tmp_path / name, seconds=0.05)
    monkeypatch.chdir(tmp_path)
    path = _table(Path("run/predictions.csv"), "file,label\nclips/x.wav,a\nclips/y.wav,b\nclips/z.wav,b\n")
    expected = ["clips/x.wav", "run/clips/y.wav", "run/clips/z.wav"]
    assert load_table(path, Columns())["audio"][:] == expected
    assert load_table_as_it_stands(path)[0]["audio"][:] == expected
    assert [clip.path for clip in load_named_rows(path)[0]] == expected


def test_other_spellings_of_a_path_are_found(tmp_path):
    for name in ("clips/a.wav", "e\u0301.wav", " b.wav", "\u00fc.wav"):
        write_tone(tmp_path / name, seconds=0.05)
    _table(tmp_path / "a.csv", "file_name,label\nclips\\a.wav,x\n\u00e9.wav,x\n b.wav,x\nu\u0308.wav ,x\n")
    check_files({"train": load_table(tmp_path / "a.csv", Columns())})


def test_a_folder_is_no_other_spelling_of_a_file(tmp_path):
    (tmp_path / "clips").mkdir()
    _table(tmp_path / "a.json", json.dumps([{"file_name": "clips ", "label": "x"}, {"file_name": "/\r", "label": "x"}]))
    assert load_table(tmp_path / "a.json", Columns())["audio"][:] == [str(tmp_path / "clips "), "/\r"]


def test_whole_numbers_are_one_class_in_every_format(tmp_path):
    table = pandas.DataFrame({"file": ["a", "b", "c"], "label": [1, 2, 10]})
    table.to_parquet(tmp_path / "whole.parquet")
    table.astype({"label": float}).to_parquet(tmp_path / "floats.parquet")
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_json(tmp_path / "a.json", orient="records")
    found = {path.name: load_table(path, Columns())["label"][:] for path in tmp_path.iterdir()}
    assert len(found) == 4 and all(labels == ["1", "2", "10"] for labels in found.values())


def test_classes_are_alike_up_to_blanks_and_composed_accents(tmp_path):
    _table(tmp_path / "a.csv", "file_name,label\na,\u00e9 \nb, e\u0301\nc,Dog\nd,dog\n")
    labels = load_table(tmp_path / "a.csv", Columns())["label"][:]
    assert find_labels(labels, None).names == ("Dog", "dog", "\u00e9")  # case is kept
    stored = find_labels([], None, ("e\u0301", "dog"))  # of a model of an earlier version
    assert stored.encode("\u00e9", "x") == 0 and stored.names == ("e\u0301", "dog")


def test_classes_of_a_parquet_file_of_datasets(tmp_path):
    names = datasets.ClassLabel(names=["low ", "high"])
    features = datasets.Features({"audio": datasets.Value("string"), "label": names})
    data = datasets.Dataset.from_dict({"audio": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    data.select([0, 1]).to_parquet(tmp_path / "a.parquet")
    assert load_table(tmp_path / "a.parquet", Columns())["label"][:] == ["high", "low"]
    data.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 3 has no audio or no label"):
        load_table(tmp_path / "a.parquet", Columns())


SAMPLES = tone(0.05)
WAV = as_stored({"array": SAMPLES, "sampling_rate": 16000})["bytes"]
AUDIO = {
    "arrays": {"array": SAMPLES.tolist(), "sampling_rate": 16000},
    "arrays with names": {"path": "gone.wav", "array": SAMPLES.tolist(), "sampling_rate": 16000},
    "channels": {"array": [SAMPLES.tolist(), SAMPLES.tolist()], "sampling_rate": 16000},
    "16-bit numbers": {"array": np.round(SAMPLES * 2**15).astype(np.int16), "sampling_rate": 16000},
    "bytes": WAV,
    "bytes without paths": {"bytes": WAV},
    "bytes with names": {"bytes": WAV, "path": "gone.wav"},
}


@pytest.mark.parametrize("has_null", [False, True], ids=["full", "null"])
@pytest.mark.parametrize("kind", AUDIO)
def test_audio_columns_of_every_kind(tmp_path, kind, has_null):
    """The same samples from memory, as a table, for pretraining, and streamed; a row without audio is told."""
    rows = [AUDIO[kind]] * 20 + [None] * has_null
    data = datasets.Dataset.from_dict({"audio": rows, "label": ["x"] * len(rows)})
    data.to_parquet(tmp_path / "a.parquet")
    standard, table = standardise("hub[train]", data, Columns()), load_table(tmp_path / "a.parquet", Columns())
    local = LocalClips("hub", data)
    streamed = list(StreamedClips("hub", data.to_iterable_dataset(), None).in_order())
    for clips in (standard["audio"][:], table["audio"][:], [local[index] for index in range(len(rows))], streamed):
        assert len(clips) == len(rows)
        tolerance = 2**-15 if kind == "16-bit numbers" else 1e-7
        np.testing.assert_allclose(read_audio(clips[0], 16000), SAMPLES, atol=tolerance)
        for clip in clips[20:]:
            with pytest.raises(InputError, match="holds no audio; record it again or leave it out"):
                read_audio(clip, 16000)
    for data in (standard, table):
        if has_null:
            with pytest.raises(InputError, match="^row 21 of .*: holds no audio"):
                check_files({"train": data})
        arguments = DataArguments(train_file="x.csv", on_bad_audio="skip")
        assert len(screen({"train": data}, arguments, tmp_path)["train"]) == 20


@pytest.mark.parametrize("as_paths", [False, True], ids=["bytes", "paths"])
def test_nulls_in_an_audio_column_of_datasets(tmp_path, as_paths):
    path = str(write_tone(tmp_path / "a.wav", seconds=0.05))
    row = path if as_paths else {"bytes": WAV, "path": "a.wav"}
    data = datasets.Dataset.from_dict({"audio": [row, None, row], "label": ["x"] * 3})
    for own in (data, data.cast_column("audio", datasets.Audio(decode=False))):
        with pytest.raises(InputError, match=r"^row 2 of hub\[train\]: holds no audio"):
            check_files({"train": standardise("hub[train]", own, Columns())})
        assert read_audio(LocalClips("hub", own)[2], 16000).shape == (800,)


def test_damaged_bytes_without_a_name_are_told_with_their_row():
    data = datasets.Dataset.from_dict({"audio": [{"bytes": WAV, "path": None}, {"bytes": b"x", "path": None}]})
    with pytest.raises(InputError, match="^row 2 of the train split: not readable as audio"):
        check_files({"train": standardise("hub", data.add_column("label", ["x", "y"]), Columns())})


@pytest.mark.parametrize("value", [[0.1, 0.2], 1.5, 7, {"x": 1}, None, [{"array": [0.1]}]], ids=str)
def test_other_audio_columns_have_a_remedy(value):
    data = datasets.Dataset.from_dict({"audio": [value], "label": ["x"]})
    for read in (
        lambda: standardise("hub", data, Columns()),
        lambda: LocalClips("hub", data),
        lambda: StreamedClips("hub", data.to_iterable_dataset(), None),
    ):
        with pytest.raises(
            InputError, match=r"hub: the audio column holds .*, not paths or audio; set audio_column, or"
        ):
            read()


@pytest.mark.parametrize(
    "sound",
    [
        {"array": None, "sampling_rate": 16000},
        {"array": [0.1], "sampling_rate": None},
        {"array": [0.1], "sampling_rate": -1},
        {"array": [[0.1], [0.2, 0.3]], "sampling_rate": 16000},
        {"array": [0.1]},
        {"array": ["x"], "sampling_rate": 16000},
        {"array": 3.0, "sampling_rate": 16000},
    ],
    ids=str,
)
def test_samples_that_are_none_are_one_line(sound):
    data = datasets.Dataset.from_dict({"audio": [sound], "label": ["x"]})
    with pytest.raises(InputError, match="^row 1 of hub: holds no audio"):
        check_files({"train": standardise("hub", data, Columns())})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["dog\n", " cat "], ["dog", "cat"]),
        ([1, 2], ["1", "2"]),
        ([1.0, 2.5], ["1", "2.5"]),
        ([True, False], ["True", "False"]),
        ([["a ", "b"], []], [["a", "b"], []]),
        ([["a", None], ["b"]], [["a"], ["b"]]),
    ],
)
def test_stored_labels_of_every_type(values, expected):
    data = datasets.Dataset.from_dict({"audio": ["x", "y"], "txt": values})
    assert standardise("hub", data, Columns(label="txt"))["label"][:] == expected


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        (["dog", None], "hub: 1 of 2 clips have no label, first row 2"),
        (["dog", " \n"], "hub: 1 of 2 clips have no label, first row 2"),
        ([[1], [2]], "hub: row 1: the label .* is a list of numbers"),
        ([{"a": 1}, {"a": 2}], "hub: row 1: the label .* has several entries"),
    ],
)
def test_stored_labels_that_are_none_are_told(values, pattern):
    with pytest.raises(InputError, match=pattern):
        standardise("hub", datasets.Dataset.from_dict({"audio": ["x", "y"], "label": values}), Columns())


def test_a_sample_without_its_json_member_is_told():
    rows = {"__key__": list("abc"), "audio": list("xyz"), "json": [{"label": "dog"}, None, {"label": "cat"}]}
    with pytest.raises(InputError, match="hub: 1 of 3 clips have no label, first row 2"):
        standardise("hub", datasets.Dataset.from_dict(rows), Columns())


@pytest.mark.parametrize(
    ("name", "text", "columns", "pattern"),
    [
        ("a.csv", "x,y\n1,2\n", Columns(), "which column is the audio\\? Set audio_column to one of x, y"),
        ("a.csv", "file_name,y\na.wav,2\n", Columns(), "which column is the label\\?"),
        ("a.csv", "file_name,label\na.wav,2\n", Columns(label="lable"), "no column 'lable'; it has file_name, label"),
        ("a.csv", "file_name,label\na.wav,x\nb.wav,\n", Columns(), r"row 2 \(line 3\) has no file_name or no label"),
        ("a.csv", 'file_name,label\n"a","x\n y"\n\nb,\n', Columns(), r"row 2 \(line 5\) has no file_name or no label"),
        ("a.csv", "file_name,label\n", Columns(), "has no rows"),
        ("a.csv", "", Columns(), "is empty; write a header and a row per clip"),
        ("a.csv", "file label\na.wav x\n", Columns(), "one of file label; cells must be separated by commas"),
        ("a.csv", "file,label,Label,label\na,x,y,z\n", Columns(), "2 columns are called label; rename all but one"),
        (
            "a.csv",
            "file,label\na,x,y\nb\nc,x\n",
            Columns(),
            r"row 1 \(line 2\) has 3 cells .* commas \(and 1 more rows",
        ),
        ("a.tsv", "file\tlabel\na\tx\nb\n", Columns(), r"row 2 \(line 3\) has 1 cells and the header 2; .* tabs"),
        ("a.csv", "file,label\0\n", Columns(), "holds NUL characters, so it is no text, or UTF-16 without a mark"),
        ("a.json", "{", Columns(), "not readable as a table"),
        ("a.json", "[" * 100000, Columns(), "not readable as a table"),
        ("a.json", '[{"file": "a.wav", "label": 1}, 3]', Columns(), "row 2 is not an object"),
        ("a.json", '[{"file": "a.wav", "label": 1}, {"file": "b.wav"}]', Columns(), "row 2 has no file or no label"),
        ("a.json", '{"file": ["a.wav"], "label": [1, 2]}', Columns(), "its columns differ in length"),
        ("a.json", '{"file": "a.wav", "label": 1}', Columns(), "holds no rows; write a list of rows"),
        ("a.json", '[["file", "label"], ["a", 1], ["b", 1, 2]]', Columns(), "row 2 .* has 3 cells and the header 2"),
        ("a.json", '[{"file": [0.1, 0.2], "label": 1}]', Columns(), "row 1 has a list in file, not a path or audio"),
        ("a.jsonl", '{"file": "a.wav", "label": 1}\n\n{"file": "b.w', Columns(), "line 3 is not JSON"),
        ("a.jsonl", '{"file": "a.wav", "label": 1}\n\n[1]', Columns(), "line 3 is not an object"),
        ("a.jsonl", '{"file": "a", "label": {"x": 1}}', Columns(), r"row 1 \(line 1\): the label .* several entries"),
        ("a.txt", "hello", Columns(), "has no rows"),
        ("a.xlsx", "hello", Columns(), "not readable as an Excel file .*; save it as CSV"),
        ("a.parquet", "hello", Columns(), "not readable as a table"),
        ("a.ods", "hello", Columns(), "unknown kind of table; known are .csv"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, name, text, columns, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        load_table(_table(tmp_path / name, text), columns)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_texts_of_a_table_are_left_as_they_are(tmp_path):
    path = _table(tmp_path / "a.csv", "file_name,label\n1,01\n2,None\n3,10\n4,NA\n5,nan\n6,1.0\n")
    data = load_table(path, Columns())
    assert data["label"][:] == ["01", "None", "10", "NA", "nan", "1.0"] and data["audio"][0] == str(tmp_path / "1")
    path = _table(tmp_path / "a.json", '[{"file": 1, "label": 2}, {"file": "x.wav", "label": "dog"}]')
    data = load_table(path, Columns())
    assert data["label"][:] == ["2", "dog"] and data["audio"][0] == str(tmp_path / "1")


def test_no_labels_are_an_answer_where_there_may_be_several(tmp_path):
    path = _table(tmp_path / "a.csv", "file_name,label\na.wav,x;y\nb.wav,\n")
    assert load_table(path, Columns(separator=";"))["label"][:] == [["x", "y"], []]


def test_lists_of_numbers_are_no_class_names(tmp_path):
    pandas.DataFrame({"file": ["a.wav"], "label": [[0, 1, 1]]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"label .* is a list of numbers; write lists of class names"):
        load_table(tmp_path / "a.parquet", Columns())


def test_times_that_are_none_are_told(tmp_path):
    write_tone(tmp_path / "a.wav", seconds=0.1)
    for time in ("soon", "nan", "inf", "1,5"):
        path = _table(tmp_path / "a.csv", f'file_name,label,start\na.wav,x,0\na.wav,y,"{time}"\n')
        with pytest.raises(
            InputError, match=rf"a.csv: row 2 \(line 3\) has '{time}' in start, not a number of seconds"
        ):
            load_table(path, Columns(start="start"))
    with pytest.raises(InputError, match="no column 'begin'"):
        load_table(path, Columns(start="begin"))
    _table(path, "file_name,label,start\na.wav,x,0\na.wav,y,7\n")
    with pytest.raises(InputError, match=r"a.wav#t=7: begins after the recording's end at 0.1 s"):
        check_files({"train": load_table(path, Columns(start="start"))})


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "sep.csv", "a.xlsx"])
def test_times_with_decimal_commas(tmp_path, name):
    """As Excel writes them in many countries; where commas separate cells, they are refused with the remedy."""
    rows = [["file", "label", "start", "end"], ["a.wav", "x", "0,5", "1,25"], ["a.wav", "y", "2", ""]]
    path = tmp_path / name
    if name.endswith("xlsx"):
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)
    else:
        mark = "\t" if name.endswith("tsv") else ";"
        _table(path, ("sep=;\n" if name == "sep.csv" else "") + "\n".join(map(mark.join, rows)) + "\n")
    data = load_table(path, Columns(start="start", end="end"))
    assert (data["start"][:], data["end"][:]) == ([0.5, 2.0], [1.25, None])
    path = _table(tmp_path / "b.csv", 'file,label,start\na.wav,x,"0,5"\n')
    with pytest.raises(InputError, match="has '0,5' in start, not a number of seconds; write it with a point"):
        load_table(path, Columns(start="start"))
    path = _table(tmp_path / "b.jsonl", '{"file": "a.wav", "label": "x", "start": true}\n')
    with pytest.raises(InputError, match="has True in start, not a number of seconds; correct it"):
        load_table(path, Columns(start="start"))


@pytest.mark.parametrize("stored", [False, True])
def test_addresses_in_tables_are_refused(tmp_path, stored):
    """The address was taken as a path below the folder of the table."""
    name = "https://example.org/a/b.wav"
    row = {"audio": {"path": name} if stored else name, "label": "x"}
    path = _table(tmp_path / "a.jsonl", json.dumps(row) + "\n")
    pattern = rf"row 1 \(line 1\) has the address {name}, and tables name files; download the clips"
    for load in (lambda: load_table(path, Columns()), lambda: load_table_as_it_stands(path)):
        with pytest.raises(InputError, match=pattern):
            load()


def test_one_label_and_several_in_one_table(tmp_path):
    path = _table(tmp_path / "a.jsonl", '{"file": "a.wav", "label": ["x", "y"]}\n{"file": "b.wav", "label": "x"}\n')
    assert load_table(path, Columns())["label"][:] == [["x", "y"], ["x"]]
    _table(path, '{"file": "a.wav", "label": "x, y"}\n{"file": "b.wav", "label": null}\n')
    assert load_table(path, Columns(separator=","))["label"][:] == [["x", "y"], []]


@pytest.mark.parametrize("name", ["fold", "group"])
def test_clips_without_a_group_are_not_a_group(tmp_path, name):
    path = _table(tmp_path / "clips.csv", "audio,label,who\na,x,p\nb,x, \nc,x,q\n")
    with pytest.raises(InputError, match=r"clips.csv: row 2 \(line 3\) has nothing in who; fill it in, or leave"):
        load_table(path, Columns(**{name: "who"}))


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("a.txt", "dog\ncat\ndog\n", "names the label 'dog' twice"),
        ("a.txt", "\u00e9\ne\u0301\n", "names the label '\u00e9' twice"),
        ("a.json", '{"data": []}', "holds no labels; write one per line"),
        ("a.txt", "\n", "holds no labels"),
        ("a.csv", "index,mid,display_name\n0,/m/1,dog\n2,/m/2,cat\n", "the indices must be 0 to 1, each once"),
        ("a.csv", "index,mid,display_name\n0,/m/1,dog\n1,/m/2,dog\n", "names the label 'dog' twice"),
        ("a.csv", "index,mid,display_name\n0,/m/1,dog\n1,/m/2,\n", "line 3 needs index,mid,display_name"),
        ("a.csv", "index,mid,display_name\n\u00b2,/m/1,dog\n", "line 2 needs index,mid,display_name"),
        ("a.csv", 'index,mid,display_name\n0,/m/1,"dog\n1,/m/2,cat\n', "line 2 has a quote that is not closed"),
    ],
)
def test_bad_label_files_are_told(tmp_path, name, content, pattern):
    with pytest.raises(InputError, match=pattern):
        read_label_file(_table(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", b"\xef\xbb\xbfdog\ncat\n"),
        ("a.txt", "dog \r\rcat".encode("utf-16")),
        ("a.csv", b"index;mid;display_name\n1;/m/1;cat\n0;/m/0; dog\n"),
    ],
)
def test_label_files_are_read_by_the_rules_of_tables(tmp_path, name, text):
    assert list(read_label_file(_table(tmp_path / name, text)).values()) == ["dog", "cat"]
