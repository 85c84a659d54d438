"""Exports finished models as ONNX, int8, torch.export or float16: `python -m training.export`."""
