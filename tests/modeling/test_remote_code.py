"""Tests that a saved folder loads, trains and saves again without this package."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_process import RATE, SHIPPED, audio, run
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import modeling_dual_ssast
from modeling_dual_ssast import (
    ASiTConfig,
    ASiTForPreTraining,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    DualSSASTForAudioClassification,
    DualSSASTForPreTraining,
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    PannsCnn14ForAudioClassification,
    VGGishConfig,
    VGGishFeatureExtractor,
    VGGishForAudioClassification,
)

SOURCE = Path(modeling_dual_ssast.__file__).parent
SHIPPED_WITH_ASIT = SHIPPED | {"configuration_asit.py", "corruption_asit.py", "modeling_asit.py"}
# A convolutional network's folder holds neither the transformer nor its masks.
TRANSFORMER = {f"{part}_dual_ssast.py" for part in ("attention", "masking", "modeling", "packing")}
SHIPPED_WITH_CNNS = SHIPPED - TRANSFORMER | {
    "configuration_composed.py",
    "modeling_composed.py",
}
CNNS = {
    "vggish": (
        VGGishConfig(channels=[3, 4, 5, 6], fc_size=8, num_mel_bins=16, example_length=32),
        VGGishForAudioClassification,
        VGGishFeatureExtractor,
    ),
    "panns_cnn14": (
        PannsCnn14Config(channels=[2, 3, 4, 5, 6, 7], embedding_size=9, num_mel_bins=32, readout="panns"),
        PannsCnn14ForAudioClassification,
        PannsCnn14FeatureExtractor,
    ),
}
AUTO_CLASSES = {
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoModel",
    "AutoModelForAudioClassification",
    "AutoModelForAudioFrameClassification",
    "AutoModelForPreTraining",
}
OPTIONS = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    num_mel_bins=32,
    max_length=120,
    initializer_range=0.3,
)


def expected_outputs(model, extractor):
    features = extractor(audio(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return model(**features).logits.numpy(), model.dual_ssast(**features).pooler_output.numpy()


def shipped_with(family):
    return SHIPPED_WITH_CNNS | {f"{part}_{family}.py" for part in ("configuration", "feature_extraction", "modeling")}


def check_folder(folder, shipped=SHIPPED, auto_classes=AUTO_CLASSES):
    """The code and a complete local auto_map lie beside the weights."""
    assert {path.name for path in folder.iterdir() if path.suffix == ".py"} == shipped
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert set(auto_map) == auto_classes
    extractor_map = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]
    assert set(extractor_map) == {"AutoFeatureExtractor"}
    references = [*auto_map.values(), *extractor_map.values()]
    assert not any("--" in reference for reference in references)
    assert all((folder / f"{reference.split('.')[0]}.py").is_file() for reference in references)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier and its extractor in one folder, and what they give for a clip."""
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    torch.manual_seed(0)
    config = DualSSASTConfig(**OPTIONS, id2label={0: "dog", 1: "cat", 2: "owl"}, fusion="weighted")
    model, extractor = (
        DualSSASTForAudioClassification(config).eval(),
        DualSSASTFeatureExtractor(num_mel_bins=32, max_length=120),
    )
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    logits, pooled = expected_outputs(model, extractor)
    np.savez(folder.parent / "expected.npz", audio=audio(), logits=logits, pooled=pooled)
    return folder


def test_saved_folders_carry_their_code(saved):
    check_folder(saved)
    for name in SHIPPED:
        assert (saved / name).read_text() == (SOURCE / name).read_text()


@pytest.mark.parametrize("family", ["dual_ssast", "asit", *CNNS])
def test_shipped_files_need_only_torch_numpy_and_transformers(family):
    shipped = {"dual_ssast": SHIPPED, "asit": SHIPPED_WITH_ASIT}.get(family) or shipped_with(family)
    for name in shipped:
        foreign = set(get_imports(SOURCE / name)) - sys.stdlib_module_names
        assert foreign <= {"torch", "numpy", "transformers"}
        assert {f"{module}.py" for module in get_relative_imports(SOURCE / name)} <= shipped


def test_one_folder_serves_every_auto_class_and_the_pipeline(saved, tmp_path):
    script = """
folder, expected = sys.argv[1], np.load(sys.argv[2])
model, extractor = check_all(folder, expected["audio"], expected["logits"], expected["pooled"])
output = model.classify_windows(np.tile(expected["audio"], 3), extractor, sampling_rate=16000)
assert output.logits.shape == (3,) and len(output.start_s) > 3
try:
    load(AutoModelForAudioClassification, folder, fusion_layers=[99])
except ValueError as error:
    assert "from -3 to 2, got 99" in str(error)
else:
    raise SystemExit("fusion_layers=[99] was accepted")
assert load(AutoModelForAudioClassification, folder, max_length=300).config.max_length == 300
frozen = load(AutoModelForAudioClassification, folder, fusion_layers=[1], fusion="sum")
assert {n for n, p in frozen.named_parameters() if not p.requires_grad} == {
    n for n, p in frozen.named_parameters() if n.startswith("dual_ssast.layers.1.")
}
"""
    run(script, tmp_path, saved, saved.parent / "expected.npz")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mspm", "asit"])
