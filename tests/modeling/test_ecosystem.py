"""Tests what other libraries expect of the models and extractors of every family, and that no global state matters."""

import copy
import io
import json
import pickle

import numpy as np
import pytest
import soundfile
import torch
from fresh_process import run
from tiny_models import MELS, batch
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification, DataCollatorWithPadding, pipeline

from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForAudioClassification,
    ASiTForAudioFrameClassification,
    ASiTForPreTraining,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForAudioFrameClassification,
    DualSSASTForPreTraining,
    DualSSASTModel,
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    PannsCnn14ForAudioFrameClassification,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishForAudioClassification,
    VGGishForAudioFrameClassification,
)
from modeling_dual_ssast import feature_extraction_dual_ssast as kaldi
from modeling_dual_ssast import feature_extraction_panns_cnn14 as panns
from modeling_dual_ssast import feature_extraction_vggish as vggish

RATE = 16000
PATCHES = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    num_mel_bins=MELS,
    max_length=128,
    initializer_range=0.3,
    num_labels=3,
)
HEADS = dict(class_dim=6, data_dim=5, head_hidden_size=8, head_bottleneck_size=4)
HEADS |= dict(reconstruction_hidden_size=8, reconstruction_bottleneck_size=4)
VGGISH = dict(channels=[3, 4, 5, 6], fc_size=8, num_mel_bins=MELS, example_length=32, num_labels=3)
CNN14 = dict(channels=[2, 3, 4, 5, 6, 7], embedding_size=9, num_mel_bins=MELS, num_labels=3)
OVERLAP = dict(frequency_stride=10, time_stride=10, readout="frames", pooling=["mean", "max", "min"])
FRAMES = dict(patch_size=(MELS, 2), frequency_stride=MELS, time_stride=2)
CLASSIFIERS = {
    "dual_ssast": lambda: DualSSASTForAudioClassification(DualSSASTConfig(**PATCHES)),
    "overlap": lambda: DualSSASTForAudioClassification(DualSSASTConfig(**PATCHES, **OVERLAP)),
    "over_padding": lambda: DualSSASTForAudioClassification(DualSSASTConfig(**PATCHES, attention_over_padding=True)),
    "frames": lambda: DualSSASTForAudioClassification(DualSSASTConfig(**PATCHES, **FRAMES)),
    "separate": lambda: DualSSASTForAudioClassification(
        DualSSASTConfig(**PATCHES, fusion_norm="separate", fusion="weighted")
    ),
    "asit": lambda: ASiTForAudioClassification(ASiTConfig(**PATCHES, **HEADS)),
    "vggish": lambda: VGGishForAudioClassification(VGGishConfig(**VGGISH)),
    "vggish_all": lambda: VGGishForAudioClassification(
        VGGishConfig(**VGGISH, fusion_layers=[1, 14, 21], drop_partial_example=False)
    ),
    "cnn14": lambda: PannsCnn14ForAudioClassification(PannsCnn14Config(**CNN14)),
    "panns": lambda: PannsCnn14ForAudioClassification(PannsCnn14Config(**CNN14, readout="panns")),
}
FRAME_CLASSIFIERS = {
    DualSSASTConfig: DualSSASTForAudioFrameClassification,
    ASiTConfig: ASiTForAudioFrameClassification,
    VGGishConfig: VGGishForAudioFrameClassification,
    PannsCnn14Config: PannsCnn14ForAudioFrameClassification,
}
PRETRAINERS = {
    "msm": lambda: DualSSASTForPreTraining(DualSSASTConfig(**PATCHES)),
    "decoder": lambda: DualSSASTForPreTraining(DualSSASTConfig(**PATCHES, num_decoder_layers=1, shared_mask=False)),
    "asit_pretraining": lambda: ASiTForPreTraining(ASiTConfig(**PATCHES, **HEADS)),
}
FAMILIES = CLASSIFIERS | PRETRAINERS
families = pytest.mark.parametrize("family", CLASSIFIERS)
one_per_code = pytest.mark.parametrize("family", ["dual_ssast", "asit", "vggish", "panns"])
EXTRACTORS = {
    "dual_ssast": lambda: DualSSASTFeatureExtractor(num_mel_bins=MELS, max_length=128),
    "vggish": lambda: VGGishFeatureExtractor(num_mel_bins=MELS),
    "panns": lambda: PannsCnn14FeatureExtractor(num_mel_bins=MELS),
}
extractors = pytest.mark.parametrize("family", EXTRACTORS)
CLIPS = [np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (15000, 9000, 400)]


