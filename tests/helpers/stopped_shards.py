"""Stops programs that store shards."""

from training.inference.shards import Shards


def stop_after(monkeypatch, most: int, stop: type[BaseException] = KeyboardInterrupt) -> list[int]:
    """Stops what saves one more than `most` shards; returns the numbers of the saved ones, a list that grows."""
    save, saved = Shards.save, []

    def save_or_stop(shards, number, *rest):
        if len(saved) == most:
            raise stop
        saved.append(number)
        save(shards, number, *rest)

    monkeypatch.setattr(Shards, "save", save_or_stop)
    return saved
