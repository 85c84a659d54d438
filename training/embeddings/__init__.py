"""Evaluates and applies frozen encoders: the tasks sweep and probe, and the embeddings of `embed_hf.py`."""
