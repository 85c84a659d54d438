"""Trains frame classifiers on annotated recordings, and scores events: the tasks detection and event_evaluation."""
