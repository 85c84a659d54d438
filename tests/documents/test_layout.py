"""Tests which modules may import which, and what the repository must not contain."""

import ast
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from audio_files import ROOT

BOTTOM = {"training.errors", "training.files", "training.console", "training.recipe", "modeling_dual_ssast"}
# Room -> the rooms that it may import. A room is a program, a package, or a part of training/.
ALLOWED = {
    "modeling_dual_ssast": set(),
    "model_cards": set(),
    "hub": {"training.console"},
    "conversion": {"modeling_dual_ssast", "model_cards", "hub", "training.data", *BOTTOM},  # the reader of label files
    "training.errors": set(),
    "training.files": {"training.errors"},
    "training.console": {"training.errors"},
    "training.recipe": {"training.errors"},
}
ALLOWED |= {
    "training.data": BOTTOM,
    "training.base": BOTTOM | {"training.data", "hub"},
    "training.prepare": BOTTOM | {"training.data"},
    "training.check": BOTTOM | {"training.data"},
}
FLOOR = BOTTOM | {"training.data", "training.base"}
WING = FLOOR | {"training.inference"}
ALLOWED |= {
    "training.inference": FLOOR | {"hub"},
    "training.classification": WING | {"model_cards"},
    "training.pretraining": WING | {"model_cards"},
    "training.detection": WING | {"model_cards"},
    "training.embeddings": WING | {"model_cards"},
    "training.export": WING,
    "training.explain": WING,
    "training.review": WING,
    "training.serving": WING | {"hub"},
}
# `python benchmarks/NAME.py` finds what is installed and its own folder.
ALLOWED |= {room: {"modeling_dual_ssast"} for room in ("benchmarks", "examples")}
ALLOWED["training.tasks"] = {room for room in ALLOWED if room.startswith("training.")}
# Above the wings, like the tasks: it compares a probe with the catalogue's published values.
ALLOWED["training.expect"] = WING | {"training.embeddings", "conversion"}
# Above the wings, too: they read what the embeddings' wing stores.
ALLOWED |= {f"training.{room}": WING | {"training.embeddings"} for room in ("map", "nearest")}
# Above the wings too: it compares runs of several of them by the metrics of classification.
ALLOWED["training.compare"] = FLOOR | {"training.classification", "model_cards"}
# Above the wings: programs that read what embed_hf.py wrote.
ALLOWED |= {f"training.{name}": WING | {"training.embeddings"} for name in ("suggest", "suspects")}
# They call a hundred rounds of suggestions, of which each would start a process, and score in the folds of a sweep.
ALLOWED["benchmarks"] |= {"training.base", "training.data", "training.embeddings", "training.tasks"}
PROGRAMS = ("train_hf", "predict_hf", "embed_hf", "serve_hf", "app", "benchmarks", "examples")
MOST_FLOORS = 7


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path
    for name in (*{room.partition(".")[0] for room in ALLOWED}, *PROGRAMS)
    for path in (*ROOT.glob(f"{name}.py"), *(ROOT / name).rglob("*.py"))
}


def room_of(module: str) -> str:
    """`training.data` of training.data.audio; the package or program itself elsewhere."""
    return ".".join(module.split(".")[: 2 if module.startswith("training.") else 1])


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules of this repository that a module imports, at its top or in a function."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names
            }
    return frozenset(found & set(MODULES) - {module})


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room):
    members = [module for module in MODULES if room_of(module) == room]
    assert members
    for module in members:
        assert {room_of(name) for name in imports_of(module)} <= ALLOWED[room] | {room}, module


def test_every_room_of_training_is_listed():
    assert {room_of(module) for module in MODULES if module.startswith("training.")} <= set(ALLOWED)


def test_nothing_imports_a_program_or_the_tests():
    for module in MODULES:
        assert not {room_of(name) for name in imports_of(module)} & set(PROGRAMS) - {room_of(module)}, module


def test_modules_import_in_no_circle_and_rooms_on_few_floors():
    tuple(TopologicalSorter({module: imports_of(module) for module in MODULES}).static_order())  # raises CycleError
    rooms = {room: allowed for room, allowed in ALLOWED.items() if room.startswith("training")}
    floors = {}
    for room in TopologicalSorter(rooms).static_order():
        floors[room] = 1 + max((floors[below] for below in rooms.get(room, ()) if below in rooms), default=0)
    assert max(floors.values()) == MOST_FLOORS


def test_no_test_imports_a_test():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[-1].startswith("test_") for name in names), path


def test_shipped_modules_know_only_the_siblings_they_may():
    allowed = {
        f"{name}_dual_ssast": set() for name in ("configuration", "feature_extraction", "fusion", "masking", "packing")
    }
    allowed["attention_dual_ssast"] = {"fusion_dual_ssast"}
    allowed["classifier_dual_ssast"] = {"configuration_dual_ssast", "embedding_dual_ssast", "fusion_dual_ssast"}
    allowed["embedding_dual_ssast"] = {"fusion_dual_ssast"}
    allowed["modeling_dual_ssast"] = {
        "attention_dual_ssast",
        "classifier_dual_ssast",
        "configuration_dual_ssast",
        "embedding_dual_ssast",
        "fusion_dual_ssast",
        "masking_dual_ssast",
        "packing_dual_ssast",
    }
    allowed |= {"corruption_asit": set(), "configuration_asit": {"configuration_dual_ssast"}}
    # All that modeling_dual_ssast imports too: Transformers 4.48 fetches only what a file names itself.
    siblings = {"configuration_asit", "corruption_asit", "modeling_dual_ssast"}
    allowed["modeling_asit"] = siblings | allowed["modeling_dual_ssast"]
    allowed["configuration_composed"] = {"configuration_dual_ssast"}
    allowed["modeling_composed"] = {"classifier_dual_ssast", "configuration_composed", "fusion_dual_ssast"}
    allowed["modeling_composed"].add("embedding_dual_ssast")
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
