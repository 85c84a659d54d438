"""Pushes of models and demo pages to the Hub: `python -m hub`."""
