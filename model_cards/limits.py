"""Writes the limits and biases of a model card: sentences derived from the run's own data."""

from collections.abc import Mapping

FEW_CLIPS = 10  # per class: with fewer clips, each changes the class's figures by more than a tenth
SHOWN_CLASSES = 8
VGGISH_BAND = (125.0, 7500.0)  # Hz, of its feature extractor
KALDI_LOWEST_HZ = 20.0


def of_classifier(config, extractor, results: Mapping, split: str) -> list[str]:
    """Returns sentences on the training data, the tested clips, weak classes and the limits of the figures."""
    found = [*_input(config, extractor), *_clip_lengths(results), *_balance(results)]
    if not split:
        return [*found, "No clips were set aside, so the performance on new clips is unknown."]
    if split == "validation":
        found.append(
            "There is no test split: the figures are of the validation split, which also chose the best checkpoint, so "
            "they are too optimistic."
        )
    found += [*_groups(results, split), *_uncertainty(results, split), *_weak_classes(results, split)]
    return [*found, *_languages(results["recipe"].get("TrainingArguments", {}).get("language"))]


def of_detector(config, extractor, results: Mapping, split: str) -> list[str]:
    """Returns sentences on the input, the training events and the limits of the figures."""
    counts = results["recordings"]["train"]["events"]
    rarest = min(counts, key=counts.get)
    found = [
        *_input(config, extractor),
        f"The rarest training label is {rarest}, with {counts[rarest]} events. Sounds, places and distances that "
        "are not among the training recordings are new to it.",
    ]
    if split == "validation":
        found.append(
            "There is no test split: the figures are of the validation split, which also chose checkpoint and "
            "thresholds, so they are too optimistic."
        )
    if results["recipe"]["DetectionDataArguments"]["split_by"] != "site":
        found.append(f"The {split or 'test'} split may share places and devices with the training split.")
    return found


def of_pretraining(config, extractor, results: Mapping) -> list[str]:
    """Returns sentences on the training data and on what was not tested."""
    names = ", ".join(source["name"] for source in results["sources"])
    counts = [source["training_clips"] for source in results["sources"]]
    clips = f"{sum(counts):,} clips of {names}" if counts and None not in counts else f"clips of {names}"
    hours = results["training"].get("audio_hours")
    amount = f"{duration(hours)} of audio, repetitions counted, from {clips}" if hours else clips
    found = [
        "It is not trained for any task: fine-tune it, and test it on the task, before you rely on it.",
        f"It was trained on {amount}. Sounds, voices and rooms that are not among them are new to it.",
        *_input(config, extractor),
    ]
    if results["unreadable"]["clips"]:
        found.append(f"{results['unreadable']['clips']} clips could not be read and were left out.")
    if not results["validation_clips"]:
        found.append("No clips were held out, so the losses on new clips are unknown.")
    return [*found, *_languages(results["recipe"]["TrainingArguments"].get("language"))]


def of_converted(config, extractor, is_classifier: bool, has_new_weights: bool, origin) -> list[str]:
    """Returns sentences on the original's data and figures; `origin` as for `card.converted_card`."""
    found = []
    if is_classifier and has_new_weights:
        found.append("Its classifier is random: train it before you use it.")
    elif not is_classifier:
        found.append(
            "It is not trained for any task: fine-tune it, and test it on your own clips, before you rely on it."
        )
    if origin is None:
        found.append(
            "The training data and the accuracy of the original are not in the file, so this card does not state them."
        )
    else:
        found.append(
            f"It was trained on {origin.data}; voices, rooms and sounds that are not among them are new to it."
        )
        if origin.figures:
            found.append(
                "The figures are those of the originals, under their protocol; they were not measured on this folder."
            )
        if origin.language:
            found.append(f"The speech in its training data is only in {_join(origin.language)}.")
    found += _input(config, extractor)
    if is_classifier and config.id2label[0] == "LABEL_0":
        found.append("The outputs have no names (LABEL_0, ...): the conversion had no label file.")
    if getattr(config, "attention_over_padding", False):
        found.append(
            f"As in the original, every clip is padded to {extractor.max_seconds:.2f} s, so short clips cost as much "
            "as long ones; `from_pretrained(..., attention_over_padding=False)` avoids it, with other scores for them."
        )
    return found


def duration(hours: float) -> str:
    """Formats a duration in hours, minutes or seconds."""
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else f"{3600 * hours:.0f} seconds"


