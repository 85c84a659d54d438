"""Prints a training's progress line with step, loss, rate and time left, and a table row per evaluation."""

import sys
import time

from tqdm.auto import tqdm
from transformers import TrainerCallback

LINE_SECONDS = 60.0  # between two progress lines where the output is no terminal
BAR = "{desc}{percentage:3.0f}%|{bar}| step {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"


TIMINGS = ("runtime", "_per_second", "preparation_time")  # ends of Trainer's keys that depend on the machine


def is_metric(key: str) -> bool:
    """Returns whether a key of Trainer's log is a metric: neither a loss nor a timing."""
    return not key.endswith(("loss", *TIMINGS))


class Progress(TrainerCallback):
    """
    Prints the progress of a training in place of Transformers' own callbacks, on the main process.

    The progress line goes to standard error: a bar on a terminal, else a line a minute; `disable_tqdm` turns both off.
    A table row per evaluation, or per log entry of a run without evaluations, goes to standard output.
    """

    def __init__(self):
        self.bar: tqdm | None = None  # of the training
        self.evaluation: tqdm | None = None  # of an evaluation outside a training
        self.columns: tuple[str, ...] = ()
        self.loss = ""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                bar_format=BAR,
                unit=" steps",
                disable=args.disable_tqdm or not sys.stderr.isatty(),
            )
            self.started, self.first_step = time.monotonic(), state.global_step
            self.printed = self.started

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is None:
            return
        if not self.bar.disable:
            self.bar.update(state.global_step - self.bar.n)
        now = time.monotonic()
        if self.bar.disable and not args.disable_tqdm and now - self.printed >= LINE_SECONDS:
            self.printed = now
            rate = (state.global_step - self.first_step) / (now - self.started)
            left = tqdm.format_interval((state.max_steps - state.global_step) / rate)
            line = f"step {state.global_step} of {state.max_steps}, {rate:.2f} steps/s, {left} left{self.loss}"
            print(line, file=sys.stderr, flush=True)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if self.bar is None and self.evaluation is None:
            hidden = args.disable_tqdm or not sys.stderr.isatty()
            self.evaluation = tqdm(
                total=len(eval_dataloader), desc="evaluating", unit=" batches", leave=False, disable=hidden
            )
        if self.evaluation is not None:
            self.evaluation.update()
        elif not self.bar.disable and not self.bar.desc:  # one bar for both: two leave blank lines
            self.bar.set_description_str("evaluating ")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._end_evaluation()
        if state.is_world_process_zero:
            self._print_row(state, metrics or {})

    def on_predict(self, args, state, control, **kwargs):
        self._end_evaluation()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        self.loss = f", loss {logs['loss']:.4g}, learning rate {logs['learning_rate']:.2g}"
        if self.bar is not None:
            self.bar.set_postfix_str(self.loss.removeprefix(", "))  # tqdm adds the comma
        if args.eval_strategy == "no":
            self._print_row(state, {})

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def _end_evaluation(self):
        if self.bar is not None and not self.bar.disable:
            self.bar.set_description_str("")
        if self.evaluation is not None:
            self.evaluation.close()
        self.evaluation = None

    def _print_row(self, state, metrics: dict[str, float]):
        """Prints the epoch, the losses and the metrics; first their names if these have changed."""
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        row = {"epoch": f"{state.epoch or 0:.4g}", "training loss": f"{losses[-1]:.4f}" if losses else ""}
        if "eval_loss" in metrics:
            row["validation loss"] = f"{metrics['eval_loss']:.4f}"
        row |= {
            key.removeprefix("eval_").replace("_", " "): f"{value:.4f}"
            for key, value in metrics.items()
            if key.startswith("eval_") and key != "eval_loss" and not key.endswith(TIMINGS)
        }
        if tuple(row) != self.columns:
            self.columns = tuple(row)
            self._write("  ".join(name.rjust(8) for name in row))
        self._write("  ".join(value.rjust(max(8, len(name))) for name, value in row.items()))

    def _write(self, line: str):
        if self.bar is None or self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.write(line)
