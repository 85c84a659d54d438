"""Frozen encoders: the tasks sweep and probe, and the embeddings of `embed_hf.py`."""
