"""
Compares the whole run of predict_hf.py on one short file with that of Transformers' AST pipeline: `python
benchmarks/startup.py`. Both models are tiny, so that the seconds are those of the interpreter and the imports.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from report import print_table, versions
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from transformers.utils import logging

from modeling_dual_ssast import DualSSASTConfig, DualSSASTFeatureExtractor, DualSSASTForAudioClassification

ROOT = Path(__file__).parent.parent
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 128}
AST_PROGRAM = """
import sys
import soundfile
from transformers import ASTFeatureExtractor, ASTForAudioClassification, pipeline
model = ASTForAudioClassification.from_pretrained(sys.argv[1])
extractor = ASTFeatureExtractor.from_pretrained(sys.argv[1])
audio, rate = soundfile.read(sys.argv[2], dtype="float32")
classifier = pipeline("audio-classification", model=model, feature_extractor=extractor)
print(classifier({"array": audio, "sampling_rate": rate}))
"""


def write_models(folder: Path):
    """Writes a tiny AST, a tiny Dual SSAST and a clip of one second."""
    logging.disable_progress_bar()
    ASTForAudioClassification(ASTConfig(**TINY)).save_pretrained(folder / "ast")
    ASTFeatureExtractor(max_length=TINY["max_length"]).save_pretrained(folder / "ast")
    DualSSASTForAudioClassification(DualSSASTConfig(**TINY)).save_pretrained(folder / "dual_ssast")
    DualSSASTFeatureExtractor(max_length=TINY["max_length"]).save_pretrained(folder / "dual_ssast")
    soundfile.write(folder / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="runs of each program, in turn")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        sides = {
            "AST's pipeline": ["-c", AST_PROGRAM, f"{folder}/ast", f"{folder}/clip.wav"],
            "predict_hf.py": [str(ROOT / "predict_hf.py"), f"{folder}/dual_ssast", f"{folder}/clip.wav"],
        }
        seconds = {name: [] for name in sides}
        for name in list(sides) * (rounds + 1):
            started = time.perf_counter()
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            subprocess.run([sys.executable, *sides[name]], check=True, capture_output=True, env=environment)
            seconds[name].append(time.perf_counter() - started)
    seconds = {name: values[1:] for name, values in seconds.items()}  # without the first, which fills the disk's cache
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(versions())
    rows = [[name, f"{medians[name]:.2f}", f"{min(values):.2f}-{max(values):.2f}"] for name, values in seconds.items()]
    print_table(["program", "median (s)", "range (s)"], rows)
    print(f"ratio of the medians: {medians['predict_hf.py'] / medians[next(iter(sides))]:.2f}")


if __name__ == "__main__":
    main()
