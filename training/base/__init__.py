"""Holds what every run shares: loading, inference, the trainer, outputs, pushes and reproduction."""
