"""Compares finished runs on the clips that all of them have tested: `python -m training.compare`."""
