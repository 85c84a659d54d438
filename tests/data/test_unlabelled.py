"""Tests unlabelled clips: the same sequence for any number of processes, workers and resumptions."""

import gc
import io
import itertools
import json
import os
import re
import tarfile
from collections import Counter

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from training.data import clip_stream, unreadable
from training.data.audio import datasets_without_torchcodec
from training.data.clip_stream import ClipList, ClipStream
from training.data.clips import LocalClips, join
from training.data.unlabelled_sources import UnlabelledSource, drop_unreadable, hold_out, open_source, parse_sources
from training.data.unreadable import UnreadableLog, try_to_read
from training.errors import InputError, one_line

RATE = 16000


def _clip_bytes(number: int) -> bytes:
    """A WAV file whose samples all say which clip it is."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(4, number / 1024), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _folder(path, numbers, unreadable=()):
    for number in numbers:
        file = path / f"class_{number % 2}" / f"{number:04d}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no audio" if number in unreadable else _clip_bytes(number))
    return path


def _parquet(path, shards, unreadable=(), column="audio"):
    """Laid out as a Hub repository, audio as bytes, no labels."""
    (path / "data").mkdir(parents=True)
    features = datasets.Features({column: datasets.Audio(sampling_rate=RATE), "speaker": datasets.Value("int64")})
    for index, numbers in enumerate(shards):
        rows = [
            {"bytes": b"no audio" if number in unreadable else _clip_bytes(number), "path": f"{number:04d}.wav"}
            for number in numbers
        ]
        with datasets_without_torchcodec():
            data = datasets.Dataset.from_dict({column: rows, "speaker": list(numbers)}, features=features)
            data.to_parquet(path / "data" / f"train-{index:05d}-of-{len(shards):05d}.parquet")
    return path


def _tars(path, shards):
    path.mkdir()
    for index, numbers in enumerate(shards):
        with tarfile.open(path / f"train-{index:05d}.tar", "w") as tar:
            for number in numbers:
                for extension, content in (("wav", _clip_bytes(number)), ("json", b'{"speaker": 1}')):
                    entry = tarfile.TarInfo(f"{number:04d}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return path


def _open(path, shuffle_buffer=8, **settings):
    return open_source(UnlabelledSource(str(path), **settings), shuffle_buffer)


def _example(waveform, rng):
    assert waveform.dtype == np.float32
    return {"clip": round(float(waveform[0]) * 1024), "draw": int(rng.integers(1 << 30))}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def make_stream(tmp_path):
    """A stream over sources, with small batches and a log of its own."""
    numbers = itertools.count()

    def make(clips, weights=None, batch_size=4, log=None, max_unreadable_share=1.0, **settings):
        log = log or UnreadableLog(tmp_path / f"unreadable_{next(numbers)}.jsonl")
        settings = {"seed": 7, **settings}
        return ClipStream(
            clips,
            weights,
            _example,
            RATE,
            batch_size=batch_size,
            log=log,
            max_unreadable_share=max_unreadable_share,
            **settings,
        )

    return make


def _take(stream, count):
    return list(itertools.islice(stream, count))


def _clips(stream, count):
    return [example["clip"] for example in _take(stream, count)]


def _batches(stream, count, num_workers=0):
    loader = DataLoader(stream, batch_size=stream.batch_size, num_workers=num_workers)
    return [list(zip(batch["clip"].tolist(), batch["draw"].tolist())) for batch in itertools.islice(loader, count)]


@pytest.fixture
def sources(tmp_path):
    """Name -> (sources, weights): folders, folders by weight, a stream, and all together; clips 3, 40 and 61 broken."""
    local = _open(_folder(tmp_path / "local", range(20), unreadable=(3,)))
    other = _open(_folder(tmp_path / "other", range(40, 50), unreadable=(40,)))
    stream = _open(_parquet(tmp_path / "hub", (range(60, 67), range(67, 80), range(80, 85)), (61,)), streaming=True)
    return {
        "local": ([local, other], None),
        "weighted": ([local, other], [1.0, 3.0]),
        "streamed": ([stream], None),
        "mixed": ([local, stream, other], [2.0, 3.0, 1.0]),
    }


KINDS = ("local", "weighted", "streamed", "mixed")


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_for_every_number_of_workers(sources, make_stream, kind):
    clips, weights = sources[kind]
    expected = _batches(make_stream(clips, weights, start=8), 16)
    assert len({pair for batch in expected for pair in batch}) == 64  # no example is made twice
    for num_workers in (1, 2, 3):
        assert _batches(make_stream(clips, weights, start=8), 16, num_workers) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_processes_together_yield_the_batches_of_one(sources, make_stream, kind):
    clips, weights = sources[kind]
    whole = _batches(make_stream(clips, weights, batch_size=12), 10)
    shares = [
        _batches(make_stream(clips, weights, num_processes=3, process_index=index), 10, num_workers=index)
        for index in range(3)
    ]
    assert [first + second + third for first, second, third in zip(*shares)] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_sequence_goes_on_where_it_stopped(sources, make_stream, kind):
    clips, weights = sources[kind]
    whole = _take(make_stream(clips, weights), 160)
    for start in (0, *4 * np.random.default_rng(0).integers(1, 36, size=5)):
        assert _take(make_stream(clips, weights, start=int(start)), 12) == whole[start : start + 12]


def test_a_jump_over_chunks_of_drawn_sources_is_exact(sources, make_stream, monkeypatch):
    monkeypatch.setattr(clip_stream, "MIXTURE_CHUNK", 16)
    clips, weights = sources["mixed"]
    whole = _take(make_stream(clips, weights), 120)
    for start in (16, 20, 100):
        assert _take(make_stream(clips, weights, start=start), 20) == whole[start : start + 20]


def test_a_pass_over_local_sources_is_a_permutation_of_all_clips(tmp_path, make_stream):
    first, second = _open(_folder(tmp_path / "a", range(20))), _open(_folder(tmp_path / "b", range(20, 27)))
    stream = make_stream([first, second])
    assert stream.clips_per_pass == 27
    numbers = _clips(stream, 81)
    passes = [numbers[:27], numbers[27:54], numbers[54:]]
    assert all(sorted(one) == list(range(27)) for one in passes)
    assert passes[0] != passes[1] != passes[2] and passes[0] != list(range(27))
    assert _clips(make_stream([first, second], seed=8), 27) != passes[0]


@pytest.mark.parametrize("weighted", [False, True])
def test_random_numbers_belong_to_positions(tmp_path, make_stream, weighted):
    clips = [_open(_folder(tmp_path / "a", range(5)))]
    draws = [example["draw"] for example in _take(make_stream(clips, [2.0] if weighted else None), 50)]
    assert len(set(draws)) == 50  # also of the same clip in another pass


def test_every_pass_over_a_stream_holds_every_clip_once(tmp_path, make_stream):
    shards = (range(7), range(7, 20), range(20, 25))
    stream = make_stream([_open(_parquet(tmp_path / "hub", shards), streaming=True)])
    assert stream.clips_per_pass is None
    numbers = _clips(stream, 75)
    passes = [numbers[:25], numbers[25:50], numbers[50:]]
    assert all(sorted(one) == list(range(25)) for one in passes) and passes[0] != passes[1] != passes[2]


def test_shards_are_shuffled_too(tmp_path, make_stream):
    path = _parquet(tmp_path / "hub", [range(4 * shard, 4 * shard + 4) for shard in range(4)])
    numbers = _clips(make_stream([_open(path, streaming=True, shuffle_buffer=1)]), 64)
    orders = {tuple(number // 4 for number in numbers[start : start + 16 : 4]) for start in range(0, 64, 16)}
    assert len(orders) > 1 and all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_a_far_jump_into_a_stream_reads_two_passes_at_most(tmp_path, make_stream, monkeypatch):
    source = _open(_parquet(tmp_path / "hub", (range(10), range(10, 20))), streaming=True)
    passes = []
    shuffled = source.shuffled
    monkeypatch.setattr(source, "shuffled", lambda rng: passes.append(0) or shuffled(rng))
    expected = _clips(make_stream([source]), 1000)[-4:]
    assert len(passes) == 50
    passes.clear()
    assert _clips(make_stream([source], start=996), 4) == expected
    assert len(passes) == 2


@pytest.mark.parametrize("write", [_folder, _parquet, _tars])
def test_local_folders_stream_like_the_hub(tmp_path, make_stream, write):
    numbers = range(24)
    path = write(tmp_path / "hub", numbers if write is _folder else (numbers[:10], numbers[10:]))
    streamed = _open(path, streaming=True)
    assert sorted(_clips(make_stream([streamed]), 24)) == list(numbers)
    assert _batches(make_stream([streamed]), 9, num_workers=2) == _batches(make_stream([streamed]), 9)
    assert sorted(_clips(make_stream([_open(path)]), 24)) == list(numbers)  # and loads like it


def test_a_column_of_texts_is_a_column_of_paths(tmp_path, make_stream):
    folder = _folder(tmp_path / "clips", range(4))
    (tmp_path / "hub").mkdir()
    rows = {"speaker": [1, 2, 3, 4], "wav": [str(path) for path in sorted(folder.rglob("*.wav"))]}
    pandas.DataFrame(rows).to_parquet(tmp_path / "hub" / "train.parquet")
    for streaming in (False, True):
        clips = _open(tmp_path / "hub", streaming=streaming)
        assert sorted(_clips(make_stream([clips]), 4)) == [0, 1, 2, 3]


def test_addresses_are_fetched(tmp_path):
    """A streamed data set of audio files gives hf:// addresses; here file:// ones."""
    _folder(tmp_path, [5])
    path = f"file://{tmp_path}/class_1/0005.wav"
    log = UnreadableLog(tmp_path / "log.jsonl")
    waveform, _ = try_to_read({"path": path, "bytes": None}, path, RATE, log)
    assert waveform[0] == np.float32(5 / 1024)
    assert try_to_read({"path": path + "x", "bytes": None}, path, RATE, log)[0] is None
    assert list(log.entries()) == [path]


