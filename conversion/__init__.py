"""Original checkpoints -> saved Dual SSAST folders: `python -m conversion FAMILY SRC OUT`, and SSAST's files back."""
