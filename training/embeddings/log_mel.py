"""Embeds clips by statistics of their log-mels, in place of a model: what to begin with, and what to compare with."""

from types import SimpleNamespace

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_dual_ssast import DualSSASTFeatureExtractor
from modeling_dual_ssast.embedding_dual_ssast import EmbeddingMixin

from ..base.log_mel_statistics import log_mel_statistics
from ..errors import InputError
from ..inference.precision import HardwareArguments

LOG_MEL = "log-mel"  # the word in place of a model; a folder of that name is ./log-mel


class LogMelStatistics(EmbeddingMixin, torch.nn.Module):
    """
    Gives mean, standard deviation and mean absolute difference of each mel bin, see `log_mel_statistics`.

    A clip longer than a window gets the mean over its windows, like those of an encoder.

    Args:
        num_mel_bins: of the feature extractor
    """

    def __init__(self, num_mel_bins: int):
        super().__init__()
        self.config = SimpleNamespace(fused_size=3 * num_mel_bins)
        # Without numbers, so that number formats change nothing. It has the device, and its name is all that the
        # fingerprint of the weights sees: another definition of the statistics gets another name.
        self.mean_deviation_difference = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor, return_dict: bool = True
    ) -> BaseModelOutputWithPooling:
        """
        Returns the statistics of the frames that are not padding as `pooler_output`: (batch, 3 mel).

        Args:
            input_values: float32 (batch, frames, mel)
            attention_mask: (batch, frames), 0 for padding, which is at the end
        """
        lengths = attention_mask.sum(dim=1).tolist()
        rows = [log_mel_statistics(one[:length]) for one, length in zip(input_values, lengths)]
        return BaseModelOutputWithPooling(pooler_output=torch.stack(rows))


def load_log_mel(level: str, settings: dict) -> tuple[LogMelStatistics, DualSSASTFeatureExtractor]:
    """
    Returns the statistics and their feature extractor, which has its default settings.

    Args:
        settings: options of encoders; `None`: unset

    Raises:
        InputError: a level or a setting that statistics do not have.
    """
    if level != "clip":
        raise InputError(f"level {level}: {LOG_MEL} has one vector per clip; take --level clip, or name a model")
    given = next((name for name, value in settings.items() if value is not None), None)
    if given is not None:
        raise InputError(f"{given}: {LOG_MEL} has no {given}; leave it out, or name a model")
    extractor = DualSSASTFeatureExtractor()
    return LogMelStatistics(extractor.num_mel_bins), extractor


def require_float32(arguments: HardwareArguments):
    """
    Sets the number format of the options to float32, the one of the features.

    Raises:
        InputError: another one, or compilation, which need a network.
    """
    if arguments.dtype not in ("auto", "float32"):
        raise InputError(f"dtype {arguments.dtype}: {LOG_MEL} is computed in float32; leave it out, or name a model")
    if arguments.compile:
        raise InputError(f"compile: {LOG_MEL} has no network to compile; leave it out, or name a model")
    arguments.dtype = "float32"
