"""Measures a pretraining while it runs: the spread of its features, with an alarm, and the score of a frozen probe."""

import copy
import functools
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from ..data.clip_stream import ClipList
from ..files import write_csv
from . import health, probe
from .batches import batches_of

logger = logging.get_logger(__name__)


class Watch(TrainerCallback):
    """
    Measures features and probe at their steps, and logs them. The main process measures while the others wait.

    What was measured is kept in Trainer's log alone, also the baselines: a resumed run goes on with it.

    Args:
        clips: for the features; `None`: they are not measured
        has_probe: whether there is a probe
        labelled: the probe, in the main process
        starts_random: whether the run began with random weights, which are then the baseline
    """

    def __init__(
        self, trainer, clips: ClipList | None, has_probe: bool, labelled: probe.Probe | None, starts_random: bool
    ):
        self.trainer, self.clips, self.has_probe = trainer, clips, has_probe
        self.labelled, self.starts_random = labelled, starts_random

    def on_train_begin(self, args, state, control, **kwargs):
        """Measures the baselines, unless an earlier part of the run has done so, and the weights of step 0."""
        steps = state.eval_steps if args.eval_strategy == "steps" else self.trainer.epoch_steps
        self.health_steps, self.probe_steps = args.health_steps or steps, args.probe_steps or steps
        if state.is_world_process_zero:
            with self.trainer.meter.paused(), self.trainer.in_evaluation_mode():
                self.features = [] if self.clips is None else self._make_features()  # they stay in memory
                of_health, of_probe = self._baselines(state)
                if state.global_step == 0:
                    encoders, probed = self._encoders(self.clips is not None, self.has_probe)
                    of_health, of_probe = of_health | encoders, of_probe | probed
                self._log(self._measure(of_health, of_probe), args, state, control)
        self.trainer.accelerator.wait_for_everyone()

    def on_step_end(self, args, state, control, **kwargs):
        """Measures what is due; a collapse gives a warning, and stops the run with `stop_on_collapse`."""
        is_last = state.global_step >= state.max_steps
        features_due = self.clips is not None and (is_last or state.global_step % self.health_steps == 0)
        probe_due = self.has_probe and (is_last or state.global_step % self.probe_steps == 0)
        if not (features_due or probe_due):
            return
        is_collapsed = torch.zeros(1, device=args.device)
        if state.is_world_process_zero:
            with self.trainer.meter.paused(), self.trainer.in_evaluation_mode():
                logs = self._measure(*self._encoders(features_due, probe_due))
                self._log(logs, args, state, control)
            raised, current = health.alarms(state.log_history)
            if raised and raised[-1].step == state.global_step:
                logger.warning(str(raised[-1]))
            is_collapsed += current is not None
        if args.world_size > 1:
            is_collapsed = self.trainer.accelerator.reduce(is_collapsed, "sum")
        if args.stop_on_collapse and is_collapsed:
            control.should_training_stop = control.should_save = control.should_log = True

    def _make_features(self) -> list[torch.Tensor]:
        """Makes the inputs of the measurements, (frames, mel) each: clips without masks or corruption."""
        features = [self.clips[index]["input_values"] for index in range(len(self.clips))]
        return [clip[0] if clip.ndim == 3 else clip for clip in features]  # the first of two crops

    def _encoders(self, features_due: bool, probe_due: bool) -> tuple[dict, dict]:
        """Returns what is trained, for `_measure`: the encoders of the features, and the one of the probe."""
        own = {probe.ENCODER: self.trainer.model.base_model}
        return self.trainer.encoders() if features_due else {}, own if probe_due else {}

    def _measure(self, of_health: dict, of_probe: dict) -> dict[str, float]:
        """
        Returns the numbers of the log: the features of some encoders and the scores of some, both by their names in the
        log. An encoder with several names is measured once: the random weights with which a run begins.
        """
        spread, score = functools.cache(self._spread), functools.cache(self._score)
        logs = {}
        for name, encoder in of_health.items():
            logs |= health.entries(name, spread(encoder))
        for name, encoder in of_probe.items():
            logs |= probe.entries(self.labelled.metric, name, score(encoder))
        return logs

    def _spread(self, encoder) -> dict[str, dict[str, float]]:
        args = self.trainer.args
        batches = batches_of(self.trainer.processing_class, self.features, args.per_device_eval_batch_size, args.device)
        with self.trainer.accelerator.autocast():
            return health.measure(encoder, batches)

    def _score(self, encoder) -> tuple[float, float]:
        """Scores an encoder, or with `None` the statistics of the log-mels."""
        if encoder is None:
            return self.labelled.score_log_mel()
        return self.labelled.score_encoder(encoder, self.trainer.accelerator.autocast)

    def _baselines(self, state) -> tuple[dict, dict]:
        """Returns random weights, and for the probe the log-mels, for `_measure`, where the log does not have them."""
        features, scores = health.table_of(state.log_history), probe.table_of(state.log_history)
        wants_health = self.clips is not None and health.RANDOM not in set(features["encoder"])
        wants_probe = self.has_probe and probe.RANDOM not in set(scores["features"])
        if not (wants_health or wants_probe):
            return {}, {}
        encoder = self.trainer.model.base_model
        if not self.starts_random or state.global_step > 0:
            encoder = random_encoder(encoder, self.trainer.args.seed)
        scored = {probe.RANDOM: encoder, probe.LOG_MEL: None}
        return {health.RANDOM: encoder} if wants_health else {}, scored if wants_probe else {}

    def _log(self, logs: dict[str, float], args, state, control):
        """Logs measurements, prints the main ones, and writes the tables."""
        if not logs:
            return
        should_log = control.should_log
        self.trainer.log(logs)
        control.should_log = should_log  # Trainer resets it, but the line of the losses is still to come
        features, scores = health.table_of(state.log_history), probe.table_of(state.log_history)
        parts = [*self._ranks(features, state.global_step), *self._scores(scores, state.global_step)]
        if parts:
            tqdm.write(f"step {state.global_step}: {'; '.join(parts)}")
        for table, name in ((features, health.TABLE), (scores, probe.TABLE)):
            if len(table):
                write_csv(table, Path(args.output_dir) / name)

    def _ranks(self, features, step: int) -> list[str]:
        """Returns the effective ranks of a step in words, from `health.table_of`."""
        fused = features[features["place"] == health.FUSED]
        baseline = fused[fused["encoder"] == health.RANDOM]["effective_rank"].max()
        return [
            f"effective rank of the fused features ({row['encoder']}) {row['effective_rank']:.1f}, random weights "
            f"{baseline:.1f}"
            for row in fused[fused["step"] == step].to_dict("records")
            if row["encoder"] != health.RANDOM
        ]

    def _scores(self, scores, step: int) -> list[str]:
        """Returns the score of a step in words, from `probe.table_of`."""
        baselines = scores.drop_duplicates("features").set_index("features")["value"]
        return [
            f"probe {row['metric'].replace('_', ' ')} {row['value']:.3f}, random weights "
            f"{baselines[probe.RANDOM]:.3f}, log-mel statistics {baselines[probe.LOG_MEL]:.3f}"
            for row in scores[scores["step"] == step].to_dict("records")
            if row["features"] == probe.ENCODER
        ]


def random_encoder(encoder, seed: int):
    """Returns an encoder of the same configuration with random weights, and leaves torch's generators as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(encoder)(copy.deepcopy(encoder.config), add_fusion=False)
    return fresh.to(encoder.device, encoder.dtype).eval()
