"""What a model card says of limits and biases: sentences that follow from the run's own data."""

from collections.abc import Mapping

FEW_CLIPS = 10  # of a class: its figures then move by a tenth with every clip
SHOWN_CLASSES = 8
VGGISH_BAND = (125.0, 7500.0)  # Hz, as its feature extractor has it
KALDI_LOWEST_HZ = 20.0


def of_classifier(config, extractor, results: Mapping, split: str) -> list[str]:
    """Sentences on what was heard, what was tested, which classes are weak and what the figures do not say."""
    found = [*_hearing(config, extractor), *_clip_lengths(results), *_balance(results)]
    if not split:
        return [*found, "No clips were set aside, so nothing is known about clips that the model has not heard."]
    if split == "validation":
        found.append(
            "There is no test split: the figures are of the validation split, on which the best checkpoint was chosen, "
            "and so too good."
        )
    found += [*_groups(results, split), *_uncertainty(results, split), *_weak_classes(results, split)]
    return [*found, *_languages(results["recipe"]["TrainingArguments"].get("language"))]


def of_pretraining(config, extractor, results: Mapping) -> list[str]:
    names = ", ".join(source["name"] for source in results["sources"])
    counts = [source["training_clips"] for source in results["sources"]]
    clips = f"{sum(counts):,} clips of {names}" if counts and None not in counts else f"clips of {names}"
    hours = results["training"].get("audio_hours")
    heard = f"{duration(hours)} of audio, repetitions counted, from {clips}" if hours else clips
    found = [
        "It knows no task: nothing can be said of any before the model was fine-tuned and tested on it.",
        f"It has heard {heard}. Sounds, voices and rooms that are not in there are new to it.",
        *_hearing(config, extractor),
    ]
    if results["unreadable"]["clips"]:
        found.append(f"{results['unreadable']['clips']} clips could not be read and were left out.")
    if not results["validation_clips"]:
        found.append("No clips were held out, so the losses tell nothing of clips that it has not heard.")
    return [*found, *_languages(results["recipe"]["TrainingArguments"].get("language"))]


def of_converted(config, extractor, is_classifier: bool, has_new_weights: bool, origin) -> list[str]:
    found = []
    if is_classifier and has_new_weights:
        found.append("Its classifier is random: train it before you use it.")
    elif not is_classifier:
        found.append("It knows no task: fine-tune it, and test it on clips of your own before you rely on it.")
    if origin is None:
        found.append("What the original was trained on, and how well it does, is not in the file and not stated here.")
    else:
        found.append(f"It has heard {origin.data}; voices, rooms and sounds that are not in there are new to it.")
        if origin.figures:
            found.append(
                "The figures are the originals', under their protocol; they were not measured again with this folder."
            )
        if origin.language:
            found.append(f"Its speech is in {_join(origin.language)} alone.")
    found += _hearing(config, extractor)
    if is_classifier and config.id2label[0] == "LABEL_0":
        found.append("The outputs have no names (LABEL_0, ...): the conversion was given none.")
    if getattr(config, "attention_over_padding", False):
        found.append(
            f"As in the original, every clip is padded to {extractor.max_seconds:.2f} s and costs as much; "
            "`from_pretrained(..., attention_over_padding=False)` frees it of that, with other scores for short clips."
        )
    return found


def duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if 60 * hours >= 1 else f"{3600 * hours:.0f} seconds"


def band(config, extractor) -> tuple[float, float]:
    """Lowest and highest frequency that the features hold, in Hz."""
    if config.model_type == "vggish_composed":
        return VGGISH_BAND
    if hasattr(extractor, "fmin"):
        return extractor.fmin, extractor.fmax
    return KALDI_LOWEST_HZ, extractor.sampling_rate / 2


def _hearing(config, extractor) -> list[str]:
    lowest, highest = band(config, extractor)
    found = [
        f"It hears {lowest:g} to {highest:g} Hz: sounds that differ only outside of that are the same to it. "
        "Recordings with a narrower band than those of the training, such as telephone calls, sound foreign to it."
    ]
    if extractor.max_seconds is not None:
        found.append(
            f"It hears {extractor.max_seconds:.2f} s at once: of a longer clip an ordinary call hears the beginning."
        )
    return found


def _clip_lengths(results: Mapping) -> list[str]:
    lengths = results.get("clip_seconds", {}).get("train")
    if not lengths:
        return []
    return [
        "The training clips last {shortest:.2f} to {longest:.2f} s (median {median:.2f} s); it was "
        "not tried on others.".format(**lengths)
    ]


def _balance(results: Mapping) -> list[str]:
    """Of the training clips of each class, or the range of a regression's numbers."""
    if "label_range" in results:
        lowest, highest = results["label_range"]
        return [f"The training labels go from {lowest:g} to {highest:g}; numbers beyond were never asked of it."]
    counts = results.get("clips_per_class", {}).get("train")
    if not counts:
        return []
    rarest, commonest = min(counts, key=counts.get), max(counts, key=counts.get)
    if counts[rarest] == counts[commonest]:
        return [f"Every class has {counts[rarest]} training clips."]
    balanced = results["recipe"]["TuningArguments"]
    is_balanced = "balanced" in (balanced.get("class_weights"), balanced.get("sampler"))
    remark = (
        "rare classes were made to count more in the training"
        if is_balanced
        else "nothing was done against it, so in doubt the model leans to the frequent ones"
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
        "the figures hold for new ones."
    ]


def _uncertainty(results: Mapping, split: str) -> list[str]:
    found = results.get("confidence_intervals")
    if not found or not found["intervals"]:
        return []
    name, (lower, upper) = next(iter(found["intervals"].items()))
    return [
        f"{results['clips'][split]} {split} clips leave {name.replace('_', ' ')} between {lower:.3f} and {upper:.3f} "
        "(95 %): differences between models that are smaller than that mean nothing."
    ]


def _weak_classes(results: Mapping, split: str) -> list[str]:
    counts = results.get("clips_per_class", {}).get(split, {})
    few = {name: count for name, count in counts.items() if count < FEW_CLIPS}
    found = []
    if few:
        shown = [f"{name} ({count})" for name, count in sorted(few.items(), key=lambda item: item[1])]
        more = f" and {len(shown) - SHOWN_CLASSES} more" if len(shown) > SHOWN_CLASSES else ""
        found.append(
            f"Classes of fewer than {FEW_CLIPS} {split} clips, whose figures say little: "
            f"{_join(shown[:SHOWN_CLASSES])}{more}."
        )
    tested = {name: row for name, row in (results.get("per_class") or {}).items() if row["support"]}
    if tested:
        worst = min(tested, key=lambda name: tested[name]["recall"])
        row = tested[worst]
        found.append(
            f"The class that is missed most is {worst}: a recall of {row['recall']:.3f} on {row['support']:.0f} clips."
            if row["recall"] < 1
            else f"Every {split} clip was recognised: they may be easier than those that the model will meet."
        )
    return found


def _languages(language) -> list[str]:
    if language:
        return [f"The recordings are in {_join(language)}; other languages and accents were not tried."]
    return ["What languages are spoken in the recordings, if any, is not stated."]


def _join(names) -> str:
    return ", ".join(names)
