"""The tasks classification, cross_validation and evaluation. `train.py` is where to begin."""
