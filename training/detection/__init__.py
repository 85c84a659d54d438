"""Trains frame classifiers on annotated recordings."""