def band(config, extractor) -> tuple[float, float]:
    """Returns the lowest and the highest frequency of the features, in Hz."""
    if config.model_type == "vggish_composed":
        return VGGISH_BAND
    if hasattr(extractor, "fmin"):
        return extractor.fmin, extractor.fmax
    return KALDI_LOWEST_HZ, extractor.sampling_rate / 2


def _input(config, extractor) -> list[str]:
    """Returns sentences on the frequency band and the longest input."""
    lowest, highest = band(config, extractor)
    found = [
        f"Its input covers {lowest:g} to {highest:g} Hz: sounds that differ only outside this band are the same to it. "
        "Recordings with a narrower band than the training data, such as telephone calls, may get worse results."
    ]
    if extractor.max_seconds is not None:
        found.append(
            f"It takes {extractor.max_seconds:.2f} s at once: an ordinary call cuts off the rest of a longer clip."
        )
    return found


def _clip_lengths(results: Mapping) -> list[str]:
    lengths = results.get("clip_seconds", {}).get("train")
    if not lengths:
        return []
    return [
        "The training clips last {shortest:.2f} to {longest:.2f} s (median {median:.2f} s); other "
        "lengths were not tested.".format(**lengths)
    ]


def _balance(results: Mapping) -> list[str]:
    """Returns sentences on the training clips per class, or the range of a regression's numbers."""
    if "label_range" in results:
        lowest, highest = results["label_range"]
        return [
            f"The training labels range from {lowest:g} to {highest:g}; it was not trained to predict other numbers."
        ]
    counts = results.get("clips_per_class", {}).get("train")
    if not counts:
        return []
    rarest, commonest = min(counts, key=counts.get), max(counts, key=counts.get)
    if counts[rarest] == counts[commonest]:
        return [f"Every class has {counts[rarest]} training clips."]
    balanced = results["recipe"].get("TuningArguments", {})
    is_balanced = "balanced" in (balanced.get("class_weights"), balanced.get("sampler"))
    remark = (
        "rare classes had more weight in the training"
        if is_balanced
        else "the training did not compensate for it, so the model favours frequent classes"
    )
    return [f"Classes have {counts[rarest]} ({rarest}) to {counts[commonest]} ({commonest}) training clips; {remark}."]


def _groups(results: Mapping, split: str) -> list[str]:
    groups = results.get("groups")
    if groups is None:
        return [
            f"The {split} split may share speakers, recordings or places with the training split (the recipe has no "
            "`group_column`): then the figures are better than they would be for new ones."
        ]
    if groups["shared"]:
        return [
            f"{groups['shared']} of the {groups['count']} values of `{groups['column']}` in the {split} split are in "
            "the training split too: the figures are better than they would be for new ones."
        ]
    return [
        f"None of the {groups['count']} values of `{groups['column']}` in the {split} split is in the training split: "
        "the figures apply to new ones."
    ]


def _uncertainty(results: Mapping, split: str) -> list[str]:
    found = results.get("confidence_intervals")
    if not found or not found["intervals"]:
        return []
    name, (lower, upper) = next(iter(found["intervals"].items()))
    return [
        f"With {results['clips'][split]} {split} clips the 95 % interval of {name.replace('_', ' ')} is {lower:.3f} to "
        f"{upper:.3f}. Compare models by a paired test on the same clips: `python -m training.compare`."
    ]


def _weak_classes(results: Mapping, split: str) -> list[str]:
    counts = results.get("clips_per_class", {}).get(split, {})
    few = {name: count for name, count in counts.items() if count < FEW_CLIPS}
    found = []
    if few:
        shown = [f"{name} ({count})" for name, count in sorted(few.items(), key=lambda item: item[1])]
        more = f" and {len(shown) - SHOWN_CLASSES} more" if len(shown) > SHOWN_CLASSES else ""
        found.append(
            f"Classes with fewer than {FEW_CLIPS} {split} clips, whose figures are uncertain: "
            f"{_join(shown[:SHOWN_CLASSES])}{more}."
        )
    tested = {name: row for name, row in (results.get("per_class") or {}).items() if row["support"]}
    if tested:
        worst = min(tested, key=lambda name: tested[name]["recall"])
        row = tested[worst]
        found.append(
            f"The weakest class is {worst}, with a recall of {row['recall']:.3f} on {row['support']:.0f} clips."
            if row["recall"] < 1
            else f"Every {split} clip was recognised: clips in practice may be harder."
        )
    return found


def _languages(language) -> list[str]:
    if language:
        return [f"The recordings are in {_join(language)}; other languages and accents were not tested."]
    return ["The languages spoken in the recordings, if any, are not stated."]


def _join(names) -> str:
    return ", ".join(names)