def make(family):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for parameter in model.parameters():  # ones and zeros hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def extractor_of(model):
    return EXTRACTORS.get(
        {"vggish_composed": "vggish", "panns_cnn14": "panns"}.get(model.config.model_type, "dual_ssast")
    )()


def step_inputs(model):
    """Inputs that give a loss, without random draws."""
    if isinstance(model, ASiTForPreTraining):
        crops = torch.stack([batch(90, 90)[0], batch(90, 80)[0]], dim=1)
        return dict(input_values=crops, corrupted_values=crops / 2, corruption_mask=crops > 0)
    values, mask = batch(90, 40)
    inputs = dict(input_values=values, attention_mask=mask)
    if isinstance(model, DualSSASTForPreTraining):
        return inputs | {"bool_masked_pos": model.sample_mask(values, mask)}
    return inputs | {"labels": torch.tensor([0, 2])}


# ---- masks ----


def moved(mask, kind):
    """Places of the frames of a batch that is padded on the right, and the new mask: (batch, frames) each."""
    places, masks = [], []
    for row in mask:
        length, count = int(row.sum()), len(row)
        taken = {"left": range(count - length, count), "both": range((count - length) // 2, (count + length) // 2)}
        if kind == "holes":
            taken[kind] = sorted(torch.randperm(count, generator=torch.Generator().manual_seed(1))[:length].tolist())
        place = torch.full((count,), count - 1)
        place[list(taken[kind])[:length]] = torch.arange(length)
        places.append(place)
        masks.append(torch.zeros(count, dtype=torch.long).index_fill(0, torch.tensor(list(taken[kind])[:length]), 1))
    return torch.stack(places), torch.stack(masks)


@pytest.mark.parametrize("kind", ["left", "both", "holes"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_any_side_gives_the_numbers_of_padding_on_the_right(family, kind):
    model = make(family)
    inputs = step_inputs(model)
    mask = batch(90, 40)[1]
    places, new_mask = moved(mask, kind)

    def place(values):
        index = places[:, None, :, None] if values.ndim == 4 else places[:, :, None]
        return values.gather(values.ndim - 2, index.expand_as(values))

    spectrograms = {"input_values", "corrupted_values", "corruption_mask"} & set(inputs)
    expected = model(**{**inputs, "attention_mask": mask})
    for as_type in (torch.long, torch.bool, torch.float32, torch.uint8):
        changed = inputs | {name: place(inputs[name]) for name in spectrograms}
        output = model(**{**changed, "attention_mask": new_mask.to(as_type)})
        torch.testing.assert_close(output.to_tuple()[:2], expected.to_tuple()[:2], atol=1e-6, rtol=0)
    assert not torch.equal(model(**changed).loss, expected.loss)  # the mask matters


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda mask: torch.where(mask.bool(), 0.0, -1e9), "float32 numbers beside 0 and 1"),
        (lambda mask: mask[:, :-1], r"expected \(batch, frames\) = \(2, 90\): use the one"),
        (lambda mask: mask[:, None], "attention_mask has shape"),
        (lambda mask: mask[0], "attention_mask has shape"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(family, wrong, message):
    model = make(family)
    with pytest.raises(ValueError, match=message):
        model(**{**step_inputs(model), "attention_mask": wrong(batch(90, 40)[1])})


# ---- graphs ----


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("masked", [True, False])
@families
def test_traced_and_onnx_models_read_every_length(family, masked):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make(family)
    model.config.return_dict = False
    example = batch(100, 61)[: 1 + masked]
    names = ["input_values", "attention_mask"][: 1 + masked]
    file, axes = io.BytesIO(), {name: {0: "batch", 1: "frames"} for name in names}
    torch.onnx.export(model, example, file, dynamo=False, input_names=names, dynamic_axes=axes)
    session, traced = onnxruntime.InferenceSession(file.getvalue()), torch.jit.trace(model, example)
    for lengths in ((100, 61), (99, 3), (128, 7), (33, 1), (97, 64, 5)):
        inputs = batch(*lengths)[: 1 + masked]
        with torch.no_grad():
            expected = model(*inputs)[0]
        outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})
        torch.testing.assert_close(torch.from_numpy(outputs[0]), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(traced(*inputs)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
@one_per_code
def test_exported_programs_read_every_length(family, masked):
    model = make(family)
    free = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},) * (1 + masked)
    program = torch.export.export(model, batch(100, 61)[: 1 + masked], dynamic_shapes=free, strict=False).module()
    for lengths in ((99, 40), (70, 64), (64, 5, 2)):  # torch.export sets sizes of 1 apart
        inputs = batch(*lengths)[: 1 + masked]
        torch.testing.assert_close(program(*inputs).logits, model(*inputs).logits, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
@one_per_code
def test_one_compiled_graph_reads_every_length(family, dynamic):
    model = make(family)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="eager")
    for lengths in ((100, 61), (99, 3), (64, 40)):
        for inputs in (batch(*lengths), batch(*lengths)[:1]):
            torch.testing.assert_close(compiled(*inputs).logits, model(*inputs).logits, atol=1e-5, rtol=0)


# ---- the official audio-classification script ----


def script_batch(extractor, clips, labels):
    """Repeats the calls of Transformers' run_audio_classification.py: its transform, and the collator of Trainer."""
    inputs = extractor(clips, sampling_rate=extractor.sampling_rate)
    columns = {"input_values": inputs.get("input_values"), "labels": list(labels)}
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    return DataCollatorWithPadding(extractor)(rows)


@pytest.mark.parametrize("family", ["dual_ssast", "asit", "vggish", "cnn14"])
def test_the_official_script_sees_the_logits_of_the_pipeline(family):
    model = make(family)
    extractor = extractor_of(model)
    with torch.no_grad():
        features = script_batch(extractor, CLIPS, [0, 1, 2])
        logits = model(**features).logits
        alone = torch.cat([model(**extractor(clip, RATE, return_tensors="pt")).logits for clip in CLIPS])
    lengths = [extractor(clip, RATE, return_tensors="pt")["input_values"].shape[1] for clip in CLIPS]
    assert features["attention_mask"].sum(dim=1).tolist() == lengths
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    scores = pipeline("audio-classification", model=model, feature_extractor=extractor)(list(CLIPS), top_k=1)
    names = [row[0]["label"] for row in scores]
    assert [model.config.id2label[index] for index in logits.argmax(dim=1).tolist()] == names


def test_originals_without_a_mask_are_padded_to_max_length_everywhere():
    extractor = DualSSASTFeatureExtractor.original(num_mel_bins=MELS, max_length=110)
    assert {len(values) for values in extractor(CLIPS, sampling_rate=RATE)["input_values"]} == {110}
    features = script_batch(extractor, CLIPS, [0, 1, 2])
    expected = extractor(CLIPS, sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert set(features) == {"input_values", "labels"} and torch.equal(features["input_values"], expected)


@pytest.mark.slow
def test_a_folder_fine_tuned_by_the_calls_of_the_script_is_as_good_in_the_pipeline(tmp_path):
    from transformers import Trainer, TrainingArguments

    rng = np.random.default_rng(0)
    clips, labels = [], []
    for index in range(24):  # noise whose colour is the class; short clips stand beside long ones
        noise = rng.normal(0, 0.1, rng.integers(3000, 20000)).astype(np.float32)
        clips.append(np.cumsum(noise) * 0.05 if index % 2 else noise)
        labels.append(index % 2)
    clips = [clip.astype(np.float32) for clip in clips]
    model = DualSSASTForAudioClassification(DualSSASTConfig(**{**PATCHES, "num_labels": 2}))
    extractor = extractor_of(model)

    def rows(indices):
        inputs = extractor([clips[index] for index in indices], sampling_rate=RATE)
        return [{"input_values": v, "labels": labels[i]} for v, i in zip(inputs["input_values"], indices)]

    options = dict(num_train_epochs=6, per_device_train_batch_size=8, learning_rate=3e-3, report_to=[], seed=0)
    arguments = TrainingArguments(tmp_path / "run", save_strategy="no", disable_tqdm=True, use_cpu=True, **options)
    data = rows(range(24))
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=extractor)
    trainer.train()
    logits = torch.from_numpy(trainer.predict(data).predictions)
    trainer.save_model(tmp_path / "saved")
    answers = pipeline("audio-classification", model=str(tmp_path / "saved"), device="cpu")(list(clips), top_k=2)
    scores = [{entry["label"]: entry["score"] for entry in row} for row in answers]
    piped = torch.tensor([[row[name] for name in model.config.label2id] for row in scores])
    # Names alone agree on easy clips, also where the script's batches are padded without a mask.
    torch.testing.assert_close(piped, logits.softmax(dim=1), atol=1e-5, rtol=0)
    assert np.mean(piped.argmax(dim=1).numpy() == labels) > 0.9


# ---- Accelerate, PEFT, sentence-transformers ----


@pytest.mark.parametrize("family", ["dual_ssast", "separate", "asit", "vggish", "panns"])
def test_modules_may_lie_on_the_disk(family, tmp_path):
    model = make(family)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    extractor = extractor_of(model)
    base = model.base_model_prefix
    inner = [f"{base}.{name}" for name, _ in model.base_model.named_children()]
    parts = [*inner, *(name for name, _ in model.named_children() if name != base)]
    for devices in ({"": "disk"}, {name: ("cpu", "disk")[place % 2] for place, name in enumerate(parts)}):
        loaded = AutoModelForAudioClassification.from_pretrained(
            tmp_path, device_map=devices, offload_folder=tmp_path / "offloaded"
        )
        with torch.no_grad():
            torch.testing.assert_close(loaded(*batch(90, 40)).logits, model(*batch(90, 40)).logits, atol=1e-6, rtol=0)
        for method in ("embed", "embed_frames"):
            outputs = [getattr(m.base_model, method)(CLIPS, RATE, extractor) for m in (loaded, model)]
            torch.testing.assert_close(outputs[0][0], outputs[1][0], atol=1e-6, rtol=0)
        windows = [m.classify_windows(CLIPS[0], extractor, RATE).logits for m in (loaded, model)]
        torch.testing.assert_close(*windows, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", PRETRAINERS)
def test_modules_of_a_pretraining_may_lie_on_the_disk(family, tmp_path):
    model = make(family)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map={"": "disk"}, offload_folder=tmp_path / "offloaded")
    inputs = step_inputs(model)
    with torch.no_grad():
        found, expected = (m.eval()(**inputs).loss for m in (loaded, model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize(
    "family, modules", [("dual_ssast", ["q_proj"]), ("asit", ["fc1"]), ("vggish", ["features.3"]), ("panns", ["conv1"])]
)
def test_peft_trains_and_merges_for_a_task(family, modules, task, tmp_path):
    peft = pytest.importorskip("peft")
    model = make(family) if task == "SEQ_CLS" else make(family).base_model
    values, mask = batch(90, 40)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=modules, r=2))
    labels = {"labels": torch.tensor([0, 1])} if task == "SEQ_CLS" else {}
    output = adapted(input_values=values, attention_mask=mask, **labels)
    (output.loss if labels else output.pooler_output.sum()).backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_" in name)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(values, mask)[0], merged(values, mask)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_keywords_that_ask_for_nothing_are_ignored(family):
    model = make(family)
    inputs = step_inputs(model)
    expected = model(**inputs)[0]
    ignored = dict(input_ids=None, inputs_embeds=None, num_items_in_batch=4, use_cache=True, output_attentions=False)
    assert torch.equal(model(**inputs, **ignored)[0], expected)
    with pytest.raises(TypeError, match="unexpected keyword 'atention_mask'; did you mean 'attention_mask'"):
        model(**inputs, atention_mask=torch.ones(2, 90))
    with pytest.raises(TypeError, match="unexpected keyword 'input_ids'"):
        model(**inputs, input_ids=torch.ones(2, 90, dtype=torch.long))


@pytest.mark.parametrize("family", ["dual_ssast", "msm", "vggish", "panns"])
def test_saved_folders_hold_the_files_of_sentence_transformers(family, tmp_path):
    model = make(family)
    (tmp_path / "modules.json").write_text("[]")  # sentence-transformers' own, with more modules
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modules.json").read_text() == "[]"
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    (modality,) = settings["modality_config"].values()
    assert hasattr(model.base_model, modality["method"]) and modality["method_output_name"] == "pooler_output"
    assert settings["processing_kwargs"] == {"audio": {"return_waveforms": True}}
    assert (tmp_path / "config_sentence_transformers.json").is_file()
    assert model.config.projection_dim == model.config.fused_size and "projection_dim" not in model.config.to_dict()


LONG = np.random.default_rng(1).normal(0, 0.1, 70000).astype(np.float32)  # several windows of the transformers
VARIED = [*CLIPS, LONG, LONG[:10]]


@families
@pytest.mark.parametrize("rate", [RATE, 44100, 8000])
def test_a_padded_batch_has_the_embeddings_of_its_clips(family, rate):
    """The two calls that sentence-transformers makes."""
    model, extractor = make(family).base_model, extractor_of(make(family))
    expected = model.embed(VARIED, rate, extractor, batch_size=1)
    if model.max_frames:  # embed's own extractor has the model's length, whatever is stored
        extractor.max_length = 20
    features = extractor(VARIED, sampling_rate=rate, padding=True, return_tensors="pt", return_waveforms=True)
    output = model.embed_padded(**features)
    torch.testing.assert_close(output.pooler_output, expected, atol=1e-5, rtol=1e-5)
    if any(parameter.requires_grad for parameter in model.parameters()):  # a contrastive loss trains the encoder
        model.train()
        model.embed_padded(**features).pooler_output.sum().backward()
        assert model.training and any(parameter.grad is not None for parameter in model.parameters())


@extractors
def test_waveforms_may_be_files_of_any_rates(family, tmp_path):
    extractor = EXTRACTORS[family]()
    soundfile.write(tmp_path / "a.wav", np.stack([LONG, LONG / 2], axis=1), 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "b.flac", CLIPS[0], 8000)
    files = [str(tmp_path / name) for name in ("a.wav", "b.flac")]
    features = extractor([*files, CLIPS[1]], sampling_rate=22050, return_waveforms=True)
    assert features["num_samples"].tolist() == [70000, 15000, 9000]
    assert features["sampling_rates"].tolist() == [44100, 8000, 22050]
    assert np.array_equal(features["input_values"][0], 0.75 * LONG) and not features["input_values"][1:, 15000:].any()
    for rate in (0, -1, "16000", True):
        with pytest.raises(ValueError, match=f"sampling_rate must be a positive number, got {rate!r}"):
            extractor(CLIPS, sampling_rate=rate, return_waveforms=True)
    with pytest.raises(ValueError, match=r"clip 1 has shape \(70000, 2\), expected \(samples,\)"):
        extractor([files[1], np.stack([LONG, LONG], axis=1)], sampling_rate=8000, return_waveforms=True)


@pytest.mark.slow
def test_sentence_transformers_embeds_like_embed(tmp_path):
    """In a process that has only the folders: clips of any rate and length, files, and what it saves itself."""
    pytest.importorskip("sentence_transformers")  # its import takes longer than the rest: one process for all
    np.savez(tmp_path / "clips.npz", *VARIED)
    soundfile.write(tmp_path / "long.wav", LONG, 44100, subtype="FLOAT")
    for family in ("dual_ssast", "overlap", "frames", "over_padding", "asit", "msm", "vggish", "panns"):
        model, extractor = make(family), extractor_of(make(family))
        models = {family: model}
        if hasattr(model, "classifier") or hasattr(model, "composed_classifier"):
            models[f"{family}-frame-classifier"] = FRAME_CLASSIFIERS[type(model.config)](model.config)
        for name, saved in models.items():
            saved.save_pretrained(tmp_path / name)
            extractor.save_pretrained(tmp_path / name)
            encoder = AutoModel.from_pretrained(tmp_path / name)
            expected = [encoder.embed(VARIED, rate).numpy() for rate in (RATE, 44100, 8000)]
            np.savez(tmp_path / f"{name}.npz", *expected)
    script = """
from pathlib import Path
from sentence_transformers import SentenceTransformer

place = Path(sys.argv[1])
clips = list(np.load(place / "clips.npz").values())
folders = sorted(path.parent for path in place.glob("*/modules.json"))
assert len(folders) == 15, folders
for folder in folders:
    expected = list(np.load(f"{folder}.npz").values())
    for source in (folder, folder / "again"):
        encoder = SentenceTransformer(str(source), trust_remote_code=True)
        assert type(encoder[0].model).__module__.startswith("transformers_modules.")
        assert encoder.get_embedding_dimension() == expected[0].shape[1]
        for rate, embeddings in zip((16000, 44100, 8000), expected):
            audio = [{"array": clip, "sampling_rate": rate} for clip in clips]
            for batch_size in (1, 3, 32):
                found = encoder.encode(audio, batch_size=batch_size)
                np.testing.assert_allclose(found, embeddings, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(encoder.encode(clips), expected[0], rtol=1e-5, atol=1e-5)
        found = encoder.encode(str(place / "long.wav"))
        np.testing.assert_allclose(found, expected[1][3], rtol=1e-5, atol=1e-5)
        encoder.save(str(folder / "again"), create_model_card=False)
"""
    run(script, tmp_path, tmp_path)


# ---- outputs and losses ----


@pytest.mark.parametrize("family", FAMILIES)
def test_tuples_have_the_order_of_the_output_class(family):
    model = make(family)
    inputs = step_inputs(model) | {"output_hidden_states": True}
    if hasattr(model.config, "hidden_size"):
        inputs["output_attentions"] = True
    output, values = model(**inputs), model(**inputs, return_dict=False)
    names = [name for name in type(output).__dataclass_fields__ if getattr(output, name) is not None]
    assert names[-1] == ("attentions" if "output_attentions" in inputs else "hidden_states")
    assert len(names) == len(values)
    torch.testing.assert_close([getattr(output, name) for name in names], list(values))
    outputs = make(family)(**step_inputs(model))
    assert "hidden_states" not in outputs and "attentions" not in outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_carry_gradients(family):
    model = make(family).train()
    output = model(**step_inputs(model), output_hidden_states=True)
    for state in output.hidden_states:
        state.retain_grad()
    output.loss.backward()
    reached = [state.grad is not None and state.grad.any().item() for state in output.hidden_states]
    assert all(reached[:6]) and (family == "vggish" or all(reached))  # its Linear layers are not fused


@pytest.mark.parametrize("as_module", [False, True])
@one_per_code
def test_a_loss_function_of_ones_own_is_used(family, as_module):
    class Loss(nn.Module):
        def forward(self, labels, logits, config):
            return logits.sum() * 0 + labels.sum() + config.num_labels

    model = make(family)
    inputs = step_inputs(model)
    usual = model(**inputs).loss
    model.loss_function = Loss() if as_module else Loss().forward
    assert model(**inputs).loss == 5
    model.loss_function = None
    assert torch.equal(model(**inputs).loss, usual)


class Constant(nn.Module):
    """A loss with a buffer, and a parameter if it learns."""

    def __init__(self, value, learns=False):
        super().__init__()
        self.register_buffer("value", torch.tensor(float(value)))
        self.scale = nn.Parameter(torch.ones(())) if learns else 1.0

    def forward(self, labels, logits, config):
        return self.value * self.scale


@one_per_code
def test_loss_functions_and_modules_replace_each_other_and_are_not_saved(family, tmp_path):
    model = make(family)
    inputs, keys = step_inputs(model), list(model.state_dict())
    for expected, function in enumerate([lambda *_: 0.0, Constant(1), lambda *_: 2.0, Constant(3), Constant(4)]):
        model.loss_function = function
        assert model(**inputs).loss == expected
    assert copy.deepcopy(model)(**inputs).loss == 4
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    _, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]


def test_a_loss_module_follows_the_logits_and_says_who_trains_it(warnings_of_models):
    model = make("dual_ssast")
    model.loss_function = Constant(1).to("meta")
    with pytest.raises(NotImplementedError, match="out of meta"):  # it is moved; here without values to move
        model(**step_inputs(model))
    assert not warnings_of_models
    model.loss_function = Constant(1, learns=True)
    assert "neither saved nor trained" in warnings_of_models[-1]


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
@one_per_code
def test_labels_that_are_refused_change_nothing(family, problem_type):
    model = make(family)
    model.config.problem_type = problem_type
    inputs = step_inputs(model)
    for wrong in (torch.zeros(2, 1), torch.zeros(2, 7)):
        with pytest.raises(ValueError, match="do not fit logits"):
            model(**inputs | {"labels": wrong})
        assert model.config.problem_type == problem_type
    assert model(**inputs).loss.isfinite() and model.config.problem_type == "single_label_classification"


def test_asits_buffers_are_set_before_any_initialisation(monkeypatch):
    monkeypatch.setattr(ASiTForPreTraining, "_init_weights", lambda self, module: None)
    config = ASiTConfig(**PATCHES, **HEADS)
    model = ASiTForPreTraining(config)
    with torch.device("meta"):
        buffers = dict(ASiTForPreTraining(config).named_buffers())
    assert {buffer.device.type for buffer in buffers.values()} == {"meta"}
    assert not model.class_center.any() and not model.data_center.any()
    assert model.teacher_temperature == pytest.approx(config.teacher_temperature_at(0))


def test_asits_buffers_missing_in_a_file_are_set(tmp_path):
    ASiTForAudioClassification(ASiTConfig(**PATCHES, **HEADS)).save_pretrained(tmp_path)
    model = ASiTForPreTraining.from_pretrained(tmp_path)
    assert not model.class_center.any() and model.teacher_temperature == pytest.approx(0.04)


def test_masked_patches_need_a_token():
    with pytest.raises(ValueError, match="pass mask_token .*DualSSASTForPreTraining"):
        DualSSASTModel(DualSSASTConfig(**PATCHES))(batch(64)[0], bool_masked_pos=torch.zeros(1, 8, dtype=torch.bool))


@pytest.mark.parametrize("family", FAMILIES)
def test_models_are_copied_and_pickled(family):
    model = make(family)
    inputs = step_inputs(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**inputs)[0], model(**inputs)[0])


