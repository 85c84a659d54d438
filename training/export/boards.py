"""Writes models for phones and boards: OpenVINO from the ONNX graph, and ExecuTorch from a traced window."""

import json
from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop

from ..errors import InputError, one_line
from .comparison import Runner, inputs_of
from .graph import WaveformGraph, output_name, quiet


def write_openvino(source: Path, path: Path, described: dict):
    """Converts an ONNX file with weights in float32; `described` is stored in the file's runtime information."""
    import openvino

    converted = openvino.convert_model(source)
    for name, value in described.items():
        converted.set_rt_info(json.dumps(value), ["dual_ssast", name])
    openvino.save_model(converted, path, compress_to_fp16=False)


def openvino_runner(path: Path, kind: str, extractor) -> Runner:
    """Returns a runner of an OpenVINO file on the CPU, in float32 also where the processor has bfloat16."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda clips: compiled([value.numpy() for value in inputs_of(kind, clips, extractor)])[0].copy()


class WindowGraph(WaveformGraph):
    """
    Maps one clip, padded to the longest input, `waveform` (1, samples), and its `lengths` (1,) in samples to the
    outputs: a small device plans its memory once, so no size may depend on the clip.
    """

    def __init__(self, model, extractor):
        super().__init__(model, extractor)
        self.num_samples, _ = window_and_hop(getattr(model, "base_model", model), extractor)
        self.num_frames = int(self.whole_frames(self.spectrogram.num_frames(torch.tensor([self.num_samples]))))

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        lengths = lengths.clamp(max=self.num_samples)
        frame_lengths = self.spectrogram.num_frames(lengths)
        values = self.spectrogram(waveform, lengths, self.num_frames, self.whole_frames.beyond)
        return self.read(values, frame_lengths)

    def inputs_of(self, clip: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns `waveform` and `lengths` of a clip (samples,)."""
        waveform = torch.zeros(1, self.num_samples)
        waveform[0, : len(clip)] = torch.from_numpy(clip)
        return waveform, torch.tensor([len(clip)])


def write_executorch(graph: WindowGraph, path: Path, described: dict):
    """
    Lowers a graph to XNNPACK, the CPU of phones; the rate and the samples of a window are methods of the program.

    Raises:
        InputError: ExecuTorch does not fit this torch.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except (ImportError, OSError) as error:
        raise InputError(
            f"--format executorch: cannot be loaded with torch {torch.__version__} ({one_line(error)}); install the "
            "version that was made for this torch, with all that it needs: pip install --upgrade executorch"
        ) from error
    numbers = {"sampling_rate": described["sampling_rate"], "num_samples": graph.num_samples}
    with quiet():
        program = torch.export.export(graph.eval(), graph.inputs_of(np.zeros(graph.num_samples, dtype=np.float32)))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=numbers)
        with path.open("wb") as file:
            lowered.to_executorch().write_to_file(file)


def executorch_runner(path: Path, graph: WindowGraph) -> Runner:
    """Returns a runner of an ExecuTorch file, clip by clip."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    # The outputs are views of the method's memory, which the next call overwrites.
    return lambda clips: np.concatenate([method.execute(graph.inputs_of(clip))[0].numpy().copy() for clip in clips])


def board_usage(form: str, path: str, model, extractor, made: str, inputs: tuple[str, str]) -> list[str]:
    """Returns the lines that call an export for a board in Python; `made`: how its inputs are made."""
    given = f"{output_name(model)} = %s([{', '.join(inputs)}])[0]"
    if form == "openvino":
        exact = 'float32 also where the processor has bfloat16: {"INFERENCE_PRECISION_HINT": "f32"}'
        return [made, given % f"openvino.Core().compile_model({path!r}, 'CPU')", exact]
    samples, _ = window_and_hop(getattr(model, "base_model", model), extractor)
    return [
        f"waveform: float32 (1, {samples}) at {extractor.sampling_rate} Hz, zeros after a shorter clip's end; "
        "lengths: int64 (1,), its samples",
        given % f"Runtime.get().load_program({path!r}).load_method('forward').execute",
    ]
