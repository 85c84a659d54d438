"""Pretrains without labels: the tasks mspm and asit. `train.py` is where to begin."""
