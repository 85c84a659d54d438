"""
Fine-tunes a checkpoint with Transformers' own Trainer and your own Dataset, without the training programs of this
project.

    python examples/train_with_trainer.py CHECKPOINT OUT

Needs the package modeling_dual_ssast, and transformers, torch, accelerate, soundfile, soxr and pandas.
"""

import sys
from pathlib import Path

import pandas
import soundfile
import soxr
import torch
from transformers import Trainer, TrainingArguments

from modeling_dual_ssast import DualSSASTFeatureExtractor, DualSSASTForAudioClassification

DATA = Path("data/voice_prompts")


class Clips(torch.utils.data.Dataset):
    """Reads clips of a table with `file_name` and `language`: waveforms at the model's rate, and label indices."""

    def __init__(self, table: Path, labels: list[str], sampling_rate: int):
        rows = pandas.read_csv(table)
        self.paths = [table.parent / name for name in rows["file_name"]]
        self.labels = [labels.index(language) for language in rows["language"]]
        self.sampling_rate = sampling_rate

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        audio, rate = soundfile.read(self.paths[index], dtype="float32", always_2d=True)
        audio = soxr.resample(audio.mean(axis=1), rate, self.sampling_rate)
        return {"audio": audio, "label": self.labels[index]}


def main(checkpoint: str, output: str):
    labels = sorted(pandas.read_csv(DATA / "train.csv")["language"].unique())
    extractor = DualSSASTFeatureExtractor.from_pretrained(checkpoint)
    model = DualSSASTForAudioClassification.from_pretrained(
        checkpoint, id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)}
    )
    tables = (DATA / "train.csv", DATA / "validation.csv")
    train, validation = (Clips(table, labels, extractor.sampling_rate) for table in tables)

    def collate(clips: list[dict]) -> dict:
        """Makes the features of a batch. The attention mask excludes the padding of short clips."""
        features = extractor(
            [clip["audio"] for clip in clips],
            sampling_rate=extractor.sampling_rate,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {**features, "labels": torch.tensor([clip["label"] for clip in clips])}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=output,
            num_train_epochs=3,
            per_device_train_batch_size=8,
            learning_rate=1e-4,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,  # the collator needs `audio`
        ),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate,
        compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(-1) == result.label_ids).mean()},
        processing_class=extractor,  # saved beside the model
    )
    trainer.train()
    trainer.save_model()
    print(f"accuracy on the validation clips: {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
