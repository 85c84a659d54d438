"""Who may import whom, and what the repository must not hold."""

import ast
import subprocess

import pytest
from audio_files import ROOT

PACKAGES = {
    "modeling_dual_ssast",
    "conversion",
    "training",
    "model_cards",
    "hub",
    "benchmarks",
    "tests",
    "app",
    "embed_hf",
    "predict_hf",
    "train_hf",
}
ALLOWED = {
    "modeling_dual_ssast": set(),
    "conversion": {"modeling_dual_ssast", "model_cards", "hub"},
    "training": {"modeling_dual_ssast", "model_cards", "hub"},
    "model_cards": set(),
    "hub": {"conversion"},  # of __main__.py alone
    "benchmarks": {"modeling_dual_ssast"},
    "examples": set(),
}


def _imports(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert _imports(path) & PACKAGES <= ALLOWED[package] | {package}, path


def test_shipped_modules_know_only_the_siblings_they_may():
    allowed = {f"{name}_dual_ssast": set() for name in ("configuration", "feature_extraction", "fusion", "masking")}
    allowed["classifier_dual_ssast"] = {"configuration_dual_ssast", "embedding_dual_ssast"}
    allowed["embedding_dual_ssast"] = {"fusion_dual_ssast"}
    allowed["modeling_dual_ssast"] = {
        "classifier_dual_ssast",
        "configuration_dual_ssast",
        "embedding_dual_ssast",
        "fusion_dual_ssast",
        "masking_dual_ssast",
    }
    allowed |= {"corruption_asit": set(), "configuration_asit": {"configuration_dual_ssast"}}
    # All that modeling_dual_ssast imports too: Transformers 4.48 fetches only what a file names itself.
    siblings = {"configuration_asit", "corruption_asit", "modeling_dual_ssast"}
    allowed["modeling_asit"] = siblings | allowed["modeling_dual_ssast"]
    allowed["configuration_composed"] = {"configuration_dual_ssast"}
    allowed["modeling_composed"] = {"classifier_dual_ssast", "configuration_composed", "fusion_dual_ssast"}
    for family in ("vggish", "panns_cnn14"):
        allowed[f"configuration_{family}"] = {"configuration_composed", "configuration_dual_ssast"}
        allowed[f"feature_extraction_{family}"] = {"feature_extraction_dual_ssast"}
        siblings = {f"configuration_{family}", "configuration_dual_ssast", "embedding_dual_ssast", "modeling_composed"}
        allowed[f"modeling_{family}"] = siblings | allowed["modeling_composed"]
    assert {path.stem for path in (ROOT / "modeling_dual_ssast").glob("*.py")} == {*allowed, "__init__"}
    for name, siblings in allowed.items():
        tree = ast.parse((ROOT / "modeling_dual_ssast" / f"{name}.py").read_text(encoding="utf-8"))
        relative = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
        assert relative == siblings


def test_no_paths_of_a_machine_are_tracked():
    names = "|".join(("home/[a-z]+", "root", "work", "Users"))
    found = subprocess.run(
        ["git", "grep", "-nIE", f"(^|[^A-Za-z0-9_.])/({names})/"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode in (1, 128), found.stdout  # 128: the sources lie outside a checkout
