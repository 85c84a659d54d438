"""Converts original checkpoints into saved folders, and folders back into SSAST's files: `python -m conversion`."""
