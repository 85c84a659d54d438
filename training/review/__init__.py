"""A loop for annotators: candidates that are worth a look, and the answers merged into the annotations."""
