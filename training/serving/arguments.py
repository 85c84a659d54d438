"""Options of the service: what it takes, and how it joins requests."""

from dataclasses import dataclass

from ..data.uploads import MAX_MB
from ..recipe import Arguments, described


@dataclass
class ServingArguments(Arguments):
    """Defines the limits of the service and its batches."""

    max_batch: int = described(16, "Clips or windows per forward pass; 1: no batching.", at_least=1)
    max_wait_ms: float = described(
        5.0, "Milliseconds that a clip waits for others while the model is idle.", at_least=0
    )
    max_queue: int = described(256, "Requests that wait for the model; more are answered with 503.", at_least=1)
    max_mb: float = described(float(MAX_MB), "MB of a request; larger ones are answered with 413.", above=0)
    max_s: float = described(600.0, "Seconds of audio in a request; longer ones are answered with 413.", above=0)
    upload_s: float = described(300.0, "Seconds in which a request must arrive; slower ones are cut off.", above=0)