def test_a_pretraining_folder_becomes_a_classifier(tmp_path, method):
    torch.manual_seed(0)
    if method == "mspm":
        model = DualSSASTForPreTraining(DualSSASTConfig(**OPTIONS))
    else:
        model = ASiTForPreTraining(ASiTConfig(**OPTIONS, class_dim=8, data_dim=8, head_hidden_size=16))
    model.save_pretrained(tmp_path / "pretraining")
    DualSSASTFeatureExtractor(num_mel_bins=32, max_length=120).save_pretrained(tmp_path / "pretraining")
    check_folder(tmp_path / "pretraining", SHIPPED if method == "mspm" else SHIPPED_WITH_ASIT)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    script = """
folder, weights = sys.argv[1], torch.load(sys.argv[2], weights_only=True)
model = load(AutoModelForPreTraining, folder)
assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
load(AutoFeatureExtractor, folder)
encoder = load(AutoModel, folder)
assert all(torch.equal(value, weights["dual_ssast." + name]) for name, value in encoder.state_dict().items())
classifier, info = AutoModelForAudioClassification.from_pretrained(
    folder, trust_remote_code=True, num_labels=4, output_loading_info=True
)
assert type(classifier).__module__.startswith("transformers_modules.")
assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}, info
state = classifier.state_dict()
assert all(torch.equal(state[n], v) for n, v in weights.items() if n.startswith("dual_ssast."))
classifier.save_pretrained(folder + "/classifier")
again = load(AutoModelForAudioClassification, folder + "/classifier")
assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
"""
    run(script, tmp_path, tmp_path / "pretraining", tmp_path / "weights.pt")