@pytest.mark.parametrize("extension", ["csv", "tsv", "json", "jsonl", "parquet", "ssast"])
def test_manifests_need_no_labels(tmp_path, make_stream, extension):
    _folder(tmp_path / "clips", range(4))
    names = [f"clips/class_{number % 2}/{number:04d}.wav" for number in range(4)]
    table = pandas.DataFrame({"wav": names, "speaker": ["a", "", "b", "c"]})
    path = tmp_path / f"clips.{'json' if extension == 'ssast' else extension}"
    writers = {
        "csv": lambda: table.to_csv(path, index=False),
        "tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        "json": lambda: path.write_text(table.to_json(orient="records")),
        "jsonl": lambda: path.write_text(table.to_json(orient="records", lines=True)),
        "parquet": lambda: table.to_parquet(path),
        "ssast": lambda: path.write_text(json.dumps({"data": [{"wav": name} for name in names]})),
    }
    writers[extension]()
    clips = _open(path)
    assert clips.names() == [str(tmp_path / name) for name in names]
    assert sorted(_clips(make_stream([clips]), 4)) == [0, 1, 2, 3]


def test_a_folder_is_all_its_audio_files(tmp_path):
    folder = _folder(tmp_path / "train", range(4))
    _folder(tmp_path / "test", range(4, 6))
    (tmp_path / "metadata.csv").write_text(f"file_name\n{next(folder.rglob('*.wav'))}\n")
    (tmp_path / "loose.wav").write_bytes(_clip_bytes(6))
    assert len(_open(tmp_path)) == 7


