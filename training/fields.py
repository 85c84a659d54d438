"""Fields of the dataclasses that a recipe fills in."""

from dataclasses import field


def described(default, help_text: str):
    """A field with a default and the help that `train_hf.py --help` shows."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})
