"""Tests maps of collections: the same map for the same seed, groups and colours, the table, and the page."""

import base64
import html
import json
import re
import sys
from urllib.parse import unquote

import numpy as np
import pandas
import pytest
from audio_files import write_tone
from awful_names import AWFUL_NAMES
from pages import open_page
from selenium.webdriver.common.keys import Keys

from training import map as program
from training.base.figures import COLOURS
from training.embeddings import map_page
from training.embeddings.maps import MARKERS, MISSING, OTHER, as_text, group, project
from training.embeddings.stored import read_embeddings
from training.errors import InputError, printable

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
HOSTILE = ("</script><script>document.title='run'</script>", "<img src=x onerror=document.title='run'>", "'\"&lt;$x_2$")


def clusters(count: int = 60, groups: int = 3, size: int = 16, seed: int = 0):
    """Returns vectors about a few directions, and the group of each."""
    rng = np.random.default_rng(seed)
    members = np.arange(count) % groups
    return (rng.normal(size=(groups, size))[members] + 0.2 * rng.normal(size=(count, size))).astype("f4"), members


def write(path, names=None, count: int = 60, **columns):
    vectors, _ = clusters(count)
    names = [f"{index}.wav" for index in range(count)] if names is None else names
    columns = {name: np.array(values) for name, values in columns.items()}
    np.savez(path, file_name=np.array(names), embedding=vectors, **columns)
    return path


def draw(*words) -> int:
    return program.main([str(word) for word in words])


def data_of(folder) -> dict:
    return json.loads(DATA.search((folder / "map.html").read_text(encoding="utf-8"))[1])


def test_a_table_that_is_read_is_not_replaced(tmp_path, capsys):
    folder = tmp_path / "map"
    folder.mkdir()
    table = pandas.DataFrame({"file_name": [f"{index}.wav" for index in range(60)], "label": ["a", "b"] * 30})
    table.to_csv(folder / "map.csv", index=False)
    before = (folder / "map.csv").read_bytes()
    assert draw(write(tmp_path / "e.npz"), folder, "--labels", folder / ".." / "map" / "map.csv") == 1
    assert "error: output: " in (error := capsys.readouterr().err) and "map.csv is read here, and would be" in error
    assert (folder / "map.csv").read_bytes() == before and len(list(folder.iterdir())) == 1


METHODS = [pytest.param("umap", marks=pytest.mark.slow), "tsne"]  # umap-learn is compiled at its first call


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_map_and_groups_lie_apart(method):
    vectors, members = clusters(90)
    places = project(vectors, method, seed=1)
    assert places.shape == (90, 2) and places.dtype == np.float32 and np.isfinite(places).all()
    np.testing.assert_array_equal(project(vectors * 4, method, seed=1), places)  # cosines have no lengths
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag([np.inf] * 90)
    assert (members[distances.argmin(axis=1)] == members).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [5, 17])
def test_few_clips_have_a_map(method, count):
    places = project(clusters(count)[0], method, seed=0)
    assert places.shape == (count, 2) and np.isfinite(places).all()


def test_a_group_for_each_class_and_one_for_the_smallest():
    found = group("label", ["b", "a", "b", None, "", float("nan"), "c"])
    assert found.names == ["b", "a", "c", "no label"] and found.counts() == [2, 1, 1, 3]
    assert found.colours == [*COLOURS[:3], MISSING] and found.markers == [*MARKERS[:3], "o"]
    assert found.members.tolist() == [0, 1, 0, 3, 3, 3, 2]
    values = [f"class {index:02}" for index in range(12) for _ in range(13 - index)]
    found = group("label", values)
    assert found.names == [*(f"class {index:02}" for index in range(8)), "other: 4 classes"]
    assert found.counts() == [13, 12, 11, 10, 9, 8, 7, 6, 5 + 4 + 3 + 2] and found.colours == [*COLOURS, OTHER]
    found = group("label", [str(index) + "x" for index in range(9)])
    assert found.names[-1] == "8x" and found.colours[-1] == OTHER  # one class is not "other: 1 classes"
    assert group("label", [["b", "a"], ["b", "a"], []]).names == ["b, a", "no label"]