# ---- feature extractors ----


@extractors
def test_pad_follows_transformers(family):
    extractor = EXTRACTORS[family]()
    rows = [{"input_values": np.ones((n, MELS)), "labels": [0.5, n]} for n in (5, 12)]
    output = extractor.pad(rows, return_tensors="np")
    assert {value.dtype for value in output.values()} == {np.dtype("float32"), np.dtype("int64")}
    cut = extractor.pad(rows, padding="max_length", max_length=6, truncation=True, pad_to_multiple_of=4)
    assert [len(v) for v in cut["input_values"]] == [8, 8] and [m.sum() for m in cut["attention_mask"]] == [5, 8]
    whole = extractor.pad(rows, padding="max_length", max_length=8, return_tensors="np")
    assert [len(v) for v in whole["input_values"]] == [8, 12]  # a list: too long, and not to be cut
    for options in ({"truncation": True}, {"padding": "max_length"}, {"padding": "max_length", "truncation": True}):
        with pytest.raises(ValueError, match="needs a max_length in frames: pass max_length"):
            extractor.pad(rows, **{"padding": "longest"} | options)
    extractor.padding_side = "left"
    assert extractor.pad(rows, return_tensors="pt")["attention_mask"][0].tolist() == [0] * 7 + [1] * 5


@extractors
def test_calls_know_the_keywords_of_transformers(family):
    extractor = EXTRACTORS[family]()
    plain = extractor(CLIPS, sampling_rate=RATE, return_tensors="pt")["input_values"]
    output = extractor(CLIPS, sampling_rate=RATE, return_tensors="pt", pad_to_multiple_of=50, device="cpu")
    assert output["input_values"].shape[1] == 100 and torch.equal(output["input_values"][:, : plain.shape[1]], plain)
    rows = extractor(CLIPS, sampling_rate=RATE, device=torch.device("cpu"))["input_values"]
    assert all(isinstance(row, np.ndarray) and row.dtype == np.float32 for row in rows)
    for other in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        assert torch.equal(other(CLIPS, sampling_rate=RATE, return_tensors="pt")["input_values"], plain)