def test_sources_are_drawn_by_weight(tmp_path, make_stream):
    clips = [_open(_folder(tmp_path / "a", range(10))), _open(_folder(tmp_path / "b", range(100, 130)))]
    for weights, share in (([1.0, 3.0], 0.25), ([3.0, 1.0], 0.75), ([30.0, None], 0.5)):  # None: as it has clips
        numbers = _clips(make_stream(clips, weights), 2000)
        assert np.mean([number < 100 for number in numbers]) == pytest.approx(share, abs=0.03)
        counts = Counter(numbers)
        # Each source has its own passes: its clips are drawn equally often.
        for low, high in ((0, 10), (100, 130)):
            heard = [counts[number] for number in range(low, high)]
            assert max(heard) - min(heard) <= 1


def test_a_stream_among_several_needs_a_weight(tmp_path, make_stream):
    local = _open(_folder(tmp_path / "a", range(4)))
    stream = _open(_parquet(tmp_path / "hub", (range(4),)), streaming=True)
    with pytest.raises(InputError, match="hub: a streamed source among several needs a weight; set it to about"):
        make_stream([local, stream], [4.0, None])
    assert make_stream([local, stream], [None, 4.0]).weights == [4, 4.0]
    assert make_stream([local, stream], [None, 4.0]).clips_per_pass is None


