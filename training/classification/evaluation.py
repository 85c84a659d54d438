"""Runs the task `evaluation`: scores a finished classifier on labelled clips, without training."""

from ..base import outputs, reproduction
from ..base.inference import labels_of, load_classifier
from ..base.loading import choose_windows
from ..base.outputs import check_output_folder
from ..data.arguments import EvaluationDataArguments
from ..data.dataset import ClipDataset, Collator
from ..data.screening import screen
from ..data.splits import load_test_split, sample_splits
from ..errors import InputError
from . import report
from .arguments import ClassificationTrainingArguments, EvaluationArguments, TuningArguments
from .finished_run import FinishedRun
from .metrics import metric_function
from .trainer import ClassificationTrainer


def run(data_arguments: EvaluationDataArguments, arguments: EvaluationArguments):
    """
    Scores the clips and writes the output folder.

    Raises:
        InputError: bad input, wherever possible before the clips are decoded.
    """
    name = arguments.model_name_or_path
    if name is None:
        raise InputError("model_name_or_path: is not set; name the classifier")
    settings = ClassificationTrainingArguments(
        output_dir=arguments.output_dir,
        eval_strategy="no",
        save_strategy="no",
        overwrite=arguments.overwrite,
        per_device_eval_batch_size=arguments.per_device_eval_batch_size,
        dataloader_num_workers=arguments.dataloader_num_workers,
        html_report=arguments.html_report,
        report_clips=arguments.report_clips,
        figure_format=arguments.figure_format,
    )
    check_output_folder(settings)
    model, extractor = load_classifier(name, arguments.model_revision)
    labels = labels_of(name, model.config)
    model.config.problem_type = labels.problem_type  # some configurations leave it out
    splits = screen({"test": load_test_split(data_arguments, labels.is_multi)}, data_arguments, arguments.output_dir)
    splits = sample_splits(splits, data_arguments, seed=0)
    windows = choose_windows(model.base_model, extractor, data_arguments)
    dataset = ClipDataset(splits["test"], extractor, labels, windows=windows)
    dataset.check_labels()
    circumstances = reproduction.circumstances(splits, settings)
    trainer = ClassificationTrainer(
        model=model,
        args=settings,
        data_collator=Collator(extractor),
        processing_class=extractor,
        compute_metrics=metric_function(labels.problem_type, model.config),
        tuning=TuningArguments(),
    )
    outcome = trainer.predict(dataset, metric_key_prefix="test")
    if trainer.is_world_process_zero():
        recipe = {"task": "evaluation"} | outputs.describe_recipe(data_arguments, arguments)
        finished = FinishedRun(trainer, {"test": dataset}, labels, {"test": outcome}, recipe)
        report.write_evaluation(finished, circumstances)
