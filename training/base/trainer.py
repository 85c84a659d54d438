"""Extends Transformers' Trainer by schedules, streams, progress, and checkpoints that are always whole."""

import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy, get_last_checkpoint, has_length, rotate_checkpoints

from hub.finite import non_finite_weights

from ..data.clip_stream import ClipStream
from ..data.feature_plans import PlannedBatch
from ..errors import InputError, blamed, one_line, short
from ..files import check_same, write_json
from .finite import NotFinite, check_weights_finite
from .progress import Progress
from .push_to_hub import CheckpointPushes, push_run
from .resumption import DATA, REMEDY, folder_of

WRONG_OPTIONS = "options of the training", "correct or leave out the option that this is about"
FIRST_STEP = "options or checkpoint of the training", "correct or leave out the one that this is about"
# Key of a group of weights -> its name in messages. Schedules of the rate take parts of `initial_lr`.
OPTIMIZER_SETTINGS = {
    "initial_lr": "learning rate",
    "weight_decay": "weight decay",
    "betas": "betas of Adam",
    "eps": "epsilon of Adam",
}
WATCHING = ("reduce_lr_on_plateau", "greedy")  # schedules that watch the evaluations
STAGING_NAME = "unfinished-checkpoint"  # not checkpoint-N: no program mistakes it for a checkpoint


class WarmUp(TrainerCallback):
    """Raises the learning rates of the groups of weights linearly over the first steps; the schedule follows."""

    def __init__(self, trainer: "AudioTrainer", num_steps: int, rates: list[float]):
        self.trainer, self.num_steps, self.rates = trainer, num_steps, rates

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step < self.num_steps:
            for group, rate in zip(self.trainer.optimizer.param_groups, self.rates):
                group["lr"] = rate * (state.global_step + 1) / self.num_steps


def early_stopping(arguments) -> list[EarlyStoppingCallback]:
    """
    Returns the callback of `early_stopping_patience`, if it is set.

    Raises:
        InputError: the run has no evaluations, or does not keep the best checkpoint.
    """
    if arguments.early_stopping_patience is None:
        return []
    if arguments.eval_strategy == "no" or not arguments.load_best_model_at_end:
        raise InputError(
            "early_stopping_patience: needs evaluations, and load_best_model_at_end: name validation clips, and set "
            "eval_strategy and save_strategy"
        )
    return [EarlyStopping(arguments.early_stopping_patience)]


