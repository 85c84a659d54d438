"""Model cards of classifiers, pretrained encoders and converted checkpoints."""
