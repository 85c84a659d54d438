"""Finished models in other forms: `python -m training.export`."""