class EarlyStopping(EarlyStoppingCallback):
    """Stops early. Its count survives a resumption, and a run that was stopped early does not train on."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        name = args.metric_for_best_model
        name = name if name.startswith("eval_") else f"eval_{name}"
        best, self.early_stopping_patience_counter = None, 0
        for value in (entry[name] for entry in state.log_history if name in entry):
            if best is None or math.isnan(best) or (value > best if args.greater_is_better else value < best):
                best, self.early_stopping_patience_counter = value, 0
            else:
                self.early_stopping_patience_counter += 1
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class Resumption(TrainerCallback, ExportableState):
    """
    Measures the seconds of a training. Its checkpoints keep them, and a resumption goes on from there.

    A resumption also finds the best checkpoint in a folder that was moved: its state has the earlier path.

    Args:
        folder: that of the checkpoint to resume from, and of those beside it
    """

    def __init__(self, folder: str):
        self.folder, self.earlier_s, self.started = folder, 0.0, time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.global_step:
            return
        kept = state.stateful_callbacks.get(type(self).__name__)
        if kept is not None:  # checkpoints of earlier versions have none
            self.earlier_s = kept["attributes"]["earlier_s"]
        best = Path(self.folder, f"checkpoint-{state.best_global_step}")
        if best.is_dir():
            state.best_model_checkpoint = str(best)

    @property
    def seconds(self) -> float:
        return self.earlier_s + time.perf_counter() - self.started

    def state(self) -> dict:
        return {"args": {}, "attributes": {"earlier_s": self.seconds}}


class AudioTrainer(Trainer):
    """
    Trains in every task of this project.

    Writes checkpoints under a staging name and renames them when every process has finished its part, so that a run
    killed at any moment leaves only whole ones. `hub.push` chooses the files that go to the Hub.

    Stops, in all processes, before the first step whose loss or gradient is not finite, and never saves weights that
    are not.

    Checkpoints keep `data_facts`: what a resumption compares of the clips, their order and their parts.

    `training_s` is the duration of the last training in seconds, with what its checkpoint had before a resumption.
    """

    CONSTANT_SETTINGS = tuple(OPTIMIZER_SETTINGS)  # of the optimizer: no schedule changes them
    training_s = 0.0
    data_facts: Mapping = {}
    _first_step: int | None = None  # of this training; Transformers 5.5 keeps none
    _staging: str | None = None
    _pushes: CheckpointPushes | None = None

    def __init__(self, *args, **kwargs):
        with blamed(*WRONG_OPTIONS):
            super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(Progress)
        self._loss = torch.zeros(1, device=self.args.device)  # sum over the batches of a step

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        """
        Trains as Trainer does. Unless the training goes on from one of them, the output folder loses its checkpoints.

        Raises:
            InputError: a loss, a gradient or a weight is not finite, or the memory is too small.
        """
        folder, checkpoint = self.args.output_dir, resume_from_checkpoint
        if checkpoint is None:
            self.remove_checkpoints()
        elif folder_of(checkpoint) != os.path.realpath(folder):
            self.remove_checkpoints()
            folder = folder_of(checkpoint)
        self.add_callback(Resumption(folder))
        self._first_step = None
        try:
            result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        except (torch.OutOfMemoryError, MemoryError) as error:
            size = self.args.per_device_train_batch_size
            raise InputError(
                f"per_device_train_batch_size: {size} clips need more memory than there is ({short(one_line(error))}); "
                "lower it, and raise gradient_accumulation_steps"
            ) from error
        finally:
            self.training_s = self.pop_callback(Resumption).seconds
        self.check_weights()
        return result

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Also makes planned features on the training device, just before they reach the model."""
        if PlannedBatch.KEY in inputs:
            planned = inputs.pop(PlannedBatch.KEY).to(self.args.device)  # Accelerate has moved it, but for streams
            inputs |= planned.make(self.processing_class)  # in place: Trainer counts operations by these afterwards
        return super()._prepare_inputs(inputs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Also collects the loss for the check of the step. In the first step a library's error is about the recipe."""
        if self._first_step is None:
            self._first_step = self.state.global_step
        with blamed(*FIRST_STEP) if self.state.global_step == self._first_step else nullcontext():
            loss = super().training_step(*args, **kwargs)
        self._loss += loss.float()
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Also checks the step before the optimiser makes it. Reads the device once, as Trainer's own filter does."""
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of FSDP2, each process has a part
        loss, self._loss = self._loss, torch.zeros_like(self._loss)
        if self.args.world_size > 1:  # all processes stop, or none
            loss = self.accelerator.reduce(loss, "sum")
        values = torch.cat([loss, torch.as_tensor(0.0 if norm is None else norm).reshape(1).to(loss)]).tolist()
        if not math.isfinite(values[0]):
            self._stop(f"the loss is {values[0]:g}")
        if not math.isfinite(values[1]) and not self._lowers_scale():
            self._stop(f"the gradient is not finite (its norm is {values[1]:g})")
        return norm

    def _lowers_scale(self) -> bool:
        """Returns whether the gradient may overflow: the scaler of fp16 then skips the step and lowers its scale."""
        if self.is_deepspeed_enabled:
            return self.args.fp16  # it stops by itself at its lowest scale
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= 1

    def check_weights(self):
        """Raises `InputError`, in all processes, if a weight of the model is not finite."""
        problem = non_finite_weights(itertools.chain(self.model.named_parameters(), self.model.named_buffers()))
        if self.args.world_size > 1:  # of a sharded model, each process has a part
            count = self.accelerator.reduce(torch.tensor(float(bool(problem)), device=self.args.device), "sum")
            problem = problem or (count and "another process holds weights that are NaN or infinite")
        if problem:
            self._stop(problem, self.state.global_step)

    def _stop(self, what: str, step: int | None = None):
        """Raises `InputError` with what is not finite, the remedies, and the last good checkpoint."""
        step = self.state.global_step + 1 if step is None else step
        folder = self.args.output_dir
        last = get_last_checkpoint(folder) if os.path.isdir(folder) else None
        half = "fp16" if self.args.fp16 else "bf16" if self.args.bf16 else ""
        raise InputError(
            f"step {step} of {self.state.max_steps}: {what}; the training is stopped, and "
            f"{f'{last} is kept' if last else 'there is no checkpoint yet'}: lower learning_rate "
            f"({self.args.learning_rate:g}), check the clips (python -m training.check)"
            f"{f', or leave out {half}' if half else ''}, and begin anew with --overwrite true"
        )

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """
        Evaluates as Trainer does.

        Raises:
            InputError: a score or a loss is not finite.
        """
        try:
            metrics = super().evaluate(*args, **kwargs)
        except NotFinite as error:
            self._stop(error.problem, self.state.global_step)
        for name, value in metrics.items():
            if name.endswith("loss") and not math.isfinite(value):
                self._stop(f"{name} is {value:g}", self.state.global_step)
        return metrics

    def num_counted(self, num_clips: int) -> int:
        """
        Returns how many clips of a batch count in an evaluation, the first ones, of `num_clips` in this process.

        With several processes, Accelerate fills the last batches with clips from the start of the split. Trainer cuts
        their predictions off, but a mean over a batch would hold them. A batch of such clips alone is cut off as a
        whole; 1 then, so that its mean is a number.
        """
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return num_clips
        return min(max(state.remainder - self.args.process_index * num_clips, 1), num_clips)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with blamed(f"weights of {resume_from_checkpoint}", REMEDY):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        check_weights_finite(str(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Also refuses other settings of the optimizer: those of the checkpoint replace them."""
        wanted = self._optimizer_settings()
        with blamed(f"{checkpoint}/optimizer.pt or scheduler.pt", REMEDY):
            super()._load_optimizer_and_scheduler(checkpoint)
        for before, now in zip(self._optimizer_settings(), wanted):
            check_same(checkpoint, before, now, "resume with the same, or begin anew with --overwrite true")

    def _save_optimizer_and_scheduler(self, output_dir):
        """Also saves what is known of the clips."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            write_json(Path(output_dir) / DATA, self.data_facts)

    def _optimizer_settings(self) -> list[dict]:
        """Returns the settings of each group of weights that no schedule changes."""
        return [
            {OPTIMIZER_SETTINGS[key]: group[key] for key in self.CONSTANT_SETTINGS if key in group}
            for group in self.optimizer.param_groups
        ]

    def _load_rng_state(self, checkpoint):
        with blamed(f"random states of {checkpoint}", REMEDY):
            super()._load_rng_state(checkpoint)

    def blames_optimizer(self):
        """Returns the context in which an optimiser is made: its errors are about `optim`."""
        name, settings = getattr(self.args.optim, "value", self.args.optim), self.args.optim_args
        return blamed(
            f"optim: {name}{f' with optim_args {short(settings)}' if settings else ''}",
            "install what it needs, or leave it out for AdamW",
        )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        with self.blames_optimizer():
            return super().create_optimizer(model)

    def set_initial_training_values(self, args, dataloader):
        if has_length(dataloader) and not len(dataloader):
            raise InputError(
                f"per_device_train_batch_size: {args.per_device_train_batch_size} is more than the "
                f"{len(self.train_dataset)} training clips of {args.world_size} processes, and dataloader_drop_last "
                "leaves out incomplete batches; lower it, or leave dataloader_drop_last out"
            )
        values = super().set_initial_training_values(args, dataloader)
        self._epoch_steps = args.epoch_steps or values[1]  # `create_scheduler` reads it next
        return values

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> torch.optim.lr_scheduler.LRScheduler:
        """Creates Trainer's schedule, or SSAST's if `lr_decay` is set: a constant rate, decayed every few epochs."""
        args = self.args
        if args.lr_decay is None or self.lr_scheduler is not None:
            name, settings = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type), args.lr_scheduler_kwargs
            given = f"lr_scheduler_type: {name} with lr_scheduler_kwargs {short(str(settings))}"
            if name in WATCHING and self.lr_scheduler is None:
                self._prepare_watching(name, num_training_steps, optimizer or self.optimizer)
                args.lr_scheduler_kwargs = self.watching_settings() | (settings or {})
            try:
                with blamed(given, "set the lr_scheduler_kwargs that it needs, as JSON, or take linear"):
                    return super().create_scheduler(num_training_steps, optimizer)
            finally:
                args.lr_scheduler_kwargs = settings  # results.json holds what was given
        num_warmup, epoch_steps = args.get_warmup_steps(num_training_steps), self._epoch_steps

        def factor(step: int) -> float:
            epochs = step // epoch_steps - args.lr_decay_start  # since the first decay
            decay = args.lr_decay ** (1 + epochs // args.lr_decay_every) if epochs >= 0 else 1.0
            return min(step / num_warmup, 1.0) * decay if num_warmup else decay

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def watching_settings(self) -> dict:
        """Returns the settings of a schedule that watches the evaluations: torch's own goes down with the metric."""
        return {"mode": "max" if self.args.greater_is_better else "min"}

    def _prepare_watching(self, name: str, num_training_steps: int, optimizer: torch.optim.Optimizer):
        """Checks that there are evaluations to watch, and adds the warm-up, which such schedules do not have."""
        if self.args.eval_strategy == "no":
            raise InputError(f"lr_scheduler_type: {name} watches the evaluations, and there are none; take linear")
        rates = [group["lr"] for group in optimizer.param_groups]
        self.pop_callback(WarmUp)
        self.add_callback(WarmUp(self, self.args.get_warmup_steps(num_training_steps), rates))

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Returns the loader; for a stream without Accelerate, which would divide its clips a second time."""
        if not isinstance(self.train_dataset, ClipStream):
            with blamed(*WRONG_OPTIONS):
                return super().get_train_dataloader()
        # Without an own generator, a resumed run would draw one more random number.
        return self.own_loader(batch_size=self.args.train_batch_size, generator=torch.Generator())

    def get_eval_dataloader(self, eval_dataset=None) -> torch.utils.data.DataLoader:
        with self._keeps_all_clips():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> torch.utils.data.DataLoader:
        with self._keeps_all_clips():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeps_all_clips(self) -> Iterator[None]:
        """Turns `dataloader_drop_last` off while a loader is made: an evaluation without its last clips is another."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            with blamed(*WRONG_OPTIONS):
                yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def own_loader(self, **settings) -> torch.utils.data.DataLoader:
        """Returns a loader of the training clips by the recipe's options, for batches that Trainer's cannot make."""
        args, workers = self.args, self.args.dataloader_num_workers
        with blamed(*WRONG_OPTIONS):
            return torch.utils.data.DataLoader(
                self.train_dataset,
                collate_fn=self.data_collator,
                num_workers=workers,
                prefetch_factor=args.dataloader_prefetch_factor if workers else None,
                pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",
                **settings,
            )

    def _run_epoch(self, *args, **kwargs):
        """Does nothing when a finished or early-stopped run is resumed."""
        is_finished = isinstance(self.train_dataset, ClipStream) and self.state.global_step >= self.state.max_steps
        if is_finished or self.control.should_training_stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def save_outputs(self, folder: Path) -> bool:
        """Saves the trained model; returns whether this process writes the other outputs."""
        self.save_model(str(folder), _internal_call=True)  # an ordinary call would also push
        if self.is_world_process_zero():  # a pickle with paths of this machine, all in results.json
            (folder / "training_args.bin").unlink(missing_ok=True)
        return self.is_world_process_zero()

    def remove_checkpoints(self):
        """Removes the checkpoints of an earlier run: this one could be resumed from them by mistake."""
        if self.args.should_save and os.path.isdir(self.args.output_dir):
            for folder in Path(self.args.output_dir).glob("checkpoint-*"):
                shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()

    def init_hf_repo(self, token=None, private=None):
        """Prepares pushes of checkpoints to the repository that `check_hub` has created."""
        if self.is_world_process_zero() and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            self._pushes = CheckpointPushes(self.args)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Does nothing: `_save_checkpoint` pushes the checkpoint once it is whole."""

    def _finish_current_push(self):
        """Does nothing: the other processes would wait too; `push_to_hub` waits after the outputs are written."""

    def push_to_hub(self):
        """
        Pushes the finished run if `push_to_hub` is set. Called by every process.

        Raises:
            InputError: the push failed.
        """
        if self._pushes is not None:
            self._pushes.finish()
        if self.args.push_to_hub and self.is_world_process_zero():
            push_run(self.args)

    def _save(self, output_dir=None, state_dict=None):
        """Saves as Trainer does. Of a model that FSDP2 divides, torch makes a class in a module of its own."""
        if self.is_fsdp_enabled:
            from torch.distributed.fsdp import FSDPModule

            divided = type(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
            if issubclass(divided, FSDPModule):  # the file of a class's module is saved beside the weights
                divided.__module__ = divided.__bases__[-1].__module__
        super()._save(output_dir, state_dict)

    def _get_output_dir(self, trial) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        self.check_weights()
        run_folder = Path(super()._get_output_dir(trial))
        staging = run_folder / STAGING_NAME
        final = run_folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        for callback in self.callback_handler.callbacks:  # Trainer expects what a resumed run had not
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(staging / final.name / "trainer_state.json")  # the best one under its final name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging / final.name, final)
            staging.rmdir()
            if self._pushes is not None:
                self._pushes.push(final)
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,  # by number: some file systems have unreliable times
            )
        self.accelerator.wait_for_everyone()
