"""Trains classifiers: frozen parts, adapters, averaged weights, losses and samplers."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import torch

from modeling_dual_ssast.classifier_dual_ssast import classification_loss

from ..base.open_set import EmbeddingHook
from ..base.outputs import STAGING_NAME as OUTPUT_STAGING_NAME
from ..base.trainer import AudioTrainer
from ..data.clip_stream import ClipStream
from ..data.dataset import mean_over_windows
from ..errors import InputError
from .arguments import TuningArguments
from .averaging import weight_average
from .tuning import ADAPTER, count_parameters, frozen_modules, rate_scales, save_tuning


class ClassificationTrainer(AudioTrainer):
    """
    Trains a classifier with the options of `TuningArguments`.

    Args:
        training_loss: (logits, labels) -> loss, in place of the model's own during training
        sampler: order of the training clips; `None`: Transformers'

    Raises:
        InputError: the model is sharded, and an option needs whole weights.
    """

    def __init__(self, *args, tuning: TuningArguments, training_loss=None, sampler=None, **kwargs):
        super().__init__(*args, **kwargs)
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
        self.sampler = sampler
        self.average = weight_average(tuning)
        if self.average is not None:
            self.add_callback(self.average)
        self.num_parameters = count_parameters(self.model)
        self.frozen = frozen_modules(self.model)
        # id of a parameter -> factor of its learning rate
        self.rate_scales = rate_scales(self._plain_model(), tuning.layer_decay)
        self._by_embeddings = None  # hook and function of `predict_by_embeddings`
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
        """Also logs the share of padding in the training batches, and the clips that a stream has delivered."""
        if "loss" in logs and self._frames[1]:
            logs = logs | {"padded_share": 1 - float(self._frames[0] / self._frames[1])}
            self._frames.zero_()
        if "loss" in logs and isinstance(self.train_dataset, ClipStream):
            logs = logs | {"clips": self.train_dataset.num_heard(self.state.global_step, self.args)}
        super().log(logs, start_time)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """
        Creates AdamW (or `optim`) with `head_learning_rate` for all parameters outside the encoder,
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
            elif prefix not in f".{name}" and self.args.head_learning_rate is not None:
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

    def predict_by_embeddings(self, dataset, function) -> tuple[np.ndarray, np.ndarray]:
        """
        Predicts, and calls a function of the normalised embeddings (windows, size); of a clip's windows the mean.

        Returns:
            logits (clips, labels), and what the function returns (clips, ...)
        """
        if self.args.torch_compile:
            torch.compiler.reset()  # what is compiled ignores new hooks
        hook, compute_metrics = EmbeddingHook(self._plain_model()), self.compute_metrics
        self._by_embeddings, self.compute_metrics = (hook, function), None
        try:
            return self.predict(dataset).predictions
        finally:
            self._by_embeddings, self.compute_metrics = None, compute_metrics
            hook.remove()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Predicts as Trainer does; a clip in windows has their mean logits, as in `classify_windows`."""
        num_windows = inputs.pop("num_windows", None)
        loss, logits, labels = self._predict_batch(model, inputs, num_windows, prediction_loss_only, ignore_keys)
        if self._by_embeddings is not None:
            hook, function = self._by_embeddings
            values = function(hook.take())
            logits = (logits, values if num_windows is None else mean_over_windows(values, num_windows))
        return loss, logits, labels

    def _predict_batch(self, model, inputs, num_windows, prediction_loss_only, ignore_keys):
        if num_windows is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.is_sharded:  # all processes must make the same number of passes
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

    def _get_train_sampler(self, train_dataset=None):
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

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
