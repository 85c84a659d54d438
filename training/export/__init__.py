"""Exports finished models for other programs and machines: `python -m training.export`."""