def test_impossible_settings_are_refused(tmp_path, make_stream):
    local = _open(_folder(tmp_path / "a", range(4)))
    for settings in ({"process_index": 1}, {"batch_size": 0}, {"start": -4}):
        with pytest.raises(ValueError, match="impossible"):
            make_stream([local], **settings)
    with pytest.raises(ValueError, match="got 2 for 1 sources"):
        make_stream([local], [1.0, 2.0])


def _counted_reads(monkeypatch):
    reads = Counter()
    read = unreadable.read_audio

    def counted(audio, rate):
        reads[int(os.path.basename(audio["path"])[:4])] += 1
        return read(audio, rate)

    monkeypatch.setattr(unreadable, "read_audio", counted)
    return reads


@pytest.mark.parametrize("kind", ["local", "stream"])
def test_a_process_decodes_its_own_clips_alone(tmp_path, make_stream, monkeypatch, kind):
    if kind == "local":
        clips = [_open(_folder(tmp_path / "a", range(16)))]
    else:
        clips = [_open(_parquet(tmp_path / "a", (range(8), range(8, 16))), streaming=True)]
    reads = _counted_reads(monkeypatch)
    shares = [_clips(make_stream(clips, num_processes=2, process_index=index), 8) for index in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(16))
    assert reads == Counter(range(16))


def test_an_unreadable_clip_is_replaced_by_the_next_of_the_sequence(tmp_path, make_stream, monkeypatch):
    good = _clips(make_stream([_open(_folder(tmp_path / "good", range(16)))]), 32)
    unreadable = {good[1], good[7], good[8], good[15]}  # one alone, two across a batch boundary, the last of a pass
    bad = _folder(tmp_path / "bad", range(16), unreadable)
    stream = make_stream([_open(bad)])
    reads = _counted_reads(monkeypatch)
    expected = [next(number for number in good[place:] if number not in unreadable) for place in range(24)]
    assert _clips(stream, 24) == expected
    assert reads.total() == 24  # what replaces another clip is not decoded again for itself
    assert _clips(make_stream([_open(bad)], start=8), 16) == expected[8:]
    files = [str(path) for path in sorted(bad.rglob("*.wav")) if int(path.stem) in unreadable]
    entries = stream.log.entries()
    assert list(entries) == sorted(files) and "not readable as audio" in next(iter(entries.values()))
    assert not any(reason.startswith("/") for reason in entries.values())
    assert len(stream.log.path.read_text().splitlines()) == 4
    assert stream.log.counts() == (4, 12)  # clips, not meetings


def test_any_error_while_decoding_is_an_unreadable_clip(tmp_path, make_stream, monkeypatch):
    read = unreadable.read_audio

    def failing(audio, rate):
        if audio["path"].endswith("0002.wav"):
            raise ZeroDivisionError
        return read(audio, rate)

    monkeypatch.setattr(unreadable, "read_audio", failing)
    stream = make_stream([_open(_folder(tmp_path / "a", range(8)))])
    assert set(_clips(stream, 8)) == set(range(8)) - {2}
    assert list(stream.log.entries().values()) == ["ZeroDivisionError"]


def test_an_example_made_in_place_changes_no_other(tmp_path, make_stream):
    def make_example(waveform, rng):
        waveform += 1
        return {"value": float(waveform[0])}

    stream = make_stream([_open(_folder(tmp_path / "a", range(8), unreadable=range(1, 8)))])
    stream.make_example = make_example
    assert [example["value"] for example in _take(stream, 12)] == [1.0] * 12


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_unreadable_clips_stop_the_run(tmp_path, make_stream, monkeypatch, num_workers):
    folder = _folder(tmp_path / "a", range(200), unreadable=range(0, 200, 8))
    stream = make_stream([_open(folder)], max_unreadable_share=0.05)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # waits so long for each worker
    with pytest.raises(InputError) as caught:
        _batches(stream, 50, num_workers)
    message = one_line(caught.value)
    del caught  # and with it the loader, in its short wait
    gc.collect()
    counts = re.search(r"(\d+) of (\d+) clips are unreadable \(max_unreadable_share is 0.05\)", message)
    assert 100 <= int(counts[2]) < 200 and int(counts[1]) > 0.1 * int(counts[2])
    assert message.count("not readable as audio") == 3 and str(stream.log.path) in message
    assert message.endswith("repair or remove them, or raise max_unreadable_share") and "\n" not in message


