"""Pushes to the Hub from a training: a check before it, checkpoints during it, and the finished run."""

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from transformers.utils import logging

from hub.push import PUBLISHED, PushError, check_repository, choose_files, prepare_push_process, push_files, push_folder

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
    """
    Pushes checkpoints during training, one at a time; skips those that are saved during a push.

    Another process pushes: a data loader forks its workers from this one, and a worker that is forked during a request
    inherits the lock of the connections, which nobody frees there, and waits for ever.
    """

    def __init__(self, arguments):
        self.arguments = arguments
        self._pool: ProcessPoolExecutor | None = _begin_process()
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
        if self._pool is None:
            self._pool = _begin_process()
        repository, private = self.arguments.hub_model_id, self.arguments.hub_private_repo
        message = f"Training in progress, {folder.name}"
        try:
            self._current = self._pool.submit(
                push_files, files, repository, message=message, private=private, delete=PUBLISHED
            )
        except BrokenProcessPool as error:  # ended since the last push
            self._report(error, folder.name)
        else:
            self._current.add_done_callback(lambda done: self._report(done.exception(), folder.name))

    def _report(self, error: BaseException | None, name: str):
        if error is None:
            return
        is_broken = isinstance(error, BrokenProcessPool)
        reason = "the process that pushes was ended from outside, perhaps for want of memory" if is_broken else error
        logger.warning(f"{name} is not pushed, and the training goes on: {reason}")
        if is_broken:
            self._pool = None  # the next push begins another process

    def finish(self):
        """Waits for the current push, and ends the process that pushes."""
        pool = self._pool  # a push that ends now may set it to None
        if pool is not None:
            pool.shutdown()


def _begin_process() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=prepare_push_process)
    pool.submit(str)  # it imports while the training goes on
    return pool
