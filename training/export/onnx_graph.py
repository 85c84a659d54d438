"""Traces a model, writes it as ONNX and quantises it to int8."""

import contextlib
import json
import logging as python_logging
import warnings
from pathlib import Path

import torch

from .graph import FeatureGraph, WaveformGraph, output_name

# The oldest of torch's exporter; from 23 on it writes an Attention node that onnxruntime refuses with a mask per clip.
OLDEST_OPSET, NEWEST_OPSET = 18, 22


@contextlib.contextmanager
def quiet():
    """The exporters speak to those who develop them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        python_logging.disable(python_logging.WARNING)
        try:
            yield
        finally:
            python_logging.disable(python_logging.NOTSET)


def trace(graph: FeatureGraph, extractor) -> torch.export.ExportedProgram:
    """Of two clips of different lengths, which the graph does not remember."""
    if isinstance(graph, WaveformGraph):
        waveform = torch.zeros(2, extractor.num_samples(40))
        example, axis = (waveform, torch.tensor([waveform.shape[1], waveform.shape[1] // 2])), {0: "batch"}
        dynamic = {"waveform": {0: "batch", 1: "samples"}, "lengths": axis}
    else:
        values, mask = torch.zeros(2, 40, extractor.num_mel_bins), torch.ones(2, 40, dtype=torch.long)
        mask[1, 20:] = 0
        axes = {0: "batch", 1: "frames"}
        example, dynamic = (values, mask), {"input_values": axes, "attention_mask": axes}
    dims = {name: torch.export.Dim(name) for axes in dynamic.values() for name in axes.values()}
    shapes = {name: {axis: dims[dim] for axis, dim in axes.items()} for name, axes in dynamic.items()}
    with quiet():
        return torch.export.export(graph.eval(), example, dynamic_shapes=shapes)


def write_onnx(program, graph: FeatureGraph, path: Path, opset: int | None, described: dict):
    with quiet():
        converted = torch.onnx.export(
            program,
            input_names=list(graph.inputs),
            output_names=[output_name(graph.model)],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    name_axes(converted.model.graph, graph)
    converted.model.metadata_props.update({name: json.dumps(value) for name, value in described.items()})
    converted.save(path, external_data=False)


def name_axes(onnx_graph, graph: FeatureGraph):
    """Names in the place of the tracer's symbols: they are what a runtime shows."""
    import onnx_ir

    length = "samples" if isinstance(graph, WaveformGraph) else "frames"
    for value in (*onnx_graph.inputs, *onnx_graph.outputs):
        dims = list(value.shape)
        dims[0] = "batch"
        if value.name in graph.inputs and len(dims) > 1:
            dims[1] = length
        value.shape = onnx_ir.Shape(dims)


def quantise(source: Path, path: Path, described: dict):
    """
    Weights of the Linear layers in 8 bits, one scale per output; what they read is quantised as it comes. The features,
    in float64, stay as they are, and so do attention and the patches' convolution.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exact = onnx.load(source)
    del exact.graph.value_info[:]  # of weights that are transposed on the way
    doubles = {value.name for value in exact.graph.initializer if value.data_type == onnx.TensorProto.DOUBLE}
    features = [node.name for node in exact.graph.node if doubles & set(node.input)]
    with quiet():
        quantize_dynamic(
            exact,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=features,
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of products overflow 16 bits on CPUs without VNNI
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(path)
    kept = {entry.key for entry in model.metadata_props}
    for name, value in described.items():
        if name not in kept:
            model.metadata_props.add(key=name, value=json.dumps(value))
    onnx.save(model, path)