def test_an_allowed_share_stops_no_run(tmp_path, make_stream):
    """Also where the first clips hold more than their share by chance: 14 of the first 100 here."""
    stream = make_stream([_open(_folder(tmp_path, range(200), range(0, 200, 8)))], max_unreadable_share=0.125)
    assert len(_take(stream, 400)) == 400
    assert stream.log.counts() == (25, 175)
    strict = make_stream([_open(tmp_path)], max_unreadable_share=0.124)
    with pytest.raises(InputError, match="25 of 200 clips are unreadable"):  # judged exactly once all are met
        _take(strict, 400)


def test_a_share_is_judged_after_a_pass_of_few_clips(tmp_path, make_stream):
    stream = make_stream([_open(_folder(tmp_path / "a", range(10), unreadable=[4]))], max_unreadable_share=0.05)
    taken = []
    with pytest.raises(InputError, match=r"1 of 10 clips are unreadable"):
        taken.extend(example for example in stream)
    assert len(taken) < 10
    assert len(_take(make_stream([_open(tmp_path / "a")], max_unreadable_share=0.1), 40)) == 40


@pytest.mark.parametrize("kind", ["local", "weighted", "streamed"])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_nothing_readable_is_an_error(tmp_path, make_stream, monkeypatch, kind, num_processes):
    monkeypatch.setattr(clip_stream, "MAX_FAILURES", 500)
    numbers = range(12)
    if kind == "streamed":
        clips = [_open(_parquet(tmp_path / "a", (numbers,), unreadable=numbers), streaming=True)]
    else:
        clips = [_open(_folder(tmp_path / name, numbers, unreadable=numbers)) for name in "ab"]
    stream = make_stream(clips, [1.0, 2.0] if kind == "weighted" else None, num_processes=num_processes)
    with pytest.raises(InputError, match=r"(\d+) of \1 clips are unreadable"):
        next(iter(stream))


def test_data_that_goes_away_stops_the_run(tmp_path, make_stream, monkeypatch):
    monkeypatch.setattr(clip_stream, "MAX_FAILURES", 50)
    folder = _folder(tmp_path / "a", range(20))
    stream = make_stream([_open(folder)])
    examples = iter(stream)
    heard = list(itertools.islice(examples, 40))
    folder.rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"the last 50 clips are unreadable, such as .*no such file.* repair them or"):
        next(examples)
    assert len(heard) == 40


def test_an_empty_stream_is_an_error(tmp_path, make_stream):
    pyarrow.parquet.ParquetWriter(tmp_path / "train.parquet", pyarrow.schema({"audio": pyarrow.string()})).close()
    with pytest.raises(InputError, match="the stream holds no clips; name another split or leave it out"):
        next(iter(make_stream([_open(tmp_path, streaming=True)])))


