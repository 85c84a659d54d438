"""What the user asks of a conversion."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Options:
    """
    task: `pretraining`, `classification` or `encoder`; `None` for what the file holds
    weights: of two networks in a file, the one to take: `teacher` or `student`; `None` for both, or the better one
    max_length, frequency_stride, time_stride: frames, mel bins, frames. Where the file tells its own grid, the one to
        resize to; else they describe the file.
    labels: a label file
    sampling_rate: in Hz, that the file's network hears; `None` where the file tells
    mean, std: of the feature extractor's log-mels; `None` for the source's or AudioSet's
    """

    task: str | None = None
    weights: str | None = None
    max_length: int | None = None
    frequency_stride: int | None = None
    time_stride: int | None = None
    labels: Path | None = None
    sampling_rate: int | None = None
    mean: float | None = None
    std: float | None = None

    @property
    def grid(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in ("max_length", "frequency_stride", "time_stride")}
