"""What train_hf.py runs: data, augmentation, metrics, and one module per task. Used from a checkout, not installed."""