def test_a_stream_that_breaks_off_is_one_line(tmp_path, make_stream):
    path = _parquet(tmp_path / "hub", (range(4), range(4, 8)))
    stream = make_stream([_open(path, streaming=True)])
    (path / "data" / "train-00001-of-00002.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"hub: the stream broke off \(.*\); resume the run") as caught:
        next(iter(stream))
    assert "\n" not in str(caught.value)


def test_the_log_is_appended_to_by_all_and_read_once(tmp_path):
    path = tmp_path / "logs" / "unreadable.jsonl"
    first, second = UnreadableLog(path), UnreadableLog(path)
    for log in (first, second, first):
        log.add("b.wav", "damaged")
    first.add("ä\n.wav", "empty")
    with path.open("a") as file:
        file.write('{}\n3\n{"clip": "no reason"}\n[]\n{"clip": "torn')
    assert len(path.read_text().splitlines()) == 8  # two writers reported b.wav
    assert list(second.entries().items()) == [("b.wav", "damaged"), ("ä\n.wav", "empty")]
    resumed = UnreadableLog(path)
    resumed.add("b.wav", "damaged")
    assert len(path.read_text().splitlines()) == 8


def test_unreadable_headers_are_dropped_before_the_run(tmp_path):
    log = UnreadableLog(tmp_path / "log.jsonl")
    clips = _open(_folder(tmp_path / "a", range(20), unreadable=(4, 9)))
    kept = drop_unreadable(clips, log, 0.1)
    assert {int(os.path.basename(name)[:4]) for name in kept.names()} == {*range(20)} - {4, 9} and len(kept) == 18
    assert [os.path.basename(name) for name in log.entries()] == ["0004.wav", "0009.wav"]
    assert drop_unreadable(kept, log, 0.0) is kept
    with pytest.raises(InputError, match=r"2 of 20 clips are unreadable \(max_unreadable_share is 0.09\): .*0004.wav"):
        drop_unreadable(clips, log, 0.09)
    nothing = _open(_folder(tmp_path / "b", range(3), unreadable=range(3)))
    with pytest.raises(InputError, match="3 of 3 clips are unreadable"):
        drop_unreadable(nothing, log, 1.0)


def test_held_out_clips_stay_held_out(tmp_path):
    stream = _open(_parquet(tmp_path / "hub", (range(4),)), streaming=True)
    local = [_open(_folder(tmp_path / "a", range(40))), _open(_parquet(tmp_path / "b", (range(100, 160),)))]
    training, validation = hold_out([local[0], stream, local[1]], 30, seed=1)
    again, same = hold_out([local[0], stream, local[1]], 30, seed=1)
    assert len(validation) == 30 and training[1] is stream
    assert validation.names() == same.names() and training[0].names() == again[0].names()
    assert 0 < 40 - len(training[0]) < 30
    both = [*training[0].names(), *training[2].names(), *validation.names()]
    assert sorted(both) == sorted([*local[0].names(), *local[1].names()])
    assert hold_out(local, 30, seed=2)[1].names() != hold_out(local, 30, seed=1)[1].names()
    # A clip that goes away leaves the others on their sides.
    fewer = [
        local[0].select([i for i, name in enumerate(local[0].names()) if name != training[0].names()[0]]),
        local[1],
    ]
    assert hold_out(fewer, 30, seed=1)[1].names() == validation.names()


@pytest.mark.parametrize("count", [0, 5, 6])
def test_too_few_clips_to_hold_out_are_told(tmp_path, count):
    with pytest.raises(InputError, match=f"{count} clips for validation: the local sources have 5"):
        hold_out([_open(_folder(tmp_path, range(5)))], count, seed=0)


def test_clips_without_names_are_told_apart(tmp_path):
    rows = {"audio": [{"bytes": _clip_bytes(number), "path": None} for number in range(3)]}
    clips = LocalClips("hub", datasets.Dataset.from_dict(rows))
    both = join([clips, _open(_folder(tmp_path / "a", [7]))])
    assert clips.names() == ["clip 0 of hub", "clip 1 of hub", "clip 2 of hub"]
    assert both.names()[3] == str(tmp_path / "a" / "class_1" / "0007.wav") and len(both) == 4
    log = UnreadableLog(tmp_path / "log.jsonl")
    assert [ClipList(both, _example, RATE, 0, log)[index]["clip"] for index in range(4)] == [0, 1, 2, 7]


def test_an_evaluation_is_always_the_same(tmp_path):
    log = UnreadableLog(tmp_path / "log.jsonl")
    clips = _open(_folder(tmp_path / "a", range(6), unreadable=(2, 5)))
    names = [int(os.path.basename(name)[:4]) for name in clips.names()]
    evaluation = ClipList(clips, _example, RATE, 3, log)
    examples = [evaluation[index] for index in range(len(evaluation))]
    expected = [next(n for n in (*names[index:], *names) if n not in (2, 5)) for index in range(6)]
    assert [example["clip"] for example in examples] == expected
    assert len({example["draw"] for example in examples}) == 6
    assert examples == [evaluation[index] for index in range(len(evaluation))]
    assert len(log.entries()) == 2
    with pytest.raises(IndexError):
        evaluation[6]
    nothing = ClipList(_open(_folder(tmp_path / "b", range(3), unreadable=range(3))), _example, RATE, 3, log)
    with pytest.raises(InputError, match=r"b: none of 3 held-out clips is readable \(not readable as audio"):
        nothing[1]


def test_sources_of_a_recipe():
    entries = ["clips/", '{"path": "a/b", "weight": 2, "streaming": true, "config": null}']
    assert parse_sources("train_sources", entries) == [
        UnlabelledSource("clips/"),
        UnlabelledSource("a/b", weight=2, streaming=True),
    ]


@pytest.mark.parametrize(
    ("entries", "pattern"),
    [
        ([], "is empty; list folders, manifests or data sets"),
        ([""], "path '' in ; it must be a text"),
        (['{"path": "a"'], r'\{"path": "a" is not readable as JSON .*; correct it'),
        (['{"a":' * 100_000], "is not readable as JSON .*; correct it"),
        (['{"weight": 1}'], "has no path; add the path"),
        (['{"path": 3}'], "path 3 in .*; it must be a text"),
        (['{"path": "a", "wieght": 1}'], "unknown key wieght in .*; did you mean weight?"),
        (['{"path": "a", "xyz": 1}'], "unknown key xyz in .*; known are path, weight, config"),
        (['{"path": "a", "weight": 0}'], "weight 0 in .*; it must be a finite number above 0"),
        (['{"path": "a", "weight": -1.5}'], "weight -1.5 in"),
        (['{"path": "a", "weight": NaN}'], "weight nan in"),
        (['{"path": "a", "weight": Infinity}'], "weight inf in"),
        (['{"path": "a", "weight": true}'], "weight True in"),
        (['{"path": "a", "weight": "1"}'], "weight '1' in"),
        (['{"path": "a", "streaming": "yes"}'], "streaming 'yes' in .*; it must be true or false"),
        (['{"path": "a", "split": null}'], "split None in .*; it must be a text"),
    ],
)
def test_bad_sources_of_a_recipe_are_one_line(entries, pattern):
    with pytest.raises(InputError, match=f"^train_sources: .*{pattern}|^train_sources: {pattern}") as caught:
        parse_sources("train_sources", entries)
    assert "\n" not in str(caught.value)


def test_bad_sources_are_one_line(tmp_path):
    _folder(tmp_path / "a", range(2))
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("file,y\na.wav,2\n,3\n")
    (tmp_path / "empty").mkdir()
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    pandas.DataFrame({"audio": [[1.0, 2.0]], "x": [1]}).to_parquet(numbers / "train.parquet")
    for path, settings, pattern in [
        ("missing.csv", {}, "missing.csv: no such file; correct the path"),
        ("nothing", {}, "nothing: neither a local folder nor a data set that can be loaded"),
        ("empty", {}, "empty: holds no audio, no train.csv or metadata.csv, and no Parquet; name another"),
        ("a.csv", {}, "a.csv: which column is the audio\\? Set audio_column to one of x, y"),
        ("a.csv", {"audio_column": "z"}, "a.csv: no column 'z'; it has x, y"),
        ("b.csv", {}, "b.csv: row 2 \\(line 3\\) has no file; fill it in or remove it"),
        ("a.csv", {"streaming": True}, "a.csv: streaming = True has no effect on a manifest; remove it"),
        ("a", {"split": "test"}, "a: split = 'test' has no effect on a folder of audio files; remove it"),
        ("numbers", {}, "numbers: the audio column holds .*, not paths or audio; set audio_column"),
        ("numbers", {"split": "dev"}, "numbers: neither .*Unknown split"),
        ("numbers", {"audio_column": "z", "streaming": True}, "numbers: no column 'z'; it has audio, x"),
    ]:
        with pytest.raises(InputError, match=pattern) as caught:
            _open(tmp_path / path, **settings)
        assert "\n" not in str(caught.value)


def test_a_collection_that_moves_keeps_its_validation_clips(tmp_path):
    held_out = []
    for place in ("here", "elsewhere/deep"):
        folder = _folder(tmp_path / place, range(30))
        _, validation = hold_out([open_source(UnlabelledSource(str(folder)))], 6, seed=0)
        held_out.append([os.path.relpath(name, folder) for name in validation.names()])
    assert held_out[0] == held_out[1]


def test_a_file_in_two_sources_is_held_out_of_both(tmp_path, caplog):
    """A folder and one inside of it: held-out clips of the one were training clips of the other."""
    folder = _folder(tmp_path / "a", range(20))
    sources = [_open(folder), _open(folder / "class_1")]
    training, validation = hold_out(sources, 12, seed=0)
    held_out = validation.names()
    assert len(held_out) == len(set(held_out)) == 12
    assert not set(held_out) & {name for source in training for name in source.names()}
    num_twice = sum("class_1" in name for name in held_out)
    assert f"{num_twice} more entries of 12 clips for validation, such as {folder}/class_1/" in caplog.text
    assert len(training[0]) == 8 and len(training[1]) == 10 - num_twice
