"""Finds the events of clips in their stored windows, and writes their table."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..base.event_detection import EventFinder, event_scores, event_settings
from ..data.events import Event, check_events_file, event_files, write_events
from ..errors import InputError, printable
from .inputs import ClipSequence
from .scores import Classifier
from .shards import Part


class EventTable:
    """
    Finds the events of clips, and writes their table.

    Args:
        path, event_format: see `write_events`
        classifier: gives the scores of windows
        settings: see [`event_settings`][training.base.event_detection.event_settings]

    Raises:
        InputError: the model has no classes, or the second threshold is above the first of a class.
    """

    def __init__(self, path: Path, event_format: str | None, classifier: Classifier, **settings):
        self.path, self.event_format, self.classifier = path, event_format, classifier
        event_scores(np.zeros((0, len(classifier.labels.names))), classifier.labels)  # refuses a regression
        self.settings = event_settings(classifier.model.config, **settings)
        self.events: dict[str, list[Event]] = {}
        self.numbers: dict[str, int] = {}  # name of a clip -> its number
        self.durations_s: dict[str, float] = {}

    def check(self, clips: ClipSequence):
        """
        Raises `InputError` if the events of these clips cannot be written, before hours of work; for a stream, as soon
        as two clips of one name are read.
        """
        names = clips.names() if clips.num_clips is not None else []  # those of a stream are unknown
        clips.check_name = self._check_name
        check_events_file(self.path, self.event_format, self.classifier.labels.names, names)
        for name, count in Counter(names).most_common(1):
            if count > 1:
                raise self._same_name(count, name)

    def _check_name(self, number: int, name: str):
        if self.numbers.setdefault(name, number) != number:
            error = self._same_name("several", name)
            raise InputError(f"{error}, or leave --events out: --windows has the scores of each clip")

    def _same_name(self, count: int | str, name: str) -> InputError:
        return InputError(
            f"{self.path}: {count} inputs are called {printable(name)}, and nothing would tell their events apart; "
            "name each once"
        )

    def read(self, parts: Iterable[Part], failed: set[int]):
        """
        Finds the events of all clips but the failed ones; memory holds a part, and the events.

        Raises:
            InputError: two clips have one name, which `check` cannot know of a stream.
        """
        rate, names = self.classifier.extractor.sampling_rate, self.classifier.labels.names
        finder = None
        for part in parts:
            for segment, arrays in part.split():
                if segment.number in failed:
                    continue
                self._check_name(segment.number, segment.name)
                own = self.events.setdefault(segment.name, [])
                finder = finder or EventFinder(names, **self.settings)
                if segment.rows:
                    scores = event_scores(self.classifier.probabilities(arrays["logits"]), self.classifier.labels)
                    ends_s = arrays["stop"] / rate
                    own += finder.add(scores, arrays["start"] / rate, ends_s)
                    self.durations_s[segment.name] = float(ends_s[-1])
                if segment.is_last:
                    own += finder.finish()
                    finder = None

    def files(self) -> set[Path]:
        """Returns the files that `write` writes."""
        return set(event_files(self.path, self.events, self.event_format).values())

    def write(self) -> str:
        """Writes the table, and returns a line that counts the events, and the clips without any."""
        highest_hz = self.classifier.extractor.sampling_rate / 2
        write_events(self.path, self.events, self.event_format, self.durations_s, highest_hz)
        count, without = sum(map(len, self.events.values())), sum(not own for own in self.events.values())
        return f"{self.path}: {count} events; {without} of {len(self.events)} files have none"
