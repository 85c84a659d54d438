"""Tests how clips are divided into parts, read in stretches, and joined again: nothing depends on the cuts."""

import itertools
import json
import os
import threading

import numpy as np
import pandas
import pytest
import soundfile
import torch
from audio_files import tone, write_tone
from tiny_models import save_tiny_classifier, save_tiny_cnn
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

import embed_hf
import predict_hf
from modeling_dual_ssast.embedding_dual_ssast import window_starts
from training.data import formats, recordings
from training.data.audio import num_samples, read_audio, read_stretch
from training.errors import InputError
from training.inference import plan
from training.inference.engine import read_ahead
from training.inference.processes import Processes, start_processes
from training.inference.shards import Part, Segment, Shards

RATE = 16000
EPSILON = np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_classifier(tmp_path_factory.mktemp("model"), initializer_range=0.3)


@pytest.fixture
def short_parts(monkeypatch):
    """Cuts as if seconds were minutes."""
    for name, value in (("PART_S", 2), ("STRETCH_S", 1)):
        monkeypatch.setattr(plan, name, value)


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [("a.wav", 44100, 2), ("a.flac", 8000, 1), ("a.ogg", 48000, 2), ("a.opus", 48000, 1), ("a.mp3", 22050, 1),
     ("a.wav", 11025, 1), ("a.wav", RATE, 3), ("a.flac", RATE, 1)],
)  # fmt: skip
@pytest.mark.parametrize("segment", [None, (1.3, 6.28)])
def test_stretches_are_those_of_the_whole_clip(tmp_path, name, rate, channels, segment):
    options = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    soundfile.write(tmp_path / name, tone(7.77, rate, channels=channels, seed=1), rate, **options)
    source = {"path": str(tmp_path / name)}
    if segment:
        source |= dict(zip(("start", "end"), segment))
    whole = read_audio(source, RATE)
    assert num_samples(source, RATE) == len(whole)
    edges = [0, 1, 15999, 16000, 16001, 37123, len(whole) - 1, len(whole)]
    for start, stop in itertools.combinations(edges, 2):
        part = read_stretch(source, RATE, start, stop)
        # Sums of some hundred products, rounded in another order.
        np.testing.assert_allclose(part, whole[start:stop], rtol=0, atol=0 if rate == RATE else 16 * EPSILON)
    assert len(read_stretch(source, RATE, 0, len(whole) + 5 * RATE)) == len(whole)


