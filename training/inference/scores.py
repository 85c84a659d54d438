"""Classifies clips of any length: the network, and the tables of its scores per file and per window."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop, window_starts

from ..base.open_set import UNKNOWN, EmbeddingHook, Rejection
from ..base.predictions import predictions, score_names
from ..data.labels import LabelSet
from ..errors import InputError, printable
from .engine import Network
from .plan import Stretch
from .shards import Part, Segment
from .tables import Columns, open_table, with_own_columns


class Classifier(Network):
    """
    Gives the logits of every window; those of a clip are their mean.

    Args:
        window_s, hop_s: see `window_and_hop`
        rejection: rejects clips and windows that are like no class; `None`: all have a class

    Raises:
        InputError: a window that the model does not accept.
    """

    keeps_windows = True
    of_frames = False

    def __init__(
        self,
        model,
        extractor,
        labels: LabelSet,
        window_s: float | None = None,
        hop_s: float | None = None,
        rejection: Rejection | None = None,
    ):
        super().__init__(model, extractor)
        self.labels = labels
        self.rejection = rejection
        self._hook = EmbeddingHook(model) if rejection is not None else None
        try:
            self.window, self.hop = window_and_hop(model.base_model, extractor, window_s, hop_s)
        except ValueError as error:
            raise InputError(str(error)) from error

    def layout(self, num_samples: int) -> tuple[list[int], int]:
        return window_starts(num_samples, self.window, self.hop), self.window

    def run(self, features):
        return self.arrays(self.model(**features, return_dict=True).logits), None

    def arrays(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the arrays of windows whose logits (windows, labels) the model has just computed."""
        found = {"logits": logits}
        if self.rejection is not None:
            found["distance"] = self.rejection.open_set.distances(self._hook.take())
        return found

    def places(self, stretch: Stretch, counts: list[int]) -> dict[str, np.ndarray]:
        starts = stretch.starts[: len(counts)]
        return {"start": starts, "stop": np.minimum(starts + stretch.window, stretch.clip.length)}

    def joined(self, parts: Iterable[Part]) -> Iterable[Part]:
        """Returns the parts with a row per window: as they are stored."""
        return parts

    def sequence(self, begin: int):
        """Returns what joins the rows of windows, see `FrameSequence`; `None`: a window is a row of its own."""
        return None

    @property
    def thresholds(self) -> np.ndarray:
        """The score of each class above which a window counts for it."""
        thresholds = self.model.config.decision_thresholds
        return np.full(len(self.labels.names), 0.5) if thresholds is None else np.asarray(thresholds)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns the scores of logits (rows, labels)."""
        return self.model.probabilities(torch.from_numpy(logits)).numpy()

    def reject(self, found: list[str], logits: np.ndarray, distances: np.ndarray) -> tuple[list[str], Columns]:
        """
        Replaces the predictions of rows that are like no class, where clips may be rejected.

        Args:
            found: prediction of each row
            logits, distances: (rows, labels), (rows,)

        Returns:
            the predictions, and the column of the score that decides
        """
        if self.rejection is None:
            return found, []
        values = self.rejection.scores(logits, distances)
        found = [UNKNOWN if is_beyond else text for text, is_beyond in zip(found, values > self.rejection.threshold)]
        return found, [(self.rejection.score, values)]

    def top_text(self, row: np.ndarray, top_k: int, is_unknown: bool) -> str:
        """Returns the highest scores of a row (labels,) with their names, as they are printed."""
        text = ", ".join(f"{printable(self.labels.names[i])} {row[i]:.3f}" for i in np.argsort(-row)[:top_k])
        return f"{UNKNOWN} ({text})" if is_unknown else text


@dataclass
class ClipScores:
    """
    Holds the scores of one clip.

    Args:
        logits: (labels,), the mean over its windows, or the highest of its frames
        highest: (labels,), the highest score of a window
        share: (labels,), the share of windows above the class's threshold
        distance: the mean distance of its windows to the training clips, where clips may be rejected
    """

    number: int
    name: str
    logits: np.ndarray
    highest: np.ndarray
    share: np.ndarray
    distance: float = 0.0


def clip_scores(classifier: Classifier, parts: Iterable[Part]) -> Iterator[list[ClipScores | Segment]]:
    """Yields, part by part, the clips that end in it: their scores, or the segment that names the error."""
    totals = None
    for part in parts:
        found, scores = [], None
        if part.arrays:
            scores = classifier.probabilities(part.arrays["logits"])
            part.arrays["scores"] = scores
        for segment, arrays in part.split():
            if segment.error:
                totals = segment
            elif segment.rows and not isinstance(totals, Segment):
                own = arrays["scores"]
                logits = arrays["logits"].astype(np.float64)
                one = np.stack(
                    [
                        logits.max(axis=0) if classifier.of_frames else logits.sum(axis=0),
                        own.max(axis=0).astype(np.float64),
                        (own > classifier.thresholds).sum(axis=0),
                    ]
                )
                count, before, distance = totals or (0, None, 0.0)
                if before is not None:
                    join = np.maximum if classifier.of_frames else np.add
                    one = np.stack([join(before[0], one[0]), np.maximum(before[1], one[1]), before[2] + one[2]])
                distance += float(arrays["distance"].sum(dtype=np.float64)) if "distance" in arrays else 0.0
                totals = (count + segment.windows, one, distance)
            if not segment.is_last:
                continue
            if isinstance(totals, Segment):
                found.append(totals)
            else:
                count, (total, highest, above), distance = totals
                mean = total if classifier.of_frames else total / count
                logits, highest = mean.astype(np.float32), highest.astype(np.float32)
                name, distance = segment.name, np.float32(distance / count)
                found.append(ClipScores(segment.number, name, logits, highest, above / count, distance))
            totals = None
        yield found


def write_tables(
    classifier: Classifier,
    parts: Callable[[], Iterable[Part]],
    failed: set[int],
    has_windows: bool,
    own,
    about: dict,
    output: Path | None,
    windows: Path | None,
):
    """
    Writes the table of files and that of windows; memory holds one part.

    Args:
        parts: opens all parts
        failed: clips without scores
        has_windows: add the highest score and the share of windows to the table of files
        own: columns of the manifests, see `with_own_columns`
    """
    labels, thresholds = classifier.labels, classifier.thresholds
    rate = classifier.extractor.sampling_rate

    def score_columns(scores: np.ndarray, prefix: str = "probability_") -> Columns:
        return list(zip(score_names(labels, prefix), np.ascontiguousarray(scores.T)))

    def results(logits: np.ndarray, distances: np.ndarray) -> Columns:
        scores = classifier.probabilities(logits)
        found, unlike = classifier.reject(predictions(labels, scores, thresholds), logits, distances)
        return [("prediction", found), *unlike, *score_columns(scores)]

    def write_windows(write):
        for part in parts():
            rows = [(s.number, s.name, arrays) for s, arrays in part.split() if s.rows and s.number not in failed]
            if rows:
                places = np.repeat(np.arange(len(rows)), [len(arrays["start"]) for *_, arrays in rows])
                logits, starts, stops = (
                    np.concatenate([arrays[name] for *_, arrays in rows]) for name in ("logits", "start", "stop")
                )
                distances = [arrays.get("distance", arrays["start"]) for *_, arrays in rows]  # none: not read
                prediction, *scores = results(logits, np.concatenate(distances))
                times = [("start_s", (starts / rate).round(6)), ("end_s", (stops / rate).round(6))]
                numbers, files = ([rows[place][index] for place in places] for index in (0, 1))
                write(with_own_columns("file", files, numbers, own, [*times, prediction, *scores]))

    def write_files(write):
        for found in clip_scores(classifier, parts()):
            clips = [clip for clip in found if isinstance(clip, ClipScores)]
            if clips:
                columns = results(
                    np.stack([clip.logits for clip in clips]), np.stack([clip.distance for clip in clips])
                )
                if has_windows and not labels.is_regression:
                    columns += score_columns(np.stack([clip.highest for clip in clips]), "max_")
                    columns += score_columns(np.stack([clip.share for clip in clips]).round(6), "share_")
                names, numbers = [clip.name for clip in clips], [clip.number for clip in clips]
                write(with_own_columns("file", names, numbers, own, columns))

    for path, fill in ((windows, write_windows), (output, write_files)):
        if path is not None:
            with open_table(path, about) as write:
                fill(write)
