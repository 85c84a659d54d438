"""
Implements the encoder interface of X-ARES (https://github.com/jimbozhang/xares) for every model of this project. It
needs only the saved folder, which contains the code of the model.

    ENCODER=MODEL python -m xares.run examples/xares_dual_ssast.py src/tasks/esc50_task.py

X-ARES makes the encoder without arguments, in several processes: the environment names the folder or the Hub name.
Needs xares, which needs torchaudio.
"""

import os

import torch
from transformers import AutoModel

BATCH_SIZE = 8


class DualSSASTEncoder(torch.nn.Module):
    """
    Embeds clips over time: `sampling_rate` in Hz, `output_dim`, `hop_size_in_ms` from frame to frame.

    Args:
        name: folder or Hub name of a model of this project; the default is the environment's `ENCODER`

    Raises:
        ValueError: no name is given.
    """

    def __init__(self, name: str | None = None):
        super().__init__()
        name = name or os.environ.get("ENCODER")
        if not name:
            raise ValueError("name is empty: set ENCODER to the folder or the Hub name of a model")
        self.model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
        extractor = self.model.own_feature_extractor()
        hop_samples = extractor.num_samples(2) - extractor.num_samples(1)
        self.sampling_rate = extractor.sampling_rate
        self.output_dim = self.model.frame_size
        self.hop_size_in_ms = 1000 * self.model.time_grid.stride * hop_samples / self.sampling_rate

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """
        Embeds clips of any length. Those beyond the model's longest input are read in overlapping windows.

        Args:
            audio: (clips, samples), or one clip (samples,), in [-1, 1] at `sampling_rate`

        Returns:
            float32 (clips, frames, output_dim)
        """
        found = self.model.embed_frames(audio, self.sampling_rate, batch_size=BATCH_SIZE)
        return torch.stack([frames.values for frames in found]).to(audio.device)
