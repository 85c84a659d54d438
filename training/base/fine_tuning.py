"""Trains classifiers of clips or frames: frozen parts, adapters, averaged weights, rates by depth."""

import contextlib
import shutil
from pathlib import Path

import torch
from transformers.trainer_utils import PredictionOutput

from ..data.clip_stream import ClipStream
from ..errors import InputError
from .arguments import TrainedWeightsArguments
from .averaging import weight_average
from .outputs import STAGING_NAME as OUTPUT_STAGING_NAME
from .trainer import AudioTrainer
from .tuning import ADAPTER, count_parameters, frozen_modules, rate_scales, save_tuning


class FineTuningTrainer(AudioTrainer):
    """
    Trains a classifier with the options of `TrainedWeightsArguments`.

    Args:
        training_loss: (logits, labels) -> loss, in place of the model's own during training

    Raises:
        InputError: an option that the model does not support, or one that needs whole weights where it is sharded.
    """

    def __init__(self, model, args, tuning: TrainedWeightsArguments, training_loss=None, **kwargs):
        if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise InputError(
                f"gradient_checkpointing: a {model.config.model_type} model does not support it; leave it out, or take "
                "smaller batches and more gradient_accumulation_steps"
            )
        super().__init__(model, args, **kwargs)
        if self.is_sharded:
            for name in ("lora_rank", "layer_decay", "ema_decay", "average_from_epoch"):
                if getattr(tuning, name) is not None:
                    raise InputError(
                        f"{name}: needs whole weights in every process; leave it out, or FSDP and DeepSpeed"
                    )
        if self._pushes is not None and tuning.lora_rank:
            raise InputError("hub_strategy: checkpoints of lora_rank hold only an adapter; set end")
        self.tuning = tuning
        self.training_loss = training_loss
        self.average = weight_average(tuning)
        if self.average is not None:
            self.add_callback(self.average)
        self.num_parameters = count_parameters(self.model)
        self.frozen = frozen_modules(self.model)
        # id of a parameter -> factor of its learning rate
        self.rate_scales = rate_scales(self._plain_model(), tuning.layer_decay)
        self._frames = torch.zeros(2, device=self.args.device)  # frames with audio, and all frames, since the last log

    def _plain_model(self):
        """Returns the model without its adapter's wrapper."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def is_sharded(self) -> bool:
        """Returns whether each process holds a part of the weights."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @property
    def is_adapter(self) -> bool:
        return hasattr(self.model, "merge_and_unload")

    def train(self, *args, **kwargs):
        """Trains as Trainer does; then saves an adapter by itself, among the outputs, and merges it into the model."""
        outputs = Path(self.args.output_dir) / OUTPUT_STAGING_NAME
        if self.args.should_save:
            shutil.rmtree(outputs, ignore_errors=True)
        if self.is_world_process_zero():
            print("trainable parameters: {trainable_parameters:,} of {parameters:,}".format(**self.num_parameters))
        result = super().train(*args, **kwargs)
        if self.is_adapter:
            self.model.save_pretrained(str(outputs / ADAPTER), is_main_process=self.args.should_save)
            (outputs / ADAPTER / "README.md").unlink(missing_ok=True)  # an empty template, with a path of this machine
            self.model = self.model_wrapped = self.model.merge_and_unload()
        return result

    def predict_held_out(self, datasets: dict) -> dict[str, PredictionOutput]:
        """Returns split -> predictions, targets and metrics; of the validation and test splits, as far as given."""
        splits = (split for split in ("validation", "test") if split in datasets)
        return {split: self.predict(datasets[split], metric_key_prefix=split) for split in splits}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._begin_batch(model, inputs)
        if not model.training or self.training_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.training_loss(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss

    def _begin_batch(self, model, inputs):
        """Keeps frozen modules as they are in a training batch, and counts its frames."""
        if not model.training:
            return
        for module in self.frozen:  # no dropout, and batch norms keep their statistics
            module.eval()
        mask = inputs["attention_mask"]
        self._frames += torch.stack([mask.sum(), torch.tensor(mask.numel(), device=mask.device)])

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Also logs the share of padding in the training batches, and the clips that a stream has delivered."""
        if "loss" in logs and self._frames[1]:
            logs = logs | {"padded_share": 1 - float(self._frames[0] / self._frames[1])}
            self._frames.zero_()
        if "loss" in logs and isinstance(self.train_dataset, ClipStream):
            logs = logs | {"clips": self.train_dataset.num_delivered(self.state.global_step, self.args)}
        super().log(logs, start_time)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """
        Creates AdamW (or `optim`) with `head_learning_rate` for all parameters outside the encoder and for queries,
        `fusion_learning_rate` for learned layer weights, and the factors of `rate_scales`.
        """
        model = self.model if model is None else model
        weighs_layers = any(name.endswith("layer_weights") for name, _ in model.named_parameters())
        if self.optimizer is None and (weighs_layers or self.rate_scales or self.args.head_learning_rate is not None):
            with self.blames_optimizer():
                optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
                self.optimizer = optimizer_class(self._parameter_groups(model), **settings)
        return super().create_optimizer(model)

    def _parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        decayed = set(self.get_decay_parameter_names(model))
        prefix = f"{self.accelerator.unwrap_model(model).base_model_prefix}."
        groups = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rate, is_decayed = self.args.learning_rate, name in decayed
            if name.endswith("layer_weights"):  # weight decay would make them equal
                rate, is_decayed = self.args.fusion_learning_rate, False
            elif self.args.head_learning_rate is not None and (
                prefix not in f".{name}" or name.endswith("pooling_query")
            ):
                rate = self.args.head_learning_rate
            rate *= self.rate_scales.get(id(parameter), 1.0)
            groups.setdefault((rate, is_decayed), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if is_decayed else 0.0}
            # Trainer logs the rate of the first group, so the first must have the recipe's rate.
            for (rate, is_decayed), parameters in sorted(
                groups.items(), key=lambda x: x[0][0] != self.args.learning_rate
            )
        ]

    def _get_eval_sampler(self, eval_dataset):
        """Returns a sampler that keeps the order, because predictions are written beside the names of the clips."""
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def check_weights(self):
        """Also checks the averaged weights."""
        super().check_weights()
        if self.average is not None:
            with self._averaged():
                super().check_weights()

    def _averaged(self):
        return contextlib.nullcontext() if self.average is None else self.average.applied(self.model)

    def _save(self, output_dir=None, state_dict=None):
        with self._averaged():
            super()._save(output_dir, state_dict)
        if self.is_adapter and self.args.should_save:  # PEFT does not save it
            self.model.config.to_json_file(Path(output_dir) / "config.json")

    def _save_optimizer_and_scheduler(self, output_dir):
        """Also saves the tuning settings and the averaged weights."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_tuning(self.tuning, Path(output_dir))
            if self.average is not None:
                self.average.save(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.checkpoint = Path(resume_from_checkpoint)
