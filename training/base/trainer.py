"""Transformers' Trainer with a learning rate for the head and checkpoints that are never half-written."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import ClassVar

import torch
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import HubStrategy, rotate_checkpoints

from modeling_dual_ssast.classifier_dual_ssast import classification_loss

from ..classification.report import STAGING_NAME as OUTPUT_STAGING_NAME
from ..classification.tuning import ADAPTER, count_parameters, frozen_modules, rate_scales, save_tuning, weight_average
from ..data.clip_stream import ClipStream
from ..data.dataset import mean_over_windows
from ..errors import InputError
from ..recipe import TuningArguments
from .pushes import CheckpointPushes, push_run

STAGING_NAME = "unfinished-checkpoint"  # not checkpoint-N: nothing takes it for one


def early_stopping(arguments) -> list[EarlyStoppingCallback]:
    """
    The callback that `early_stopping_patience` asks for, if it does.

    Raises:
        InputError: there are no evaluations whose best one could be kept.
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
    """Counts on where a stopped run resumes, and stops at once what was stopped before: Transformers begins at zero."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        name = args.metric_for_best_model
        name = name if name.startswith("eval_") else f"eval_{name}"
        best, self.early_stopping_patience_counter = None, 0
        for value in (entry[name] for entry in state.log_history if name in entry):
            if best is None or (value > best if args.greater_is_better else value < best):
                best, self.early_stopping_patience_counter = value, 0
            else:
                self.early_stopping_patience_counter += 1
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class AudioTrainer(Trainer):
    """
    Trainer for the tasks of this project.

    Checkpoints are written under a staging name and renamed when every process has finished its part, so that a run
    killed at any moment leaves only whole ones. What goes to the Hub is chosen by `model_cards.push`.
    """

    _staging: str | None = None
    _pushes: CheckpointPushes | None = None
    rate_scales: ClassVar[dict[int, float]] = {}  # id of a parameter -> factor of its learning rate

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """
        AdamW (or what `optim` says), with `head_learning_rate` for everything outside the encoder,
        `fusion_learning_rate` for the learned weights of layers, and factors by parameter, `rate_scales`.
        """
        model = self.model if model is None else model
        weighs_layers = any(name.endswith("layer_weights") for name, _ in model.named_parameters())
        if self.optimizer is None and (weighs_layers or self.rate_scales or self.args.head_learning_rate is not None):
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self._parameter_groups(model), **settings)
        return super().create_optimizer(model)

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        self._epoch_steps = args.epoch_steps or values[1]  # for `create_scheduler`, which comes next
        return values

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> torch.optim.lr_scheduler.LRScheduler:
        """As Trainer's, or with `lr_decay` SSAST's: constant, and lower by that factor every so many epochs."""
        args = self.args
        if args.lr_decay is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        num_warmup, epoch_steps = args.get_warmup_steps(num_training_steps), self._epoch_steps

        def factor(step: int) -> float:
            epochs = step // epoch_steps - args.lr_decay_start  # since the first decay
            decay = args.lr_decay ** (1 + epochs // args.lr_decay_every) if epochs >= 0 else 1.0
            return min(step / num_warmup, 1.0) * decay if num_warmup else decay

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        decayed = set(self.get_decay_parameter_names(model))
        prefix = f"{self.accelerator.unwrap_model(model).base_model_prefix}."
        groups = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rate, is_decayed = self.args.learning_rate, name in decayed
            if name.endswith("layer_weights"):  # decayed, they would be drawn to be equal
                rate, is_decayed = self.args.fusion_learning_rate, False
            elif prefix not in f".{name}" and self.args.head_learning_rate is not None:
                rate = self.args.head_learning_rate
            rate *= self.rate_scales.get(id(parameter), 1.0)
            groups.setdefault((rate, is_decayed), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if is_decayed else 0.0}
            # Trainer logs the rate of the first group: the recipe's, where there is one.
            for (rate, is_decayed), parameters in sorted(
                groups.items(), key=lambda x: x[0][0] != self.args.learning_rate
            )
        ]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As Trainer's. The logits of a clip that comes as windows are the mean over them, as in `classify_windows`."""
        num_windows = inputs.pop("num_windows", None)
        if num_windows is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # every process must make as many passes as the others
            raise InputError(
                "window_s: clips longer than the model's input cannot be evaluated with FSDP or DeepSpeed; set "
                "eval_strategy to no, leave the splits out, and evaluate with predict_hf.py"
            )
        inputs = self._prepare_inputs(inputs)
        labels, config = inputs.pop("labels"), self.accelerator.unwrap_model(model).config
        batch_size = self.args.per_device_eval_batch_size
        with torch.no_grad(), self.compute_loss_context_manager():
            parts = zip(*(value.split(batch_size) for value in inputs.values()))
            logits = [model(**dict(zip(inputs, part)), return_dict=True).logits for part in parts]
            logits = mean_over_windows(torch.cat(logits), num_windows)
            loss = classification_loss(logits, labels, config.problem_type, config.label_smoothing)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """A stream not through Accelerate, which would deal out what the stream has dealt out already."""
        if not isinstance(self.train_dataset, ClipStream):
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type != "cpu",
            generator=torch.Generator(),  # or a resumed run, which begins an iterator, would draw once more
        )

    def _run_epoch(self, *args, **kwargs):
        """A finished run takes no step more where it is resumed: on a stream, which has no end, or stopped early."""
        is_finished = isinstance(self.train_dataset, ClipStream) and self.state.global_step >= self.state.max_steps
        if is_finished or self.control.should_training_stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def remove_checkpoints(self):
        """Removes the checkpoints of an earlier run, which a resumption would take for this one's."""
        if self.args.should_save and os.path.isdir(self.args.output_dir):
            for folder in Path(self.args.output_dir).glob("checkpoint-*"):
                shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()

    def init_hf_repo(self, token=None, private=None):
        """The repository was made by `check_hub`."""
        if self.is_world_process_zero() and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            self._pushes = CheckpointPushes(self.args)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Not from the staging name; `_save_checkpoint` pushes what is whole."""

    def _finish_current_push(self):
        """Not before the outputs are written: the other processes would wait for it."""

    def push_to_hub(self):
        """
        Pushes the finished run where `push_to_hub` is set. Called by every process.

        Raises:
            InputError: the Hub did not take it.
        """
        if self._pushes is not None:
            self._pushes.finish()
        if self.args.push_to_hub and self.is_world_process_zero():
            push_run(self.args)

    def _get_output_dir(self, trial) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        run_folder = Path(super()._get_output_dir(trial))
        staging = run_folder / STAGING_NAME
        final = run_folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(staging / final.name / "trainer_state.json")  # with the final name of the best
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging / final.name, final)
            staging.rmdir()
            if self._pushes is not None:
                self._pushes.push(final)
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()


class ClassificationTrainer(AudioTrainer):
    """
    AudioTrainer for what `TuningArguments` says: frozen parts, adapters, averaged weights, another loss or order.

    Args:
        training_loss: (logits, labels) -> loss, in the place of the model's own while it trains
        sampler: of the training clips

    Raises:
        InputError: a way of training that a sharded model has not.
    """

    def __init__(self, *args, tuning: TuningArguments, training_loss=None, sampler=None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            for name in ("lora_rank", "layer_decay", "ema_decay", "average_from_epoch"):
                if getattr(tuning, name) is not None:
                    raise InputError(
                        f"{name}: needs whole weights in every process; leave it out, or FSDP and DeepSpeed"
                    )
        if self._pushes is not None and tuning.lora_rank:
            raise InputError("hub_strategy: checkpoints of lora_rank hold only an adapter; set end")
        self.tuning = tuning
        self.training_loss = training_loss
        self.sampler = sampler
        self.average = weight_average(tuning)
        if self.average is not None:
            self.add_callback(self.average)
        self.num_parameters = count_parameters(self.model)
        self.frozen = frozen_modules(self.model)
        self.rate_scales = rate_scales(self._plain_model(), tuning.layer_decay)
        self._frames = torch.zeros(2, device=self.args.device)  # with audio, and all, since the last log

    def _plain_model(self):
        """The model without its adapter's wrapper."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def is_adapter(self) -> bool:
        return hasattr(self.model, "merge_and_unload")

    def train(self, *args, **kwargs):
        """As Trainer's. An adapter is then saved by itself, with the outputs to come, and merged into the model."""
        outputs = Path(self.args.output_dir) / OUTPUT_STAGING_NAME
        if self.args.should_save:
            shutil.rmtree(outputs, ignore_errors=True)
        if self.is_world_process_zero():
            print("trainable parameters: {trainable_parameters:,} of {parameters:,}".format(**self.num_parameters))
        result = super().train(*args, **kwargs)
        if self.is_adapter:
            self.model.save_pretrained(str(outputs / ADAPTER), is_main_process=self.args.should_save)
            (outputs / ADAPTER / "README.md").unlink(missing_ok=True)  # an empty form, with a path of this machine
            self.model = self.model_wrapped = self.model.merge_and_unload()
        return result

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        for module in self.frozen:  # no dropout, and batch norms keep their statistics
            module.eval()
        mask = inputs["attention_mask"]
        self._frames += torch.stack([mask.sum(), torch.tensor(mask.numel(), device=mask.device)])
        if self.training_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.training_loss(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """With the share of the frames of the training batches that was padding."""
        if "loss" in logs and self._frames[1]:
            logs = logs | {"padded_share": 1 - float(self._frames[0] / self._frames[1])}
            self._frames.zero_()
        if "loss" in logs and isinstance(self.train_dataset, ClipStream):
            logs = logs | {"clips": self.train_dataset.num_heard(self.state.global_step, self.args)}
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _get_eval_sampler(self, eval_dataset):
        """In order: predictions are written beside the names of the clips."""
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def _averaged(self):
        return contextlib.nullcontext() if self.average is None else self.average.applied(self.model)

    def _save(self, output_dir=None, state_dict=None):
        with self._averaged():
            super()._save(output_dir, state_dict)
        if self.is_adapter and self.args.should_save:  # PEFT saves none
            self.model.config.to_json_file(Path(output_dir) / "config.json")

    def _save_optimizer_and_scheduler(self, output_dir):
        """And what else a resumption needs."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_tuning(self.tuning, Path(output_dir))
            if self.average is not None:
                self.average.save(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.checkpoint = Path(resume_from_checkpoint)