@pytest.mark.parametrize(("codec", "container"), [("aac", "ipod"), ("libopus", "matroska")])
def test_files_of_pyav_are_decoded_once(tmp_path, monkeypatch, codec, container):
    pytest.importorskip("av")
    from audio_encodings import encoded_by_pyav

    (tmp_path / "a.m4a").write_bytes(encoded_by_pyav(tone(9.3, 48000, channels=2), 48000, codec, container))
    opened, original = [], recordings.Decoder
    monkeypatch.setattr(recordings, "Decoder", lambda *words: opened.append(words) or original(*words))
    monkeypatch.setattr(formats, "KEPT_S", 2)
    for source in (str(tmp_path / "a.m4a"), {"path": "a", "bytes": (tmp_path / "a.m4a").read_bytes()}):
        for rate in (48000, RATE):
            whole = read_audio(source, rate)
            follow = recordings.Following()
            edges = [0, rate // 2, rate, 3 * rate, 3 * rate + 77, 8 * rate, len(whole)]
            num_samples(source, rate)
            opened.clear()
            for start, stop in itertools.pairwise(edges):
                start = max(start - rate // 3, 0)  # windows overlap
                part = read_stretch(source, rate, start, stop, follow)
                np.testing.assert_allclose(part, whole[start:stop], rtol=0, atol=16 * EPSILON)
            # Of bytes nothing is known before each stretch.
            assert sum(words[0] is follow.file for words in opened) == 1
            np.testing.assert_allclose(
                read_stretch(source, rate, 9, 99, follow), whole[9:99], rtol=0, atol=16 * EPSILON
            )
            follow.close()


def test_bad_samples_are_refused_where_they_are(tmp_path):
    samples = tone(5.0)
    samples[4 * RATE] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert len(read_stretch(str(tmp_path / "a.wav"), RATE, 0, 3 * RATE)) == 3 * RATE
    with pytest.raises(InputError, match=r"a\.wav: holds 1 NaN or infinite samples"):
        read_stretch(str(tmp_path / "a.wav"), RATE, 3 * RATE, 5 * RATE)


@pytest.mark.parametrize("seed", range(5))
def test_every_window_is_in_one_part_in_order(short_parts, seed):
    rng = np.random.default_rng(seed)
    window, hop = int(rng.integers(50, 3000)), int(rng.integers(20, 50))
    lengths = [int(10 ** rng.uniform(0, 4.5)) for _ in range(40)]
    clips = [plan.Clip(index, f"{index}", "x", length if index % 7 else 0) for index, length in enumerate(lengths)]
    rate = 1000
    parts = plan.cut(clips, lambda length: (window_starts(length, window, hop), window), rate)
    assert all(parts)
    stretches = list(itertools.chain(*parts))
    numbers = [stretch.clip.number for stretch in stretches]
    assert numbers == sorted(numbers) and set(numbers) == set(range(40))
    for clip in clips:
        own = [stretch for stretch in stretches if stretch.clip is clip]
        starts = window_starts(clip.length, window, hop) if clip.length else []
        assert np.concatenate([stretch.starts for stretch in own]).tolist() == starts
        assert [stretch.is_last for stretch in own] == [False] * (len(own) - 1) + [True]
        assert sum(stretch.share for stretch in own) == pytest.approx(1)
        assert own[-1].stop == clip.length
    for part in parts:
        seconds = sum(stretch.stop - stretch.start for stretch in part) / rate
        assert seconds <= plan.PART_S or (len(part) == 1 and len(part[0].starts) == 1)


def test_reading_ahead_keeps_the_order_and_a_limit():
    running, most, lock = set(), [], threading.Lock()

    def read(item):
        with lock:
            running.add(item)
            most.append(len(running))
        return item

    found = []
    for item in read_ahead(iter(range(50)), read, 3, size=lambda item: 10, most=15):
        running.discard(item)
        found.append(item)
    assert found == list(range(50)) and max(most) <= 3
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(iter(range(9)), lambda item: 1 // (item - 5), 2))
    assert list(read_ahead(iter("ab"), str.upper, 0)) == ["A", "B"]


@pytest.fixture
def clips(tmp_path):
    for index, seconds in enumerate((0.3, 7.3, 0.5, 1.9, 0.01)):
        write_tone(tmp_path / "clips" / f"{index}.wav", seconds=seconds, rate=(16000, 44100)[index % 2], seed=index)
    return tmp_path / "clips"


def waveforms(clips) -> dict[str, np.ndarray]:
    return {str(file): read_audio(str(file), RATE) for file in sorted(clips.glob("*.wav"))}


def test_scores_do_not_depend_on_the_cuts(model_folder, clips, tmp_path, short_parts):
    output, windows = tmp_path / "scores.parquet", tmp_path / "windows.parquet"
    words = [str(model_folder), str(clips), "--output", str(output), "--windows", str(windows), "--hop_s", "0.21"]
    assert predict_hf.main(words) == 0
    scores, by_window = pandas.read_parquet(output).set_index("file"), pandas.read_parquet(windows)
    model = AutoModelForAudioClassification.from_pretrained(model_folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(model_folder)
    names = [f"probability_{name}" for name in model.config.id2label.values()]
    for file, waveform in waveforms(clips).items():
        expected = model.classify_windows(waveform, extractor, hop_s=0.21, average=False)
        own = by_window[by_window["file"] == file]
        # The resampler's rounding is that share of the noise, whose logarithm the model gets; twice, for the power.
        atol = 2 * 16 * EPSILON / 0.01 if file.endswith("1.wav") else 1e-5
        np.testing.assert_allclose(own[names], model.probabilities(expected.logits), atol=atol)
        np.testing.assert_allclose(own["start_s"], expected.start_s, atol=1e-6)
        np.testing.assert_allclose(own["end_s"], expected.end_s, atol=1e-6)
        mean = model.probabilities(expected.logits.mean(dim=0))
        np.testing.assert_allclose(scores.loc[file, names].astype(float), mean, atol=atol)


@pytest.mark.parametrize("level", ["clip", "frames"])
@pytest.mark.parametrize("family", ["dual_ssast", "vggish"])
def test_embeddings_do_not_depend_on_the_cuts(model_folder, clips, tmp_path, short_parts, level, family):
    folder = model_folder if family == "dual_ssast" else save_tiny_cnn(tmp_path / "cnn", family)
    words = ["--window_s", "2.1"] if family == "vggish" else []
    output = tmp_path / "out.parquet"
    assert embed_hf.main([str(folder), str(clips), "--output", str(output), "--level", level, *words]) == 0
    table, model = pandas.read_parquet(output), AutoModel.from_pretrained(folder)
    options = {"window_s": 2.1} if words else {}
    for file, waveform in waveforms(clips).items():
        own = table[table["file_name"] == file]
        found = np.stack(list(own["embedding"]))
        if level == "clip":
            expected = model.embed(waveform, RATE, **options)
        else:
            expected, time_ms = model.embed_frames(waveform, RATE, **options)[0]
            np.testing.assert_allclose(own["time_ms"], time_ms)
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(found).max()))


def test_a_clip_that_fails_in_its_middle_gives_nothing(model_folder, clips, tmp_path, short_parts, monkeypatch, capsys):
    def read(source, rate, start, stop, *others):
        if "1.wav" in source["path"] and start > 5 * RATE:
            raise InputError(f"{source['path']}: damaged; repair it")
        return read_stretch(source, rate, start, stop, *others)

    monkeypatch.setattr(plan, "read_stretch", read)
    output, windows = tmp_path / "scores.csv", tmp_path / "windows.csv"
    assert predict_hf.main([str(model_folder), str(clips), "--output", str(output), "--windows", str(windows)]) == 1
    printed = capsys.readouterr()
    assert f"error: {clips / '1.wav'}: damaged; repair it" in printed.err and len(printed.out.splitlines()) == 4
    for table in map(pandas.read_csv, (output, windows)):
        assert {os.path.basename(file) for file in table["file"]} == {"0.wav", "2.wav", "3.wav", "4.wav"}
    listed = pandas.read_csv(tmp_path / "scores.csv.unreadable.csv")
    assert listed.values.tolist() == [[str(clips / "1.wav"), "damaged; repair it"]]
    assert (
        embed_hf.main([str(model_folder), str(clips), "--output", str(tmp_path / "out.npz"), "--level", "frames"]) == 0
    )
    assert str(clips / "1.wav") not in np.load(tmp_path / "out.npz")["file_name"]


def test_a_file_that_holds_less_than_its_header_says_gives_what_it_holds(
    model_folder, clips, tmp_path, short_parts, monkeypatch
):
    def read(source, rate, start, stop, *others):
        return read_stretch(source, rate, min(start, 4 * RATE), min(stop, 4 * RATE), *others)

    monkeypatch.setattr(plan, "read_stretch", read)
    windows = tmp_path / "windows.csv"
    assert predict_hf.main([str(model_folder), str(clips), "--windows", str(windows)]) == 0
    table = pandas.read_csv(windows)
    own = table[table["file"] == str(clips / "1.wav")]
    assert 3.5 < own["start_s"].max() < 4 and not table.isna().any().any()


def test_a_stopped_prediction_goes_on_to_the_same_tables(
    model_folder, clips, tmp_path, short_parts, monkeypatch, capsys
):
    (clips / "broken.wav").write_bytes(b"RIFFrubbish")

    def run(name: str, *words) -> int:
        words = [
            "--output",
            tmp_path / f"{name}.csv",
            "--windows",
            tmp_path / f"{name}.jsonl",
            "--shard_clips",
            "2",
            *words,
        ]
        return predict_hf.main([str(word) for word in (model_folder, clips, *words)])

    assert run("whole") == 1
    printed = capsys.readouterr().out
    original, saved = Shards.save, []

    def save(self, shard, number, count, part):
        if len(saved) % 3 == 2:
            saved.append(None)
            raise KeyboardInterrupt
        saved.append((shard, number, count))
        original(self, shard, number, count, part)

    monkeypatch.setattr(Shards, "save", save)
    statuses = [run("stopped")]
    assert f"interrupted; {predict_hf.KEPT}" in capsys.readouterr().err
    assert run("stopped", "--window_s", "0.3") == 1
    assert "stopped.csv.shards: was made with settings.window_s None, now 0.3;" in capsys.readouterr().err
    while statuses[-1] == 130:
        statuses.append(run("stopped"))
    last = capsys.readouterr()
    assert "goes on: 0 of 3 shards are done, and 2 parts of others" in last.err
    assert "goes on: 1 of 3 shards are done" in last.err
    assert statuses.count(130) >= 2 and statuses[-1] == 1 and last.out.endswith(printed)
    done = [key for key in saved if key]
    assert len(done) == len(set(done)) == sum(1 for key in set(done))  # nothing is computed twice
    for ending in ("csv", "jsonl", "csv.unreadable.csv"):
        assert (tmp_path / f"stopped.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not list(tmp_path.glob("*.shards"))


def test_shares_on_machines_that_do_not_know_each_other(model_folder, clips, tmp_path, capsys):
    words = [str(model_folder), str(clips), "--shard_clips", "1", "--output"]
    whole, shared = str(tmp_path / "whole.csv"), str(tmp_path / "shared.csv")
    assert predict_hf.main([*words, whole]) == 0
    printed = capsys.readouterr().out
    for share in ("2/2", "1/2"):
        assert predict_hf.main([*words, shared, "--share", share]) == 0
        output = capsys.readouterr()
        assert output.out == "" and f"share {share} is done" in output.err and not os.path.exists(shared)
    assert predict_hf.main([*words, shared]) == 0
    output = capsys.readouterr()
    assert "goes on: 5 of 5 shards are done" in output.err and output.out == printed
    with open(whole, "rb") as one, open(shared, "rb") as two:
        assert one.read() == two.read()


def test_every_shard_has_one_owner():
    processes = [Processes(index, 2, share, 3) for index in range(2) for share in range(3)]
    assert all(sum(process.owns(shard) for process in processes) == 1 for shard in range(20))
    assert start_processes("2/5").share == 1 and start_processes().is_alone
    for share in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(InputError, match="share: must be I/N"):
            start_processes(share)


def test_a_folder_that_another_process_has_removed_is_told(tmp_path):
    shards = Shards(tmp_path / "s", 1, 1, {})
    shards.prepare()
    shards.remove()
    with pytest.raises(InputError, match="was removed by another process"):
        shards.save(0, 0, 1, Part([Segment(0, "a", 1, 1)], {"x": np.zeros((1, 1))}))


def test_a_run_of_another_version_does_not_go_on(tmp_path):
    shards = Shards(tmp_path / "s", 1, 1, {"model": "a"})
    description = dict(shards.description)
    del description["format"]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "shards.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="was made with format None"):
        shards.prepare()


def test_no_gradients_are_kept(model_folder, clips, monkeypatch):
    states = []
    original = torch.nn.Module.__call__
    monkeypatch.setattr(
        torch.nn.Module,
        "__call__",
        lambda self, *a, **k: (states.append(torch.is_grad_enabled()), original(self, *a, **k))[1],
    )
    assert predict_hf.main([str(model_folder), str(clips / "0.wav")]) == 0
    assert states and not any(states)