def test_many_numbers_are_ranges_with_as_many_clips():
    values = [str(value) for value in np.random.default_rng(0).permutation(700) / 10]
    found = group("seconds", [*values, None])
    assert len(found.names) == 8 and found.names[0].startswith("0 to ") and found.names[-1] == "no seconds"
    assert all(99 <= count <= 101 for count in found.counts()[:-1]) and len(set(found.colours)) == 8
    for value, member in zip(values, found.members):
        low, high = map(float, found.names[member].split(" to "))
        assert low <= float(value) <= high
    assert group("fold", list(map(str, range(5)))).colours == list(COLOURS[:5])  # few numbers are classes
    assert group("x", ["1e400", *map(str, range(9))]).names[-1] == "other: 2 classes"  # not a finite number
    assert as_text(0) == "0" and as_text(" a ") == "a"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Six clusters of tones, one of which has no recording, with tables of labels."""
    folder = tmp_path_factory.mktemp("collection")
    names = [f"clips/{index} <i> #?%41.wav" for index in range(12)]
    for index, name in enumerate(names[1:], start=1):
        write_tone(folder / name, seconds=11.0 if index == 2 else 0.3, hz=300 * (1 + index % 3), rate=22050)
    write(folder / "all.npz", names, 12, label=[HOSTILE[index % 3] for index in range(12)], odd=AWFUL_NAMES[:12])
    table = pandas.DataFrame({"file": names, "prediction": ["a", "b", "b", "a"] * 3, "label": "x"})
    table[:8].to_csv(folder / "train.csv", index=False)
    table[8:11].to_csv(folder / "test.csv", index=False)
    return folder


def names_of(collection) -> list[str]:
    return read_embeddings(collection / "all.npz").names


@pytest.mark.figures
def test_a_map_leaves_pictures_a_table_and_a_page(collection, tmp_path, capsys):
    assert draw(collection / "all.npz", tmp_path / "one", "--method", "tsne") == 0
    printed = capsys.readouterr()
    assert "1 of 12 recordings cannot be played" in printed.err and f"{printable(HOSTILE[0])}: 4" in printed.out
    assert draw(collection / "all.npz", tmp_path / "two", "--method", "tsne", "--figure_format", "svg") == 0
    one, two = ({path.name: path for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert {*one} == {"map.png", "map.pdf", "map.csv", "map.csv.about.json", "map.html"}
    assert {*two} == {*one} - {"map.pdf"} | {"map.svg"}
    assert one["map.pdf"].read_bytes().startswith(b"%PDF")
    for name in ("map.csv", "map.html"):
        assert one[name].read_bytes() == two[name].read_bytes()
    table = pandas.read_csv(one["map.csv"], keep_default_na=False)
    assert list(table) == ["file_name", "label", "odd", "coloured_as", "x", "y"] and len(table) == 12
    assert table["label"].tolist() == [HOSTILE[index % 3] for index in range(12)] and table["x"].nunique() == 12
    about = json.loads(one["map.csv.about.json"].read_text())
    assert (about["method"], about["seed"], about["coloured_by"]) == ("tsne", 0, "label")


@pytest.mark.figures
def test_the_page_escapes_everything_and_holds_the_sounds(collection, tmp_path):
    assert draw(collection / "all.npz", tmp_path, "--method", "tsne") == 0
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 3 and "onerror" in text and "<img src=x" not in text
    data = data_of(tmp_path)
    assert data["names"] == [f"{index} <i> #?%41.wav" for index in range(12)]
    assert data["cells"][0] == [HOSTILE[index % 3] for index in range(12)]
    assert data["cells"][1] == [printable(name.strip()) for name in AWFUL_NAMES[:12]]
    assert all(html.escape(label, quote=False).split("&")[0] in text for label in HOSTILE)
    assert data["sounds"][0] == "" and all(uri.startswith("data:audio/mpeg;base64,") for uri in data["sounds"][1:])
    assert base64.b64decode(data["sounds"][1].partition(",")[2])
    assert "of 1 only the first 10 s" in text and "1 recordings were not found" in text
    assert len(data["near"]) == 12 and all(len(row) == 10 for row in data["near"])
    assert all(own not in row for own, row in enumerate(data["near"]))
    assert all(row == sorted(row, reverse=True) for row in data["cosines"])
    for axis in ("x", "y"):
        assert min(data[axis]) >= 0 and max(data[axis]) <= data["steps"]


def test_sounds_are_linked_where_there_is_no_room(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(map_page, "MOST_SOUND_BYTES", 30_000)
    out = tmp_path / "out"
    assert draw(collection / "all.npz", out, "--method", "tsne") == 0
    data, text = data_of(out), (out / "map.html").read_text(encoding="utf-8")
    assert data["sounds"][0] == "" and "media-src data: 'self' file:;" in text
    for index in range(1, 12):
        assert "#" not in data["sounds"][index] and "?" not in data["sounds"][index]
        assert (out / unquote(data["sounds"][index])).samefile(collection / f"clips/{index} <i> #?%41.wav")
    assert draw(collection / "all.npz", out, "--method", "tsne", "--sounds", "embedded") == 0
    data, text = data_of(out), (out / "map.html").read_text(encoding="utf-8")
    assert 0 < sum(map(len, data["sounds"])) <= 30_000 and "had no room" in text and "media-src data:;" in text
    assert draw(collection / "all.npz", out, "--method", "tsne", "--sounds", "none") == 0
    assert not any(data_of(out)["sounds"]) and "<audio" not in (out / "map.html").read_text(encoding="utf-8")


def test_tables_of_labels_join_by_file(collection, tmp_path, capsys):
    words = (collection / "all.npz", tmp_path, "--method", "tsne", "--sounds", "none")
    assert draw(*words, "--colour", "prediction", "--labels", collection / "train.csv") == 0
    printed = capsys.readouterr()
    assert "4 of 12 clips are in no table of --labels" in printed.err
    assert printed.out.splitlines()[:3] == ["a: 4", "b: 4", "no prediction: 4"]
    assert draw(*words, "--colour", "split", "--labels", collection / "train.csv", collection / "test.csv") == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["train: 8", "test: 3", "no split: 1"]
    table = pandas.read_csv(tmp_path / "map.csv")
    assert list(table) == ["file_name", "odd", "prediction", "label", "split", "coloured_as", "x", "y"]
    assert table["label"].tolist()[:11] == ["x"] * 11 and table["label"].isna()[11]
    assert draw(*words, "--colour", "folder") == 0
    assert capsys.readouterr().out.splitlines()[0] == "clips: 12"
    few = pandas.DataFrame({"file": names_of(collection)[:3], "label": pandas.array([1, 0, None], "Int64")})
    few.to_parquet(collection / "few.parquet")
    assert draw(*words, "--labels", collection / "few.parquet") == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["0: 1", "1: 1", "no label: 10"]
    pandas.DataFrame({"file": names_of(collection)[:3]}).to_csv(collection / "bare.csv", index=False)
    assert draw(*words, "--labels", collection / "bare.csv", collection / "train.csv") == 0
    assert capsys.readouterr().out.splitlines()[0] == "x: 5"  # the first table has the first three clips
    # Stored audio has its name beside it, wherever the table is.
    (tmp_path / "hub").mkdir()
    audio = [{"bytes": b"x", "path": name} for name in names_of(collection)[:2]]
    pandas.DataFrame({"audio": audio, "label": ["a", "b"]}).to_parquet(tmp_path / "hub" / "train.parquet")
    assert draw(*words, "--labels", tmp_path / "hub" / "train.parquet") == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["a: 1", "b: 1", "no label: 10"]
    # Names that are relative to other folders are the same recordings.
    names = [str(collection / f"clips/{index} <i> #?%41.wav") for index in range(1, 12)]
    write(tmp_path / "whole.npz", names, 11)
    words = (tmp_path / "whole.npz", *words[1:])
    assert draw(*words, "--labels", collection / "train.csv") == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["x: 7", "no label: 4"]


def test_of_many_clips_a_sample(tmp_path, capsys):
    table = write(tmp_path / "some.npz", count=60)
    words = (table, tmp_path, "--method", "tsne", "--most_clips", "20")
    assert draw(*words) == 0
    first = pandas.read_csv(tmp_path / "map.csv")["file_name"].tolist()
    assert len(set(first)) == 20 and "20 of 60 clips are drawn, a random sample" in capsys.readouterr().err
    assert "20 clips, a random sample of 60" in (tmp_path / "map.html").read_text(encoding="utf-8")
    assert draw(*words) == 0
    assert pandas.read_csv(tmp_path / "map.csv")["file_name"].tolist() == first
    assert draw(*words, "--seed", "1") == 0
    assert pandas.read_csv(tmp_path / "map.csv")["file_name"].tolist() != first


def test_bad_calls_are_one_line(tmp_path, capsys, monkeypatch):
    table = write(tmp_path / "some.npz", count=6, kind=list("aabbcc"))
    few = write(tmp_path / "few.npz", count=4)
    pandas.DataFrame({"file": ["x.wav", "x.wav"], "label": "a"}).to_csv(tmp_path / "twice.csv", index=False)
    pandas.DataFrame({"file": ["x.wav"], "label": "a"}).to_csv(tmp_path / "other.csv", index=False)
    (tmp_path / "file").touch()
    for words, message in (
        ([table], "usage: python -m training.map"),
        ([few, tmp_path / "out"], "has 4 clips, a map needs 5 or more; embed more"),
        ([table, tmp_path / "file"], "is not a folder"),
        ([table, tmp_path / "out", "--colour", "kinds"], "colour: there is no column kinds; did you mean kind?"),
        ([table, tmp_path / "out", "--method", "pca"], "method: must be umap or tsne, got 'pca'"),
        ([table, tmp_path / "out", "--labels", tmp_path / "twice.csv"], "x.wav twice; leave one row of each"),
        ([table, tmp_path / "out", "--labels", tmp_path / "other.csv"], "has no row of these clips, such as 0.wav"),
        ([table, tmp_path / "out", "--labels", tmp_path / "no.csv"], "no such file"),
    ):
        assert draw(*words) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="pip install umap-learn, or take --method tsne"):
        project(clusters(9)[0], "umap", 0)


STATE = "return [chosen, player.currentTime > 0 || player.ended, get('sound').textContent, seen.length, under]"


def wait_for(browser, is_reached):
    """Returns the page's state as soon as it is reached; the test's own check fails otherwise."""
    return browser.execute_async_script(
        f"""const done = arguments[0], end = performance.now() + 10000;
        (function look() {{
          const state = (() => {{ {STATE} }})();
          if ((() => {{ {is_reached} }})() || performance.now() > end) done(state); else setTimeout(look, 20);
        }})();"""
    )


@pytest.mark.parametrize("sounds", ["embedded", "linked"])
def test_a_browser_chooses_by_keyboard_and_pointer_and_plays(browser, collection, tmp_path, sounds):
    assert draw(collection / "all.npz", tmp_path, "--method", "tsne", "--sounds", sounds) == 0
    page = tmp_path / "map.html"
    for theme, width in (("dark", 390), ("light", 1280)):
        asked = open_page(browser, page, theme, width)
        assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.title == "Map of all.npz: map"
    # By keyboard: nothing is chosen, then the clip in the middle, then one beside it.
    assert browser.execute_script(STATE)[0] == -1
    browser.find_element("tag name", "h1").click()  # no page may play before its reader has touched it
    canvas = browser.find_element("id", "plane")
    browser.execute_script("arguments[0].focus()", canvas)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    first = browser.execute_script(STATE)[0]
    data = data_of(tmp_path)
    key, sign = (Keys.ARROW_RIGHT, 1) if data["x"][first] < max(data["x"]) else (Keys.ARROW_LEFT, -1)
    for _ in data["x"]:
        browser.switch_to.active_element.send_keys(key)
    last = browser.execute_script(STATE)[0]
    assert first >= 0 and (data["x"][last] - data["x"][first]) * sign >= 0
    browser.execute_script("choose(2)")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    chosen, played, said, seen, _ = wait_for(browser, "return state[1]")
    assert (chosen, played, seen) == (2, True, 12) and said == "sound: 2 <i> #?%41.wav"
    shown = browser.find_element("id", "chosen").text
    assert "2 <i> #?%41.wav" in shown and HOSTILE[2] in shown
    near = browser.find_elements("css selector", "#near .go")
    assert [one.text for one in near] == [data["names"][other] for other in data["near"][2]]
    near[0].click()
    assert browser.execute_script(STATE)[0] == data["near"][2][0]
    browser.execute_script("choose(0)")
    assert browser.execute_script(STATE)[2] == "no sound: 0 <i> #?%41.wav"
    # The clip under the pointer plays.
    browser.execute_script(
        "const [x, y] = place(5), box = canvas.getBoundingClientRect();"
        "canvas.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + x, clientY: box.top + y}))"
    )
    state = wait_for(browser, "return state[4] === 5 && state[1] && state[2].startsWith('sound: 5 ')")
    assert state[1] and state[4] == 5 and state[2] == "sound: 5 <i> #?%41.wav"
    # A filter leaves the clips of two labels.
    browser.find_element("css selector", "input.group").click()
    assert browser.execute_script(STATE)[3] == 8 and browser.find_element("id", "count").text == "8 of 12 clips"
    browser.find_element("id", "find").send_keys("10 ")
    assert browser.execute_script(STATE)[3] == 1
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
