"""Pushes to the Hub from a training: a check before it, checkpoints during it, and the finished run."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from transformers.utils import logging

from hub.push import PUBLISHED, PushError, check_repository, choose_files, push_files, push_folder

from ..errors import InputError

logger = logging.get_logger(__name__)


def check_hub(arguments):
    """
    Checks on the main process that the run can be pushed, before anything slow begins.

    Raises:
        InputError: the token is missing, or may not write to the repository.
    """
    if arguments.push_to_hub and arguments.process_index == 0:
        try:
            check_repository(arguments.hub_model_id, private=arguments.hub_private_repo)
        except PushError as error:
            raise InputError(f"push_to_hub: {error}") from error


def push_run(arguments):
    """
    Pushes the finished run.

    Raises:
        InputError: the push failed; the folder stays as it is.
    """
    folder = Path(arguments.output_dir)
    try:
        push_folder(folder, arguments.hub_model_id, private=arguments.hub_private_repo, message="End of training")
    except PushError as error:
        raise InputError(f"push_to_hub: the run is finished and in {folder}, but not on the Hub: {error}") from error


class CheckpointPushes:
    """Pushes checkpoints during training, one at a time; skips those that are saved during a push."""

    def __init__(self, arguments):
        self.arguments = arguments
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._current: Future | None = None

    def push(self, folder: Path):
        """Reads a checkpoint (it may be deleted before the push ends) and pushes it. Failures are warnings."""
        if self._current is not None and not self._current.done():
            logger.warning(f"{folder.name} is not pushed: the push of an earlier one goes on")
            return
        try:
            files, _ = choose_files(folder, self.arguments.hub_model_id)
            files = {
                name: content if isinstance(content, bytes) else content.read_bytes() for name, content in files.items()
            }
        except (PushError, OSError, ValueError) as error:
            logger.warning(f"{folder.name} is not pushed: {error}")
            return
        self._current = self._thread.submit(self._push, files, folder.name)

    def _push(self, files: dict[str, bytes], name: str):
        repository, private = self.arguments.hub_model_id, self.arguments.hub_private_repo
        try:
            push_files(files, repository, message=f"Training in progress, {name}", private=private, delete=PUBLISHED)
        except PushError as error:
            logger.warning(f"{name} is not pushed, and the training goes on: {error}")

    def finish(self):
        """Waits for the current push."""
        if self._current is not None:
            self._current.result()
