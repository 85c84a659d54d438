"""The tasks mspm and asit: pretraining without labels. `train.py` is where to begin."""
