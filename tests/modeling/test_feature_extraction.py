"""Tests the feature extractor: every input form, padding, refused input, and saving."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, DataCollatorWithPadding
from warnings_of import warnings_of

from modeling_dual_ssast import DualSSASTFeatureExtractor, feature_extraction_dual_ssast
from modeling_dual_ssast.feature_extraction_dual_ssast import (
    CHUNK_FRAMES,
    DEVICE_CHUNK_FRAMES,
    chunk_frames,
    frame_sizes,
    kaldi_log_mel,
    kaldi_mel_bands,
    kaldi_mel_filters,
)
from modeling_dual_ssast.feature_extraction_panns_cnn14 import panns_log_mel
from modeling_dual_ssast.feature_extraction_vggish import vggish_log_mel

RATE = 16000


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32)


def num_frames(num_samples, rate=RATE):
    return 1 + max(num_samples - rate // 40, 0) // (rate // 100)


@pytest.fixture(scope="module")
def extractor():
    return DualSSASTFeatureExtractor()


@pytest.fixture
def warnings_of_extractor(extractor):
    """Messages of the warnings that a test provokes; each is given once per process, so the memory is cleared."""
    logging.Logger.warning_once.cache_clear()
    with warnings_of(DualSSASTFeatureExtractor.__module__) as messages:
        yield messages


CLIP = noise(4000)
FORMS = {
    "float32 array": CLIP,
    "float64 array": CLIP.astype(np.float64),
    "read-only array": np.frombuffer(CLIP.tobytes(), dtype=np.float32),
    "reversed view": CLIP[::-1].copy()[::-1],
    "big-endian array": CLIP.astype(">f4"),
    "list of floats": CLIP.tolist(),
    "list of scalars": list(CLIP),
    "tensor": torch.from_numpy(CLIP),
    "float64 tensor": torch.from_numpy(CLIP).double(),
    "batch of one": CLIP[None],
    "list of one array": [CLIP],
    "list of one list": [CLIP.tolist()],
    "tensor that wants a gradient": torch.from_numpy(CLIP.copy()).requires_grad_(),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_one_clip_in_any_form_gives_the_same_features(extractor, form):
    output = extractor(FORMS[form], sampling_rate=RATE, return_tensors="pt")
    expected = extractor(CLIP, sampling_rate=RATE, return_tensors="pt")
    assert output["input_values"].shape == (1, num_frames(4000), 128)
    assert torch.equal(output["input_values"], expected["input_values"])
    assert output["attention_mask"].tolist() == [[1] * num_frames(4000)]


@pytest.mark.parametrize("to", [np.stack, lambda clips: torch.from_numpy(np.stack(clips)), list, tuple])
def test_batches_in_any_form(extractor, to):
    clips = [noise(4000, seed) for seed in range(3)]
    output = extractor(to(clips), sampling_rate=RATE, return_tensors="pt")
    for clip, features in zip(clips, output["input_values"]):
        alone = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        torch.testing.assert_close(features, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [16000, 32000])
def test_features_of_a_clip_do_not_depend_on_the_batch(rate):
    extractor = DualSSASTFeatureExtractor(sampling_rate=rate)
    lengths = [1, 160, 399, 400, 401, 5000, 16000, 2 * rate + 7]
    clips = [noise(length, seed) for seed, length in enumerate(lengths)]
    # Loud and quiet neighbours, and more frames than are transformed at a time.
    clips[5] *= 1e-4
    batch = extractor([*clips, noise(8 * rate)], sampling_rate=rate, return_tensors="pt")
    for index, clip in enumerate(clips):
        alone = extractor(clip, sampling_rate=rate, return_tensors="pt")["input_values"][0]
        frames = num_frames(len(clip), rate)
        assert alone.shape == (frames, 128)
        torch.testing.assert_close(batch["input_values"][index, :frames], alone, atol=1e-6, rtol=0)
        assert batch["attention_mask"][index].sum() == frames
        assert (batch["input_values"][index, frames:] == np.float32(extractor.padding_value)).all()


@pytest.mark.parametrize(
    "num_mel_bins, num_fft, rate", [(128, 512, 16000), (64, 1024, 32000), (23, 256, 8000), (400, 512, 16000)]
)
def test_the_bands_hold_all_mel_filters(num_mel_bins, num_fft, rate):
    filters = kaldi_mel_filters(num_mel_bins, num_fft, rate, torch.device("cpu"))
    joined = torch.zeros_like(filters)
    for bins, mel, band in kaldi_mel_bands(num_mel_bins, num_fft, rate, torch.device("cpu")):
        joined[bins, mel] += band  # a filter in two bands would count twice
    assert torch.equal(joined, filters)


def test_padding_value_is_what_a_normalised_zero_becomes(extractor):
    assert extractor.padding_value == pytest.approx(4.2677393 / (2 * 4.5689974), abs=1e-12)
    assert DualSSASTFeatureExtractor(mean=-6.6268077, std=5.358466).padding_value == pytest.approx(0.6184, abs=1e-4)
    assert DualSSASTFeatureExtractor(do_normalize=False).padding_value == 0


@pytest.mark.parametrize("padding, frames", [("longest", 48), (True, 48), ("max_length", 60), (None, 48)])
def test_padding(padding, frames):
    extractor = DualSSASTFeatureExtractor(max_length=60)
    clips = [noise(8000, 1), noise(2000, 2)]
    output = extractor(clips, sampling_rate=RATE, padding=padding, return_tensors="pt")
    assert output["input_values"].shape == (2, frames, 128)
    assert output["attention_mask"].sum(dim=1).tolist() == [48, 11]
    assert output["attention_mask"][1].tolist() == [1] * 11 + [0] * (frames - 11)


def test_padding_false_leaves_the_lengths_and_fits_no_tensor(extractor):
    clips = [noise(8000, 1), noise(2000, 2)]
    output = extractor(clips, sampling_rate=RATE, padding=False)
    assert [len(features) for features in output["input_values"]] == [48, 11]
    assert [mask.tolist() for mask in output["attention_mask"]] == [[1] * 48, [1] * 11]
    with pytest.raises(ValueError, match=r"11 to 48 frames .* padding='longest'"):
        extractor(clips, sampling_rate=RATE, padding=False, return_tensors="pt")
    assert extractor(clips[:1], sampling_rate=RATE, padding=False, return_tensors="pt")["input_values"].shape[1] == 48


def test_max_length_of_the_call_wins(extractor):
    output = extractor(noise(2000), sampling_rate=RATE, padding="max_length", max_length=20, return_tensors="pt")
    assert output["input_values"].shape == (1, 20, 128) and output["attention_mask"].sum() == 11


@pytest.mark.parametrize(
    "return_tensors, kind, dtype, mask_dtype",
    [("pt", torch.Tensor, torch.float32, torch.int64), ("np", np.ndarray, np.float32, np.int64)],
)
def test_return_tensors(extractor, return_tensors, kind, dtype, mask_dtype):
    output = extractor([noise(4000), noise(2000)], sampling_rate=RATE, return_tensors=return_tensors)
    values, mask = output["input_values"], output["attention_mask"]
    assert isinstance(values, kind) and isinstance(mask, kind)
    assert (values.dtype, mask.dtype) == (dtype, mask_dtype)
    assert tuple(values.shape) == (2, 23, 128) and tuple(mask.shape) == (2, 23)


def test_without_return_tensors_the_rows_are_of_the_kind_of_the_input(extractor):
    assert isinstance(extractor(CLIP, sampling_rate=RATE)["input_values"][0], np.ndarray)
    assert isinstance(extractor(torch.from_numpy(CLIP), sampling_rate=RATE)["input_values"][0], torch.Tensor)


def test_the_mask_is_optional(extractor):
    assert set(extractor(CLIP, sampling_rate=RATE, return_attention_mask=False)) == {"input_values"}
    without = DualSSASTFeatureExtractor(return_attention_mask=False)
    assert set(without(CLIP, sampling_rate=RATE)) == {"input_values"}
    assert set(without(CLIP, sampling_rate=RATE, return_attention_mask=True)) == {"input_values", "attention_mask"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_features_stay_on_the_device(extractor, device):
    clips = [torch.from_numpy(noise(4000)).to(device), torch.from_numpy(noise(2000)).to(device)]
    output = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    assert {value.device.type for value in output.values()} == {device}
    expected = extractor([clip.cpu() for clip in clips], sampling_rate=RATE, return_tensors="pt")["input_values"]
    torch.testing.assert_close(output["input_values"].cpu(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "log_mel",
    [
        lambda clip: kaldi_log_mel([clip], RATE)[0],
        vggish_log_mel,
        lambda clip: panns_log_mel(clip, RATE, 64, 512, 160, 50.0, 8000.0),
    ],
    ids=["kaldi", "vggish", "panns"],
)
def test_the_number_of_frames_at_a_time_does_not_change_the_features(monkeypatch, log_mel):
    """On other devices than a CPU it is larger."""
    assert chunk_frames(torch.device("cpu")) == CHUNK_FRAMES
    assert chunk_frames(torch.device("meta")) == DEVICE_CHUNK_FRAMES
    clip = torch.from_numpy(noise(2 * RATE))
    expected = log_mel(clip)
    for size in (7, DEVICE_CHUNK_FRAMES):
        monkeypatch.setattr(feature_extraction_dual_ssast, "CHUNK_FRAMES", size)
        # In float32, rounding of products of other sizes: as from device to device.
        torch.testing.assert_close(log_mel(clip), expected, atol=1e-3, rtol=0)


@pytest.mark.cuda
def test_on_a_gpu_a_clip_longer_than_one_chunk_has_the_features_of_a_cpu():
    clip = torch.from_numpy(noise((DEVICE_CHUNK_FRAMES + 500) * RATE // 100))
    (found,), (expected,) = kaldi_log_mel([clip.to("cuda")], RATE), kaldi_log_mel([clip], RATE)
    assert len(expected) > DEVICE_CHUNK_FRAMES
    # Rounding errors of a spectrum are relative to its loudest bin, and some of four million bins are very quiet.
    torch.testing.assert_close(found.cpu().exp(), expected.exp(), atol=1e-4 * float(expected.exp().max()), rtol=0)


def test_autocast_does_not_touch_the_features(extractor):
    expected = extractor(CLIP, sampling_rate=RATE, return_tensors="pt")["input_values"]
    with torch.autocast("cpu", torch.bfloat16):
        output = extractor(CLIP, sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert output.dtype == torch.float32 and torch.equal(output, expected)


def test_long_clips_are_truncated_with_one_warning(warnings_of_extractor):
    extractor = DualSSASTFeatureExtractor(max_length=10)
    whole = extractor(CLIP, sampling_rate=RATE, truncation=False, return_tensors="pt")["input_values"]
    assert whole.shape[1] == 23 and not warnings_of_extractor
    for _ in range(3):
        cut = extractor([CLIP, noise(800)], sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert torch.equal(cut[0], whole[0, :10])
    assert len(warnings_of_extractor) == 1
    assert "max_length=10 frames" in warnings_of_extractor[0] and "classify_windows" in warnings_of_extractor[0]


def test_a_missing_rate_is_warned_of_once(extractor, warnings_of_extractor):
    for _ in range(2):
        extractor(CLIP)
    assert len(warnings_of_extractor) == 1 and "16000 Hz" in warnings_of_extractor[0]


def with_sample(value):
    clip = noise(1000)
    clip[500] = value
    return clip


@pytest.mark.parametrize(
    "audio, error, message",
    [
        (noise(8000).reshape(4000, 2), ValueError, r"\(4000, 2\) looks like one clip of 2 channels.*average"),
        (torch.zeros(4000, 2), ValueError, r"\(4000, 2\) looks like one clip of 2 channels.*average"),
        (noise(8000).reshape(1, 2, 4000), ValueError, r"\(1, 2, 4000\): average the channels"),
        ([CLIP, noise(8000).reshape(2, 4000)], ValueError, r"clip 1 has shape \(2, 4000\).*average the channels"),
        ([noise(8000).reshape(4000, 2)], ValueError, r"clip 0 has shape \(4000, 2\).*average the channels"),
        ([[[0.1, 0.2], [0.3, 0.4]]], ValueError, r"clip 0 has shape \(2, 2\).*average the channels"),
        (np.zeros(0, np.float32), ValueError, "clip 0 is empty: leave it out"),
        ([CLIP, []], ValueError, "clip 1 is empty: leave it out"),
        ([], ValueError, "the batch is empty: pass at least one clip"),
        (np.zeros((0, 400), np.float32), ValueError, "the batch is empty: pass at least one clip"),
        (with_sample(np.nan), ValueError, "clip 0 holds 1 NaN or infinite samples: repair"),
        ([CLIP, with_sample(np.inf)], ValueError, "clip 1 holds 1 NaN or infinite samples: repair"),
        (torch.from_numpy(with_sample(-np.inf)), ValueError, "clip 0 holds 1 NaN or infinite samples: repair"),
        ((CLIP * 32768).astype(np.int16), ValueError, "clip 0 holds int16 samples.*divide 16-bit samples by 32768"),
        (torch.ones(400, dtype=torch.int16), ValueError, "clip 0 holds torch.int16 samples.*divide 16-bit"),
        (["a.wav", "b.wav"], ValueError, "clip 0 holds <U5 values, expected floats .* names of files: read them first"),
        (np.array([CLIP, CLIP[:9]], dtype=object), ValueError, "clip 0 holds object values, .* pass a list of arrays"),
        ([100, -100, 32000], ValueError, "clip 0 holds int64 samples.*divide 16-bit samples by 32768"),
        ("file.wav", TypeError, "arrays, tensors or lists of floats, got str"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_audio_that_cannot_be_meant_is_refused(extractor, audio, error, message):
    with pytest.raises(error, match=message):
        extractor(audio, sampling_rate=RATE)


def test_an_empty_batch_to_pad_is_refused(extractor):
    with pytest.raises(ValueError, match="the batch is empty"):
        extractor.pad([])


def test_loading_takes_settings_that_the_file_does_not_have(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    stored = json.loads(path.read_text())
    del stored["min_samples"]  # of an earlier version
    path.write_text(json.dumps(stored))
    loaded = DualSSASTFeatureExtractor.from_pretrained(tmp_path, min_samples=16000, mean=-3.0)
    assert loaded.min_samples == 16000 and loaded.mean == -3.0
    assert loaded.padding_value == DualSSASTFeatureExtractor(mean=-3.0).padding_value
    assert AutoFeatureExtractor.from_pretrained(tmp_path, max_length=77).max_length == 77


def test_loud_finite_audio_is_not_refused(extractor):
    assert extractor(np.full(1000, 3e38, np.float32), sampling_rate=RATE)["input_values"][0].shape == (4, 128)


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        (
            {"sampling_rate": 44100},
            ValueError,
            r"at 44100 Hz.*needs 16000 Hz: resample.*soxr.resample\(audio, 44100, 16000",
        ),
        ({"sampling_rate": RATE, "paddding": True}, TypeError, "keyword 'paddding'; did you mean 'padding'"),
        ({"sampling_rate": RATE, "zzz": 1}, TypeError, "keyword 'zzz'; known are raw_speech, sampling_rate, padding"),
        ({"sampling_rate": RATE, "padding": "right"}, ValueError, "'longest', 'max_length' or False, got 'right'"),
        ({"sampling_rate": RATE, "max_length": 0}, ValueError, "max_length must be a positive integer, got 0"),
        ({"sampling_rate": "16000"}, ValueError, "sampling_rate must be a positive number, got '16000'"),
        *(
            (
                {"sampling_rate": RATE, "pad_to_multiple_of": count},
                ValueError,
                f"must be a positive integer, got {count}",
            )
            for count in (-4, 2.5)
        ),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(extractor, keywords, error, message):
    with pytest.raises(error, match=message):
        extractor(CLIP, **keywords)


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        ({"num_mels": 64}, TypeError, "keyword 'num_mels'; did you mean 'num_mel_bins'"),
        ({"padding": "right"}, ValueError, "'longest', 'max_length' or False, got 'right'"),
        ({"std": 0.0}, ValueError, "std positive, got mean=-4.2677393 and std=0.0"),
        ({"mean": math.nan}, ValueError, "mean and std must be finite.*got mean=nan"),
        ({"std": 1e-40}, ValueError, "std=1e-40 make .* of 0, beyond float32; take a larger std"),
        ({"mean": 1e300}, ValueError, "mean=1e.300 .* beyond float32"),
        ({"sampling_rate": "16000"}, ValueError, "sampling_rate must be a positive integer, got '16000'"),
        ({"sampling_rate": 10}, ValueError, "sampling_rate=10, .* windows of 0 samples, 0 apart; take a higher"),
        ({"sampling_rate": 80}, ValueError, "sampling_rate=80, .* windows of 2 samples, 0 apart"),
        ({"frame_shift_ms": 0.05}, ValueError, "frame_shift_ms=0.05 make windows of 400 samples, 0 apart"),
        ({"num_mel_bins": 0}, ValueError, "num_mel_bins must be a positive integer, got 0"),
        ({"max_length": 10.24}, ValueError, "max_length must be a positive integer, got 10.24"),
        ({"frame_shift_ms": 0}, ValueError, "frame_shift_ms must be a positive number, got 0"),
        ({"frame_length_ms": math.inf}, ValueError, "frame_length_ms must be a positive number, got inf"),
        ({"do_normalize": "false"}, ValueError, "do_normalize must be true or false, got 'false'"),
        ({"return_attention_mask": "no"}, ValueError, "return_attention_mask must be true or false, got 'no'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(keywords, error, message):
    with pytest.raises(error, match=message):
        DualSSASTFeatureExtractor(**keywords)


def test_a_clip_of_one_sample_is_one_frame_of_silence(extractor):
    output = extractor([0.3], sampling_rate=RATE, return_tensors="pt")["input_values"]
    silence = (math.log(np.finfo(np.float32).eps) + 4.2677393) / (2 * 4.5689974)
    torch.testing.assert_close(output, torch.full((1, 1, 128), silence), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_samples", [1, 4000, 20000])
def test_original_pads_with_zeros_before_it_normalises(num_samples):
    extractor = DualSSASTFeatureExtractor.original(max_length=100)
    output = extractor(noise(num_samples), sampling_rate=RATE, return_tensors="pt")
    assert set(output) == {"input_values"}
    log_mel = extractor.log_mel([torch.from_numpy(noise(num_samples))])[0][:100]
    padded = torch.nn.functional.pad(log_mel, (0, 0, 0, 100 - len(log_mel)))
    expected = (padded - extractor.mean) / (2 * extractor.std)
    assert torch.equal(output["input_values"][0], expected)


def test_do_normalize_false_gives_the_log_mel():
    extractor = DualSSASTFeatureExtractor(do_normalize=False)
    output = extractor(CLIP, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
    assert torch.equal(output, extractor.log_mel([torch.from_numpy(CLIP)])[0])


def test_max_seconds_fills_max_length(extractor):
    assert extractor.max_seconds == pytest.approx(10.255)
    assert num_frames(round(extractor.max_seconds * RATE)) == 1024


@pytest.mark.parametrize("rate", [16000, 22050, 32000, 44100])
def test_a_clip_of_max_samples_has_max_length_frames(rate):
    extractor = DualSSASTFeatureExtractor(sampling_rate=rate, max_length=100)
    window, shift, _ = frame_sizes(rate, 25.0, 10.0)
    assert extractor.max_samples == 99 * shift + window == pytest.approx(extractor.max_seconds * rate)
    for num_samples, frames in ((-1, 99), (0, 100), (shift - 1, 100), (shift, 101)):
        clip = noise(extractor.max_samples + num_samples)
        output = extractor(clip, sampling_rate=rate, truncation=False, return_tensors="pt")
        assert output["input_values"].shape[1] == frames


@pytest.mark.parametrize("loader", [DualSSASTFeatureExtractor, AutoFeatureExtractor])
def test_save_and_load_keep_every_setting(tmp_path, loader):
    extractor = DualSSASTFeatureExtractor(
        sampling_rate=32000,
        num_mel_bins=64,
        max_length=300,
        mean=-5.0,
        std=3.0,
        padding=False,
        return_attention_mask=False,
        frame_length_ms=20.0,
        frame_shift_ms=5.0,
    )
    extractor.save_pretrained(tmp_path)
    # The name of the class leads AutoFeatureExtractor to the imported one: no trust_remote_code.
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded) is DualSSASTFeatureExtractor
    assert {**loaded.to_dict(), "auto_map": 0} == {**extractor.to_dict(), "auto_map": 0}
    assert (loaded.max_length, loaded.padding) == (300, "do_not_pad")
    assert (tmp_path / "feature_extraction_dual_ssast.py").is_file()


def test_statistics_overridden_at_loading_move_the_padding_value(tmp_path):
    DualSSASTFeatureExtractor().save_pretrained(tmp_path)
    assert DualSSASTFeatureExtractor.from_pretrained(tmp_path, mean=-6.0, std=3.0).padding_value == 1.0


def test_stored_unknown_keys_are_tolerated():
    stored = {**DualSSASTFeatureExtractor(max_length=77).to_dict(), "written_by_a_later_version": 1}
    assert DualSSASTFeatureExtractor.from_dict(stored).max_length == 77


@pytest.mark.parametrize("masks", [True, False])
def test_the_collator_of_trainer_pads_features_and_keeps_labels(extractor, masks):
    clips = [noise(8000, 1), noise(2000, 2)]
    items = [
        {**{key: value[0] for key, value in extractor(clip, sampling_rate=RATE).items()}, "label": label}
        for clip, label in zip(clips, (3, 1))
    ]
    if not masks:
        items = [{key: value for key, value in item.items() if key != "attention_mask"} for item in items]
    batch = DataCollatorWithPadding(extractor, pad_to_multiple_of=25)(items)
    expected = extractor(clips, sampling_rate=RATE, padding="max_length", max_length=50, return_tensors="pt")
    assert batch["labels"].tolist() == [3, 1] and batch["labels"].dtype == torch.int64
    torch.testing.assert_close(batch["input_values"], expected["input_values"], atol=1e-6, rtol=0)
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_passes_gradients_to_the_clips_alone(side):
    extractor = DualSSASTFeatureExtractor(padding_side=side)
    clips = [torch.ones(length, 128, requires_grad=True) for length in (3, 5)]
    batch = extractor.pad([{"input_values": clip} for clip in clips], padding="longest", return_tensors="pt")
    assert torch.equal(
        batch["attention_mask"][0], torch.tensor([1, 1, 1, 0, 0] if side == "right" else [0, 0, 1, 1, 1])
    )
    (2 * batch["input_values"]).sum().backward()
    assert all(torch.equal(clip.grad, torch.full_like(clip, 2.0)) for clip in clips)


def test_pad_takes_what_a_data_set_stores(extractor):
    """Nested lists, masks with zeros already in them, one mapping of lists, soft labels."""
    stored = {
        "input_values": [np.zeros((3, 128)).tolist(), np.zeros((2, 128)).tolist()],
        "attention_mask": [[1, 1, 0], [1, 1]],
        "labels": [[0.2, 0.8], [1.0, 0.0]],
    }
    batch = extractor.pad(stored, return_tensors="pt")
    assert batch["input_values"].shape == (2, 3, 128)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert batch["labels"].shape == (2, 2)
    assert isinstance(extractor.pad(stored, return_tensors="np")["labels"], np.ndarray)
    assert extractor.pad(stored)["labels"] == stored["labels"]


CLIP_OF_3 = {"input_values": np.zeros((3, 128))}


@pytest.mark.parametrize(
    "items, message",
    [
        ([CLIP_OF_3, CLIP_OF_3 | {"attention_mask": [1, 1, 0]}], "item 1 .* has attention_mask, but item 0 lacks it"),
        ([CLIP_OF_3 | {"labels": 1}, CLIP_OF_3], "item 0 of the batch has labels, but item 1 lacks it"),
        ([CLIP_OF_3, {"labels": 1}], "item 0 of the batch has input_values, but item 1 lacks it"),
        ([{"labels": 1}], "clips to pad need input_values, got labels"),
        (
            {"input_values": [np.zeros((3, 128))] * 2, "attention_mask": [[1] * 3]},
            "attention_mask has 1 .* 2 clips",
        ),
        ([CLIP_OF_3 | {"file": "a.wav"}], r"file makes no tensor \(str in the first item\): leave it out"),
        ([CLIP_OF_3 | {"labels": [1]}, CLIP_OF_3 | {"labels": [1, 2]}], "labels makes no tensor .* of one shape"),
        ([CLIP_OF_3 | {"labels": torch.ones(n)} for n in (1, 2)], "labels makes no tensor .* of one shape"),
    ],
)
def test_batches_that_do_not_fit_together_are_refused(extractor, items, message):
    for return_tensors in ("pt", "np"):
        with pytest.raises(ValueError, match=message):
            extractor.pad(items, return_tensors=return_tensors)
    assert len(extractor.pad([CLIP_OF_3 | {"file": "a.wav"}])["file"]) == 1  # lists hold anything
