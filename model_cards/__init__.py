"""Writes model cards of classifiers, pretrained encoders and converted checkpoints."""