@pytest.mark.slow
@pytest.mark.parametrize("family", CNNS)
def test_a_folder_of_a_convolutional_network(tmp_path, family):
    """Every Auto class, the pipeline, both readouts, a step of Trainer, and what is saved again."""
    config, model_class, extractor_class = CNNS[family]
    folder, auto_classes = tmp_path / "saved", AUTO_CLASSES - {"AutoModelForPreTraining"}
    torch.manual_seed(0)
    config.id2label = {0: "dog", 1: "cat", 2: "owl"}
    config.label2id = {label: index for index, label in config.id2label.items()}
    model, extractor = model_class(config).eval(), extractor_class(num_mel_bins=config.num_mel_bins)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    check_folder(folder, shipped_with(family), auto_classes)
    features = extractor(audio(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits, pooled = model(**features).logits.numpy(), model.base_model(**features).pooler_output.numpy()
    np.savez(tmp_path / "expected.npz", audio=audio(), logits=logits, pooled=pooled)
    script = """
from transformers import Trainer, TrainingArguments
folder, expected = sys.argv[1], np.load(sys.argv[2])

def check(folder):
    assert load(AutoConfig, folder).id2label == {0: "dog", 1: "cat", 2: "owl"}
    extractor, model = load(AutoFeatureExtractor, folder), load(AutoModelForAudioClassification, folder)
    features = extractor(expected["audio"], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        close(model(**features).logits, expected["logits"], "classifier")
        close(load(AutoModel, folder)(**features).pooler_output, expected["pooled"], "network")
    top = pipeline("audio-classification", model=folder, feature_extractor=folder, trust_remote_code=True)(
        {"array": expected["audio"], "sampling_rate": 16000}, top_k=3
    )
    scores = torch.tensor(expected["logits"])[0].softmax(dim=0).sort(descending=True)
    assert [item["label"] for item in top] == [("dog", "cat", "owl")[i] for i in scores.indices], top
    close([item["score"] for item in top], scores.values, "pipeline")
    return model, extractor

model, extractor = check(folder)
model.save_pretrained(folder + "/again")
extractor.save_pretrained(folder + "/again")
check(folder + "/again")
options = {"readout": "composed"} if model.config.model_type == "panns_cnn14" else {"drop_partial_example": False}
model = load(AutoModelForAudioClassification, folder, fusion_layers=[1, 4], **options, ignore_mismatched_sizes=True)
assert not all(parameter.requires_grad for parameter in model.parameters())
clips = [expected["audio"][: 900 + 2000 * i] for i in range(4)]
data = [
    {"input_values": extractor(clip, sampling_rate=16000)["input_values"][0], "label": i % 3}
    for i, clip in enumerate(clips)
]
arguments = TrainingArguments(
    folder + "/out", max_steps=2, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
    disable_tqdm=True, logging_steps=1,
)
trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=extractor)
trainer.train()
assert 0 < trainer.evaluate()["eval_loss"] < 10
again = load(AutoModelForAudioClassification, folder + "/out/checkpoint-2")
assert again.config.fusion_layers == [1, 4]
assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
"""
    run(script, tmp_path, folder, tmp_path / "expected.npz")
    for name in ("again", "out/checkpoint-2"):
        check_folder(folder / name, shipped_with(family), auto_classes)


@pytest.mark.slow
def test_a_stranger_fine_tunes_with_trainer_and_shares_the_result(saved, tmp_path):
    """Plain Trainer in one fresh process; its checkpoint and what it saves load in another, without the first."""
    folder = tmp_path / "downloaded"
    shutil.copytree(saved, folder)
    train = """
from transformers import Trainer, TrainingArguments
folder, out, expected = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
extractor = load(AutoFeatureExtractor, folder)
model = load(AutoModelForAudioClassification, folder)
audio = expected["audio"]
clips = [audio[: 4000 + 700 * i] for i in range(8)]
data = [
    {"input_values": extractor(clip, sampling_rate=16000)["input_values"][0], "label": i % 3}
    for i, clip in enumerate(clips)
]
arguments = TrainingArguments(
    out, max_steps=2, save_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2,
    report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1, gradient_checkpointing=True,
)
trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=extractor)
before = {name: value.clone() for name, value in model.state_dict().items()}
trainer.train()
assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
assert 0 < trainer.evaluate()["eval_loss"] < 10
predictions = trainer.predict(data)
assert predictions.predictions.shape == (8, 3)
model.save_pretrained(out + "/shared")
extractor.save_pretrained(out + "/shared")
model.eval()
features = extractor(audio, sampling_rate=16000, return_tensors="pt")
with torch.no_grad():
    logits, pooled = model(**features).logits.numpy(), model.dual_ssast(**features).pooler_output.numpy()
np.savez(out + "/expected.npz", audio=audio, logits=logits, pooled=pooled)
"""
    out = tmp_path / "out"
    run(train, tmp_path, folder, out, saved.parent / "expected.npz")
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "hf_home")  # with it the code that the first process had cached
    for name in ("checkpoint-2", "shared"):
        check_folder(out / name)
    load_again = """
expected = np.load(sys.argv[1])
for folder in sys.argv[2:]:
    check_all(folder, expected["audio"], expected["logits"], expected["pooled"])
"""
    run(load_again, tmp_path, out / "expected.npz", out / "checkpoint-2", out / "shared")


def test_what_was_loaded_from_a_repository_is_saved_with_its_own_code(saved, tmp_path):
    """Transformers turns auto_map into "user/name--file.Class" when it loads from the Hub; what is saved is local."""
    folder = tmp_path / "downloaded"
    shutil.copytree(saved, folder)
    for name in ("config.json", "preprocessor_config.json"):
        stored = json.loads((folder / name).read_text())
        stored["auto_map"] = {key: f"user/name--{value}" for key, value in stored["auto_map"].items()}
        (folder / name).write_text(json.dumps(stored))
    model = DualSSASTForAudioClassification.from_pretrained(folder)
    extractor = DualSSASTFeatureExtractor.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    extractor.save_pretrained(tmp_path / "saved")
    check_folder(tmp_path / "saved")
    DualSSASTConfig.from_pretrained(folder).save_pretrained(tmp_path / "config_only")
    auto_map = json.loads((tmp_path / "config_only" / "config.json").read_text())["auto_map"]
    assert set(auto_map) == AUTO_CLASSES and not any("--" in reference for reference in auto_map.values())


def test_who_imports_the_package_needs_no_trust(saved):
    """Auto classes and pipeline, with `trust_remote_code` left out and refused."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

    for options in ({}, {"trust_remote_code": False}):
        assert type(AutoConfig.from_pretrained(saved, **options)) is DualSSASTConfig
        assert type(AutoFeatureExtractor.from_pretrained(saved, **options)) is DualSSASTFeatureExtractor
        model = AutoModelForAudioClassification.from_pretrained(saved, **options)
        assert type(model) is DualSSASTForAudioClassification
    classify = pipeline("audio-classification", model=str(saved), feature_extractor=str(saved))
    assert type(classify.model) is DualSSASTForAudioClassification
    scores = classify({"array": audio(), "sampling_rate": RATE}, top_k=3)
    assert {item["label"] for item in scores} == {"dog", "cat", "owl"}


def test_a_remote_config_suits_the_imported_classes(saved):
    """The class that remote code defines is another class than the imported one, with the same behaviour."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    remote = get_class_from_dynamic_module("configuration_dual_ssast.DualSSASTConfig", str(saved))
    assert remote is not DualSSASTConfig and remote.__module__.startswith("transformers_modules.")
    config = remote.from_pretrained(saved)
    assert config.fused_layers == [1, 2] and config.fused_size == 16
    model = DualSSASTForAudioClassification.from_pretrained(saved, config=config)
    fresh = DualSSASTForAudioClassification(config)
    assert model.state_dict().keys() == fresh.state_dict().keys()
    with pytest.raises(ValueError, match="from -2 to 1, got 9"):
        remote(**{**OPTIONS, "num_hidden_layers": 1}, fusion_layers=[9])
    with pytest.raises(TypeError, match="did you mean 'fusion_layers'"):
        remote(fusion_layer=[1])
