"""Runs programs in fresh processes that cannot import this checkout, and prepares saved folders for them."""

import os
import subprocess
import sys

import numpy as np
from hub_server import TOKEN, HubServer

RATE = 16000
SHIPPED = {
    "attention_dual_ssast.py",
    "classifier_dual_ssast.py",
    "configuration_dual_ssast.py",
    "embedding_dual_ssast.py",
    "feature_extraction_dual_ssast.py",
    "fusion_dual_ssast.py",
    "masking_dual_ssast.py",
    "modeling_dual_ssast.py",
    "packing_dual_ssast.py",
}
# Beginning of every child process: it cannot import the package, even if it is installed.
PRELUDE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_dual_ssast":
            raise ImportError("the installed package must not be used here")

sys.meta_path.insert(0, Refuse())
import numpy as np, torch, transformers
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining, pipeline
)

try:
    import modeling_dual_ssast
    raise SystemExit("the package is importable")
except ImportError:
    pass

def load(auto, folder, **options):
    loaded = auto.from_pretrained(folder, trust_remote_code=True, **options)
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
    return loaded

def close(a, b, name):
    difference = (torch.as_tensor(a) - torch.as_tensor(b)).abs().max().item()
    assert difference < 1e-6, (name, difference)

def check_all(folder, audio, logits, pooled):
    config = load(AutoConfig, folder)
    assert config.max_length == 120 and config.id2label == {0: "dog", 1: "cat", 2: "owl"}, config
    extractor = load(AutoFeatureExtractor, folder)
    assert extractor.max_length == 120
    features = extractor(audio, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        model = load(AutoModelForAudioClassification, folder)
        close(model(**features).logits, logits, "classifier")
        encoder = load(AutoModel, folder)
        close(encoder(**features).pooler_output, pooled, "encoder")
        close(encoder.embed(audio, 16000), pooled, "embedding")
    load(AutoModelForPreTraining, folder)
    top = pipeline("audio-classification", model=folder, feature_extractor=folder, trust_remote_code=True)(
        {"array": audio, "sampling_rate": 16000}, top_k=3
    )
    probabilities = dict(zip(("dog", "cat", "owl"), torch.as_tensor(logits)[0].softmax(dim=0).tolist()))
    assert [item["label"] for item in top] == sorted(probabilities, key=probabilities.get, reverse=True), top
    close([item["score"] for item in top], [probabilities[item["label"]] for item in top], "pipeline")
    return model, extractor
"""


def audio():
    return np.random.default_rng(0).normal(0, 0.1, 15000).astype(np.float32)


def run(script, tmp_path, *arguments):
    """Runs a script in a fresh isolated process without access to this checkout and the network."""
    (tmp_path / "child").mkdir(exist_ok=True)
    (tmp_path / "child" / "script.py").write_text(PRELUDE + script)
    kept = {
        name: os.environ[name] for name in ("PATH", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ
    }
    environment = {
        **kept,
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "USE_TF": "0",
        "USE_FLAX": "0",
    }
    # -I: no PYTHONPATH, no user site, no script folder on the path.
    result = subprocess.run(
        [sys.executable, "-I", "script.py", *map(str, arguments)],
        cwd=tmp_path / "child",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


def run_elsewhere(program: str, hub: HubServer, folder, *words: str, token: str | None = TOKEN) -> str:
    """Runs a program in a fresh process, in an empty folder with an empty cache; returns what it printed."""
    place = folder / "elsewhere"
    place.mkdir(exist_ok=True)
    environment = hub.environment(folder / "cache", token)
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *words], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
