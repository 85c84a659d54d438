"""
Classifies a file without an installation of this project: the saved folder contains the model's code.

    python examples/classify_file.py MODEL FILE

Needs transformers, torch, soundfile and soxr.
"""

import sys

import soundfile
import soxr
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

model_name, file = sys.argv[1:]
feature_extractor = AutoFeatureExtractor.from_pretrained(model_name, trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(model_name, trust_remote_code=True)
classifier = pipeline("audio-classification", model=model, feature_extractor=feature_extractor)

audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
audio = soxr.resample(audio.mean(axis=1), rate, feature_extractor.sampling_rate)
for answer in classifier({"array": audio, "sampling_rate": feature_extractor.sampling_rate}, top_k=3):
    print(f"{answer['score']:.3f} {answer['label']}")
