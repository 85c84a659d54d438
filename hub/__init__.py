"""Pushes models and the demo page to the Hub: `python -m hub`."""
