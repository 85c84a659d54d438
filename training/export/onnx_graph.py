"""Writes a traced model as ONNX, and quantises it to int8."""

import json
from pathlib import Path

import torch

from .graph import FeatureGraph, WaveformGraph, output_name, quiet

# 18 is the oldest of torch's exporter; from 23 on, onnxruntime refuses its Attention node with a mask per clip.
OLDEST_OPSET, NEWEST_OPSET = 18, 22


def write_onnx(program, graph: FeatureGraph, path: Path, opset: int | None, described: dict):
    """Writes a program of `trace` as ONNX; `described` is stored in the file's metadata."""
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
    """Names the dynamic axes: runtimes show these names instead of the tracer's symbols."""
    import onnx_ir

    length = "samples" if isinstance(graph, WaveformGraph) else "frames"
    for value in (*onnx_graph.inputs, *onnx_graph.outputs):
        dims = list(value.shape)
        dims[0] = "batch"
        if value.name in graph.inputs and len(dims) > 1 and not isinstance(dims[1], int):
            dims[1] = length
        elif len(dims) == 3 and not isinstance(dims[1], int):  # a number where the model always reads its whole length
            dims[1] = "time_frames"
        value.shape = onnx_ir.Shape(dims)


def quantise(source: Path, path: Path, described: dict):
    """
    Quantises the weights of the Linear layers to 8 bits, one scale per output, and their inputs dynamically. The
    feature extraction (float64), attention and the patch convolution stay as they are.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exact = onnx.load(source)
    del exact.graph.value_info[:]  # shapes of weights that quantisation transposes
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