# ---- state of the process and of the model ----


@pytest.fixture
def forget():
    """Forgets the cached filters and windows before the test and after it."""
    caches = (
        kaldi.kaldi_mel_filters,
        kaldi.kaldi_mel_bands,
        kaldi.hann_window,
        panns.slaney_mel_filters,
        vggish.vggish_mel_filters,
    )

    def clear():
        for cache in caches:
            cache.cache_clear()

    yield clear
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    clear()


def everything(model, extractor):
    """All numbers that a process gets from a model."""
    frames = model.base_model.embed_frames(CLIPS, RATE, extractor)
    features = extractor(CLIPS, sampling_rate=RATE, return_tensors="pt")
    windows = model.classify_windows(CLIPS[0], extractor, RATE)
    with torch.no_grad():
        logits = model(**features).logits
    padded = extractor.pad(
        [{"input_values": [[0.0] * MELS] * n, "labels": [1, 0.5]} for n in (3, 2)], return_tensors="pt"
    )
    embeddings = model.base_model.embed(CLIPS, RATE, extractor)
    return [*features.values(), logits, embeddings, *windows.to_tuple(), *frames[0], *padded.values()]


@pytest.mark.parametrize("state", ["bfloat16", "float16", "float64", "meta", "inference", "autocast"])
@one_per_code
def test_numbers_do_not_depend_on_the_process(family, state, forget):
    model = make(family)
    extractor = extractor_of(model)
    expected = everything(model, extractor)
    forget()
    if state == "meta":
        torch.set_default_device("meta")
        output = everything(model, extractor)
    elif state == "inference":
        with torch.inference_mode():
            output = everything(model, extractor)
    elif state == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            output = extractor(CLIPS, sampling_rate=RATE, return_tensors="pt")
        output, expected = [*output.values()], expected[:2]
    else:
        torch.set_default_dtype(getattr(torch, state))
        output = everything(model, extractor)
    torch.testing.assert_close(output, expected, atol=0, rtol=0)
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(everything(model, extractor)[:2], everything(model, extractor)[:2], atol=0, rtol=0)


@pytest.mark.parametrize("family", ["vggish", "panns"])
def test_filters_made_in_inference_mode_serve_training(family, forget):
    forget()
    extractor = EXTRACTORS[family]()
    with torch.inference_mode():
        extractor(CLIPS, sampling_rate=RATE)
    clip = torch.from_numpy(CLIPS[1].copy()).requires_grad_()
    extractor.spectrograms([clip])[0].sum().backward()
    assert clip.grad.any()


@families
def test_windows_and_embeddings_leave_modes_and_statistics_alone(family):
    model = make(family)
    extractor = extractor_of(model)
    expected = everything(model, extractor)
    model.train()
    next(model.base_model.children()).eval()  # a part that its owner froze
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    windows = model.classify_windows(CLIPS[0], extractor, RATE)
    embeddings = model.base_model.embed(CLIPS, RATE, extractor)
    assert torch.equal(windows.logits, expected[4]) and torch.equal(embeddings, expected[3])
    assert modes == [module.training for module in model.modules()]
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)
