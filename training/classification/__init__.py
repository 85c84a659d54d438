"""Trains and evaluates classifiers: the tasks classification, cross_validation, evaluation; begins with `train.py`."""
