"""Infers the patch grid from a number of positions, for files that do not store their grid."""

import dataclasses
from pathlib import Path

from .checkpoint import ConversionError

# Input lengths of the originals' recipes, in frames: AudioSet, ESC-50, Speech Commands.
RECIPE_LENGTHS = (1024, 512, 128)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Describes a patch grid in mel bins and frames, for `min_length` to `min_length + time_stride - 1` frames."""

    rows: int
    columns: int
    frequency_stride: int
    time_stride: int
    min_length: int
    max_length: int

    def __str__(self) -> str:
        return (
            f"{self.rows} rows x {self.columns} columns (--frequency-stride {self.frequency_stride} --time-stride "
            f"{self.time_stride}, {self.lengths})"
        )

    @property
    def lengths(self) -> str:
        last = self.min_length + self.time_stride - 1
        return f"{self.min_length} frames" if last == self.min_length else f"{self.min_length} to {last} frames"


def read_grid(
    path: Path,
    num_patches: int,
    patch: tuple[int, int],
    num_mel_bins: int,
    recipe_strides: tuple[int, int],
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    max_length: int | None = None,
) -> tuple[Grid, list[str]]:
    """
    Finds the grid of a fine-tuned checkpoint; returns it with notes on what was assumed.

    `frequency_stride`, `time_stride` and `max_length` describe the file. For strides that are not given, the function
    tries those of the recipes, then patches side by side.

    Args:
        num_patches: number of positions without the prefix tokens
        patch: (mel bins, frames)
        recipe_strides: of the original's fine-tuning recipes, (mel bins, frames)

    Raises:
        ConversionError: no grid has that many patches; the message lists the possible grids.
    """
    usual = [
        fit_grid(num_patches, patch, num_mel_bins, frequency_stride or strides[0], time_stride or strides[1])
        for strides in (recipe_strides, patch)
    ]
    usual = [grid for grid in dict.fromkeys(usual) if grid is not None]
    fitting = [grid for grid in usual if max_length is None or 0 <= max_length - grid.min_length < grid.time_stride]
    if not fitting:
        raise ConversionError(
            _no_fit(path, num_patches, patch, num_mel_bins, frequency_stride, time_stride, max_length)
        )
    grid, notes = fitting[0], []
    if max_length is not None:
        grid = dataclasses.replace(grid, max_length=max_length)
    given = frequency_stride is not None and time_stride is not None
    if not given:
        notes.append(
            f"the file does not store its strides: {num_patches} patches are read as {grid}"
            + "".join(f"; {other} would fit too" for other in fitting[1:])
        )
    if max_length is None and grid.time_stride > 1:
        notes.append(
            f"max_length is {grid.max_length}: {grid.lengths} give the same grid and the same results; --max-length "
            "chooses"
        )
    return grid, notes


def fit_grid(
    num_patches: int, patch: tuple[int, int], num_mel_bins: int, frequency_stride: int, time_stride: int
) -> Grid | None:
    """Returns the grid of `num_patches` with these strides, or `None` if there is no such grid."""
    if num_mel_bins < patch[0] or frequency_stride > patch[0] or time_stride > patch[1] or num_patches < 1:
        return None
    rows = (num_mel_bins - patch[0]) // frequency_stride + 1
    if num_patches % rows:
        return None
    columns = num_patches // rows
    min_length = (columns - 1) * time_stride + patch[1]
    same = range(min_length, min_length + time_stride)
    max_length = next((length for length in RECIPE_LENGTHS if length in same), min_length)
    return Grid(rows, columns, frequency_stride, time_stride, min_length, max_length)


def _no_fit(path, num_patches, patch, num_mel_bins, frequency_stride, time_stride, max_length) -> str:
    given = {"--frequency-stride": frequency_stride, "--time-stride": time_stride, "--max-length": max_length}
    given = " ".join(f"{name} {value}" for name, value in given.items() if value is not None) or "the usual strides"
    readings, seen_rows = [], set()
    # One stride per number of rows is enough; the usual strides come first.
    for stride in sorted(range(1, patch[0] + 1), key=lambda stride: (stride not in (10, patch[0]), -stride)):
        grid = fit_grid(num_patches, patch, num_mel_bins, stride, min(stride, patch[1]))
        if grid and grid.rows not in seen_rows:
            seen_rows.add(grid.rows)
            readings.append(str(grid))
    possible = "; ".join(readings[:6]) or "none with this patch size"
    return (
        f"{path} has positions for {num_patches} patches of {patch[0]} x {patch[1]}, which does not fit {given} at "
        f"{num_mel_bins} mel bins. Possible readings: {possible}"
    )
