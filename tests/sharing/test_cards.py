"""Tests model cards of every kind of model: metadata, code that runs as it is pasted, and text."""

import ast
import json
import re
import sys
from pathlib import Path

import jinja2
import pandas
import pytest
import soundfile
import torch
import yaml
from audio_files import ROOT, run_program, tone, write_class_folders, write_tone
from golden import FIXTURES, shrunk_state, write_checkpoint
from huggingface_hub import ModelCard, ModelCardData
from tiny_models import TINY, save_tiny_cnn
from transformers import AutoConfig, AutoFeatureExtractor

from conversion.__main__ import main as convert_command
from model_cards import card as cards
from model_cards import limits
from training import tasks
from training.classification import train as classification
from training.errors import InputError
from training.pretraining import asit, mspm

SIZES = {name: value for name, value in TINY.items() if name != "max_length"}
HEADS = {"class_dim": 12, "data_dim": 8, "head_hidden_size": 16, "head_bottleneck_size": 8}
HEADS |= {"reconstruction_hidden_size": 16, "reconstruction_bottleneck_size": 8}
COMMON = {"mean": -6.0, "std": 4.0, "per_device_train_batch_size": 4, "max_steps": 2, "disable_tqdm": True, "seed": 1}
CLASSIFIER = {"config_overrides": SIZES, "max_length": 32, "validation_fraction": 0.2, "test_fraction": 0.2}
CLASSIFIER |= {"html_report": False, "save_strategy": "no", "eval_strategy": "no", **COMMON}
CNN = {
    name: value for name, value in CLASSIFIER.items() if name not in ("config_overrides", "mean", "std", "max_length")
}
PRETRAINING = {"max_length": 48, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "validation_clips": 4, **COMMON}
TASKS = {"classification": classification, "mspm": mspm, "asit": asit}
TRAINED = ("single", "grouped", "multi", "regression", "frames", "vggish", "cnn14", "alone")
PRETRAINED = ("mspm", "asit")
CONVERTED = ("ssast_pretrained", "ssast_finetuned", "asit_original", "vggish_original", "cnn14_original")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every kind of model in a folder of its own, with its card, and clip.wav beside them."""
    root = tmp_path_factory.mktemp("models")
    clips = write_class_folders(root / "data" / "my_clips", 10)
    write_tables(root / "data")
    save_tiny_cnn(root / "data" / "tiny_vggish", "vggish")
    save_tiny_cnn(root / "data" / "tiny_cnn14", "panns_cnn14")
    folder = {"dataset_name": str(clips)}
    table = {"train_file": str(root / "data" / "clips.csv")}
    train(
        root, "single", **CLASSIFIER, **folder, fusion_layers=[0, 2], fusion="weighted", license="mit", language=["en"]
    )
    train(root, "grouped", **CLASSIFIER, **table, label_column="labels", group_column="speaker",
          test_file=str(root / "data" / "test.csv"), problem_type="single_label_classification")  # fmt: skip
    train(root, "multi", **CLASSIFIER, **table, label_column="several", label_separator=";", mixup_rate=0.5,
          classifier="prototypes", fusion="gated")  # fmt: skip
    train(root, "regression", **CLASSIFIER, **table, label_column="pitch", problem_type="regression")
    train(root, "frames", **CLASSIFIER, **folder, readout="frames", pooling=["max"])
    train(root, "vggish", **CNN, **folder, model_name_or_path=str(root / "data" / "tiny_vggish"))
    train(root, "cnn14", **CNN, **folder, model_name_or_path=str(root / "data" / "tiny_cnn14"), readout="composed")
    train(root, "alone", **CLASSIFIER | {"validation_fraction": 0, "test_fraction": 0}, **folder)
    for task, sizes in (("mspm", SIZES), ("asit", SIZES | HEADS)):
        train(root, task, **PRETRAINING, task=task, train_sources=[str(clips)], config_overrides=sizes)
    for name, family, recipe in (
        ("ssast_pretrained", "ssast", "ssast_patch_pretrained.json"),
        ("ssast_finetuned", "ssast", "ssast_patch_finetuned_0.json"),
    ):
        convert(root, name, family, write_checkpoint(recipe, root / "data" / f"{name}.pth"))
    for family in ("vggish", "cnn14"):
        torch.save(shrunk_state(f"{family}_weights.json"), root / "data" / f"{family}.pth")
        convert(
            root, f"{family}_original", {"cnn14": "panns-cnn14"}.get(family, family), root / "data" / f"{family}.pth"
        )
    convert(root, "asit_original", "asit", FIXTURES / "asit_pretrain.pth")
    for rate in (16000, 32000):
        soundfile.write(root / f"{rate}.wav", tone(1.0, rate=rate), rate)
    return root


def write_tables(folder: Path):
    rows = []
    for index in range(24):
        write_tone(folder / f"{index}.wav", seconds=0.2, hz=200 + 30 * index)
        several = [name for bit, name in enumerate(("low", "mid|dle", "high")) if (index + 1) >> bit & 1] or ["low"]
        names = {"labels": ("high", "low")[index % 2], "several": ";".join(several), "speaker": f"s{index // 4}"}
        rows.append({"file_name": f"{index}.wav", "pitch": 0.1 * index, **names})
    pandas.DataFrame(rows).to_csv(folder / "clips.csv", index=False)
    pandas.DataFrame([{**row, "speaker": "s0"} for row in rows[:4]]).to_csv(folder / "test.csv", index=False)


def train(root: Path, name: str, task: str = "classification", **recipe):
    path = root / "data" / f"{name}.json"
    path.write_text(json.dumps({"task": task, "output_dir": str(root / name), **recipe}))
    TASKS[task].run(*tasks.parse([str(path)])[1:])


def convert(root: Path, name: str, family: str, source: Path):
    assert convert_command([family, str(source), str(root / name), "--verify"]) == 0


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


# ---- what the Hub reads ----


@pytest.mark.parametrize("name", [*TRAINED, *PRETRAINED, *CONVERTED])
def test_the_metadata_is_valid_and_nothing_tells_of_this_machine(models, name, hub):
    card = ModelCard.load(models / name / "README.md")
    card.validate()
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict() and str(again) == str(card)
    assert ModelCardData(**yaml.safe_load(str(card).split("---")[1])).to_dict() == card.data.to_dict()
    data = card.data.to_dict()
    tags = cards.TAGS[AutoConfig.from_pretrained(models / name).model_type]
    assert data["library_name"] == "transformers" and {"audio", *tags} <= set(data["tags"])
    is_classifier = name in TRAINED or name in ("ssast_finetuned", "cnn14_original")
    assert data["pipeline_tag"] == ("audio-classification" if is_classifier else "feature-extraction")
    assert str(models) not in str(card) and str(ROOT) not in str(card)
    assert "datasets" not in data and "base_model" not in data  # all of them are local
    assert "license" in data or "not chosen yet" in card.text
    assert "{{" not in card.text.split("```bibtex")[0] and "{%" not in card.text and "\n\n\n\n" not in card.text
    for title in ("Use", "Architecture", "Limits and biases", "Papers"):
        assert f"\n## {title}\n" in card.text


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "alone"])
def test_the_model_index_holds_the_metrics_of_the_run(models, name):
    card = ModelCard.load(models / name / "README.md")
    metrics = {key: value for key, value in results_of(models / name)["metrics"]["test"].items() if key != "loss"}
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == pytest.approx({key: value for key, value in metrics.items() if value is not None}, abs=1e-4)
    assert found and {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert card.data.metrics == list(found)


def test_licence_and_languages_are_the_recipe_s(models):
    data = ModelCard.load(models / "single" / "README.md").data
    assert data.license == "mit" and data.language == ["en"]
    other = ModelCard.load(models / "grouped" / "README.md")
    assert other.data.license is None and other.data.language is None
    assert "`license` in the recipe" in other.text and "not stated" in other.text


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("license", ["Apache 2.0"], "apache-2.0"),
        ("language", ["english"], "ISO 639"),
        ("language", ["false"], "quotes"),
    ],
)
def test_impossible_licences_and_languages(tmp_path, key, values, words):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"output_dir": str(tmp_path / "run"), "dataset_name": "somewhere"}))
    with pytest.raises(InputError, match=f"{key}: .*{words}"):
        tasks.parse([str(path), f"--{key}", *values])


def test_names_on_the_hub_are_linked_and_local_ones_are_not(models, tmp_path, monkeypatch):
    results = results_of(models / "single")
    results["recipe"]["ModelArguments"]["model_name_or_path"] = "someone/ssast"
    results["recipe"]["DataArguments"]["dataset_name"] = "ashraq/esc50"
    config = AutoConfig.from_pretrained(models / "single")
    extractor = AutoFeatureExtractor.from_pretrained(models / "single")
    monkeypatch.chdir(tmp_path)

    def write():
        return cards.classifier_card(
            "mine", config, extractor, results, dataset_name="esc50", num_parameters=1, settings={}
        )

    card = write()
    assert card.data.base_model == "someone/ssast" and card.data.datasets == ["ashraq/esc50"]
    assert card.data.eval_results[0].dataset_type == "ashraq/esc50"
    assert "https://huggingface.co/someone/ssast" in card.text
    (tmp_path / "someone" / "ssast").mkdir(parents=True)
    assert write().data.base_model is None
    assert cards.hub_name("C:\\clips") is None and cards.hub_name("../clips") is None and cards.hub_name(None) is None


# ---- code ----


def code_of(folder: Path) -> str:
    found = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", [*TRAINED, *PRETRAINED, *CONVERTED])
def test_the_code_of_the_card_runs_as_it_is_pasted(models, name, monkeypatch, capsys):
    """Beside the folder, with a recording of the model's rate or of another one."""
    code = code_of(models / name)
    assert code.count(f'\nrepository = "{name}"  # this model\'s folder, or its name on the Hub\n') == 1
    rate = (16000, 32000)[[*TRAINED, *PRETRAINED, *CONVERTED].index(name) % 2]
    (models / "clip.wav").write_bytes((models / f"{rate}.wav").read_bytes())
    monkeypatch.chdir(models)
    capsys.readouterr()
    exec(compile(code, name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.strip().split("\n")
    if name in (*PRETRAINED, "ssast_pretrained", "asit_original", "vggish_original"):
        assert len(printed) == 1 and re.fullmatch(r"torch\.Size\(\[1, \d+\]\)", printed[0])
    elif name == "regression":
        assert len(printed) == 1 and isinstance(ast.literal_eval(printed[0]), float)
    else:
        probabilities, scores = map(ast.literal_eval, printed[1:])
        assert printed[0] in probabilities or set(ast.literal_eval(printed[0])) <= set(probabilities)
        # Uncalibrated models, whose pipeline says the same: its three best.
        assert [score["score"] for score in scores] == pytest.approx(
            sorted(probabilities.values(), reverse=True)[:3], abs=1e-6
        )


@pytest.mark.slow
def test_soxr_is_needed_only_for_other_rates(models, tmp_path):
    """Runs with torch, Transformers and soundfile alone, as the card says."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nsys.modules['soxr'] = sys.modules['torchaudio'] = sys.modules['modeling_dual_ssast'] = None\n"
        + code_of(models / "single")
    )
    (tmp_path / "clip.wav").write_bytes((models / "16000.wav").read_bytes())
    (tmp_path / "single").symlink_to(models / "single")
    process = run_program(program, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]


# ---- what people read ----


def test_architecture_and_procedure(models):
    text = {name: (models / name / "README.md").read_text() for name in (*TRAINED, *CONVERTED)}
    assert "| fused layers | 0, 2 of 2 (0: patch embedding), weighted by learned numbers |" in text["single"]
    assert "of 2 (0: patch embedding), weighted by learned gates |" in text["multi"]
    assert "| classifier | 5 prototypes per class, compared with every token of the fused layers; no" in text["multi"]
    assert "| pooling | mean, max (sum) over all patches; a vector of 16 |" in text["single"]
    assert "| pooling | max over time, separately per frequency; a vector of" in text["frames"]
    assert "| longest input | 32 frames: 0.34 s; shorter clips cost less |" in text["single"]
    assert ", to which every clip is padded |" in text["ssast_finetuned"]
    assert "| fused layers | 3, 6: frequency x channel at every time step |" in text["cnn14"]
    assert "the original's own embedding of" in text["cnn14_original"]
    assert "| mixup rate | 0.5 |" in text["multi"] and "mixup" not in text["single"]
    for part in ("12 clips for training", "4 clips for validation", "4 clips for test", "2 classes: high, low."):
        assert part in text["single"]
    assert "Started from random weights" in text["single"] and "a checkpoint that is not on the Hub" in text["vggish"]


def test_a_classifier_is_called_by_its_encoder(models):
    config = AutoConfig.from_pretrained(models / "asit", id2label={0: "high", 1: "low"})
    card = cards.classifier_card(
        "n", config, AutoFeatureExtractor.from_pretrained(models / "asit"), results_of(models / "single"),
        dataset_name="d", num_parameters=1, settings={},
    )  # fmt: skip
    text = " ".join(card.text.split())
    assert "An ASiT audio classifier: a self-supervised audio spectrogram transformer" in text
    assert "Dual SSAST audio" not in text and "A Dual SSAST audio" in (models / "single" / "README.md").read_text()


def test_results_by_class(models):
    text = (models / "single" / "README.md").read_text()
    for name, row in results_of(models / "single")["per_class"].items():
        assert f"| {name} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1-score']:.3f} | 2 |" in text
    assert "![confusion matrix](confusion_matrix.png)" in text and "(95 % interval)" in text
    multi = (models / "multi" / "README.md").read_text()
    assert "| mid\\|dle | " in multi and "confusion" not in multi
    assert set(results_of(models / "multi")["per_class"]) == {"low", "mid|dle", "high"}
    assert "No split was set aside" in (models / "alone" / "README.md").read_text()
    assert "per_class" not in results_of(models / "regression")


def test_limits_follow_from_the_data(models):
    def said(name: str) -> str:
        return (models / name / "README.md").read_text().split("## Limits and biases")[1].split("## Papers")[0]

    single, results = said("single"), results_of(models / "single")
    assert "covers 20 to 8000 Hz" in single and "It takes 0.34 s at once" in single
    assert "last 0.20 to 0.35 s" in single and "Every class has 6 training clips" in single
    lower, upper = results["confidence_intervals"]["intervals"]["accuracy"]
    assert f"With 4 test clips the 95 % interval of accuracy is {lower:.3f} to {upper:.3f}." in single
    assert "paired test" in single
    assert "are uncertain: high (2), low (2)" in single and "`group_column`" in single
    worst = min(results["per_class"].values(), key=lambda row: row["recall"])["recall"]
    assert f"a recall of {worst:.3f} on 2 clips" in single or worst == 1
    assert "The recordings are in en;" in single
    assert "1 of the 1 values of `speaker` in the test split are in the training split too" in said("grouped")
    counts = results_of(models / "multi")["clips_per_class"]["train"]
    rarest, commonest = min(counts, key=counts.get), max(counts, key=counts.get)
    assert f"Classes have {counts[rarest]} ({rarest}) to {counts[commonest]} ({commonest}) training clips" in said(
        "multi"
    )
    lowest, highest = results_of(models / "regression")["label_range"]
    assert f"The training labels range from {lowest:g} to {highest:g}" in said("regression")
    assert "performance on new clips is unknown" in said("alone")
    assert "covers 125 to 7500 Hz" in said("vggish") and "covers 50 to 8000 Hz" in said("cnn14")
    hours = results_of(models / "mspm")["training"]["audio_hours"]
    assert f"{3600 * hours:.0f} seconds of audio, repetitions counted, from 18 clips of my_clips" in said("mspm")
    assert "no names (LABEL_0" in said("ssast_finetuned") and "every clip is padded" in said("ssast_finetuned")
    assert "are not in the file" in said("ssast_pretrained")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, "may share speakers"),
        ({"column": "speaker", "count": 9, "shared": 0}, "None of the 9 values of `speaker`"),
        ({"column": "speaker", "count": 9, "shared": 2}, "2 of the 9 values of `speaker`"),
    ],
)
def test_what_is_said_of_groups(groups, words):
    assert words in limits._groups({} if groups is None else {"groups": groups}, "test")[0]


def test_many_classes_are_shortened(models):
    results = results_of(models / "single")
    row = results["per_class"]["high"]
    results["per_class"] = {f"class {index}": row | {"f1-score": index / 100} for index in range(70)}
    config, extractor = (
        AutoConfig.from_pretrained(models / "single"),
        AutoFeatureExtractor.from_pretrained(models / "single"),
    )
    card = cards.classifier_card("n", config, extractor, results, dataset_name="d", num_parameters=1, settings={})
    assert card.text.count("| class ") == 31 and "has all 70" in card.text
    assert "| class 29 |" in card.text and "| class 30 |" not in card.text


def test_batches_of_tokens_have_no_number_of_clips(models):
    results = results_of(models / "single")
    assert "| batch | 4 per process |" in (models / "single" / "README.md").read_text()
    results["recipe"]["TrainingArguments"] |= {"tokens_per_batch": 200, "gradient_accumulation_steps": 2}
    config = AutoConfig.from_pretrained(models / "single")
    extractor = AutoFeatureExtractor.from_pretrained(models / "single")
    card = cards.classifier_card("n", config, extractor, results, dataset_name="d", num_parameters=1, settings={})
    assert "| batch | up to 200 tokens per process x 2 accumulated |" in card.text


@pytest.mark.parametrize(("temperature", "thresholds"), [(1.5, None), (1.0, None), (1.0, [0.4, 0.6])])
def test_calibrated_is_said_only_where_a_temperature_was_found(models, temperature, thresholds):
    results = results_of(models / "single")
    scores = {"expected_calibration_error": 0.123, "negative_log_likelihood": 0.5, "brier_score": 0.25}
    results["calibration"] = {"temperature": temperature, "decision_thresholds": thresholds}
    results["calibration"]["test"] = {"before": scores, "after": scores}
    config = AutoConfig.from_pretrained(models / "single", calibration_temperature=temperature)
    config.decision_thresholds = thresholds
    extractor = AutoFeatureExtractor.from_pretrained(models / "single")
    card = cards.classifier_card("n", config, extractor, results, dataset_name="d", num_parameters=1, settings={})
    assert ("alibrated" in card.text) == (temperature != 1) == ("No temperature" not in card.text)
    assert ("decision threshold" in card.text) == (thresholds is not None)
    assert "expected calibration error" in " ".join(card.text.split()) and "0.123" in card.text


def test_the_four_papers_are_cited_in_every_card(models):
    assert set(cards.bibliography()) == {
        "gong2022ssast", "choi2025dual", "atito2024asit", "niizumi2022composing", "gong2021ast", "hershey2017cnn",
        "kong2020panns", "schmid2025effective",
    }  # fmt: skip
    for name in (*TRAINED, *PRETRAINED, *CONVERTED):
        keys = re.findall(r"^@\w+\{(\w+),", (models / name / "README.md").read_text(), re.MULTILINE)
        assert {*cards.SYSTEMS} <= set(keys) and len(keys) == len(set(keys))
        assert ("hershey2017cnn" in keys, "kong2020panns" in keys) == ("vggish" in name, "cnn14" in name)
    assert re.findall(r"@\w+\{(\w+),", (models / "asit" / "README.md").read_text())[0] == "atito2024asit"


# ---- the modules ----


def test_a_fact_that_a_template_lacks_is_an_error(models):
    with pytest.raises(jinja2.UndefinedError):
        cards.render("pretraining.md", ModelCardData(), name="incomplete")


@pytest.mark.parametrize(
    "module", ["model_cards/card", "model_cards/limits", "conversion/catalogue", "hub/push", "hub/scan", "hub/finite"]
)
def test_cards_know_only_public_libraries(module):
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    names = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert names <= {*sys.stdlib_module_names, "huggingface_hub", "jinja2", "safetensors", "torch", "yaml"}
    siblings = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert siblings <= {None, "scan", "finite"}


def test_a_new_classifier_is_said_to_be_random(models, tmp_path):
    (tmp_path / "labels.txt").write_text("anger\njoy\n")
    words = ["--task", "classification", "--labels", str(tmp_path / "labels.txt")]
    source = models / "data" / "ssast_pretrained.pth"
    assert convert_command(["ssast", str(source), str(tmp_path / "new"), *words]) == 0
    text = (tmp_path / "new" / "README.md").read_text()
    assert "Its classifier is random: train it" in text and "- new: classifier for 2 labels" in text
