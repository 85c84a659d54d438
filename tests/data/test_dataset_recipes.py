"""Tests recipes/datasets: one per data set; each trains on its prepared miniature."""

import json

import dataset_layouts
import pytest
import yaml
from audio_files import ROOT
from tiny_models import save_tiny_classifier

from training import tasks
from training.classification import train
from training.embeddings import probe
from training.prepare import DATASETS, prepare

RECIPES = ROOT / "recipes" / "datasets"
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PROBE_WORDS = {
    "max_length": 32, "num_epochs": 2, "num_seeds": 1, "methods": "linear", "learning_rates": 0.01,
}  # fmt: skip
TRAINING_WORDS = {
    "max_length": 32, "max_steps": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip


def read_recipe(name: str) -> dict:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def test_there_is_a_recipe_for_every_data_set():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_a_recipe_parses_and_says_where_the_data_come_from(name):
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("task:")]
    assert f"python -m training.prepare {name} --from" in header and "://" in header
    assert max(map(len, text.splitlines())) <= 120
    task, *parts = tasks.parse([str(RECIPES / f"{name}.yaml")])
    assert len(parts) == len(tasks.TASKS[task].arguments)
    data = parts[1]
    for file in (data.train_file, data.validation_file, data.test_file, data.label_file):
        assert file is None or file.startswith(f"prepared/{name}/")
    assert next(part for part in parts if hasattr(part, "output_dir")).output_dir == f"runs/{name}"


@pytest.mark.parametrize("name", DATASETS)
def test_a_recipe_runs_on_the_prepared_miniature(name, tmp_path, monkeypatch):
    getattr(dataset_layouts, name)(tmp_path / "original")
    prepare(name, tmp_path / "original", tmp_path / "prepared" / name)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(name)
    task = recipe["task"]
    recipe |= {"dataloader_num_workers": 0} | (PROBE_WORDS if task == "probe" else TRAINING_WORDS)
    if task == "probe":
        recipe["model_name_or_path"] = str(save_tiny_classifier(tmp_path / "model"))
    else:
        is_frame_model = recipe["frequency_stride"] == 128
        recipe["config_overrides"] = TINY | ({"patch_size": [128, 2]} if is_frame_model else {})
        # The recipes name layers of twelve.
        layers = [layer if layer < 0 else layer * TINY["num_hidden_layers"] // 12 for layer in recipe["fusion_layers"]]
        recipe["fusion_layers"] = sorted(set(layers))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    _, *parts = tasks.parse(["recipe.json"])
    (probe if task == "probe" else train).run(*parts)
    results = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    assert results["clips"]["train"] and results["clips"]["test"]
    if task == "classification":
        metric = recipe.get("metric_for_best_model", "accuracy")
        assert 0 <= results["metrics"]["test"][metric] <= 1
