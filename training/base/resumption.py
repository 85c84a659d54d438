"""Checks the checkpoint that a training goes on from: without a part, Trainer would go on with other numbers."""

import os
from pathlib import Path

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, TrainerState

from modeling_dual_ssast.feature_extraction_dual_ssast import STORED_KEYS

from ..data.clip_stream import clips_per_step
from ..errors import InputError, blamed
from ..files import check_same, read_json
from .inference import VOLATILE_KEYS

REMEDY = "resume from another one with --resume_from_checkpoint FOLDER, or begin anew with --overwrite true"
SAME = "resume with the same recipe and data, or begin anew with --overwrite true"
STATE = "trainer_state.json"
EXTRACTOR = "preprocessor_config.json"
IGNORED = STORED_KEYS - {"padding_side"}  # of the extractor: they do not change its features
STATISTICS = ("mean", "std", "padding_value")  # of the features, the last one follows from the others
TRUST = "DUAL_SSAST_TRUST_CHECKPOINT"  # environment variable
DATA = "training_data.json"  # fingerprints of the clips of a run, and its seed
SEEDS = ("seed", "data_seed")  # options that decide the order of the clips
CLIPS_PER_STEP = "clips per step (per_device_train_batch_size x processes x gradient_accumulation_steps)"
SHARDS = "global_step*"  # DeepSpeed's, which hold the optimizer and what belongs to it
# A name of each row must be there. FSDP has folders and .bin files instead of some of these.
PARTS = (
    ("config.json",),
    (STATE,),
    ("model.safetensors", "model-*.safetensors", "adapter_model*", "*pytorch_model*", SHARDS),
    ("optimizer.pt", "*optimizer*", SHARDS),
    ("scheduler.pt", SHARDS),
    ("rng_state.pth", "rng_state_*.pth"),
)


def folder_of(checkpoint: str | Path) -> str:
    """Returns the real path of the folder that holds a checkpoint and those beside it."""
    return os.path.realpath(os.path.dirname(os.path.abspath(checkpoint)))


def check_random_states(checkpoint: str):
    """
    Refuses the pickles of a checkpoint's random states in versions of Transformers that run what is in them.

    Raises:
        InputError: such a version, CVE-2026-1839, and the user has not allowed it.
    """
    states = min((path.name for path in Path(checkpoint).glob("rng_state*.pth")), default=None)
    if states and int(transformers.__version__.partition(".")[0]) < 5 and os.environ.get(TRUST) != "1":
        raise InputError(
            f"{checkpoint}: {states} could run any code in transformers {transformers.__version__} (CVE-2026-1839); "
            f"install transformers>=5.5, or set {TRUST}=1 if the checkpoint is your own"
        )


def check_same_run(checkpoint: str, config, extractor):
    """
    Checks that a checkpoint to resume from is whole, and has the recipe's configuration and feature extractor.

    Raises:
        InputError: a part is missing or cannot be read, or another model or other features than the recipe's.
    """
    folder = Path(checkpoint)
    for names in PARTS:
        if not any(any(folder.glob(name)) for name in names):
            raise InputError(
                f"{folder}: has no {names[0]}, so the training cannot go on as it was (save_only_model leaves such "
                f"files out); {REMEDY}, or train from its weights with --model_name_or_path"
            )
    with blamed(str(folder / STATE), REMEDY):
        TrainerState.load_from_json(str(folder / STATE))
    with blamed(str(folder / "config.json"), REMEDY):
        stored = AutoConfig.from_pretrained(checkpoint).to_dict()
    wanted = config.to_dict()
    check_same(checkpoint, stored, {"model_type": wanted["model_type"]}, SAME)
    check_same_features(folder, extractor)  # the configuration holds some of these settings, by other names
    compared = {key: wanted[key] for key in wanted if key not in VOLATILE_KEYS}
    stored = dict.fromkeys(compared) | stored
    check_same(checkpoint, stored, compared, SAME)


def check_same_features(checkpoint: Path, extractor):
    """
    Compares the feature extractor of the recipe with the one of a checkpoint to resume from, if it has one.

    Raises:
        InputError: it cannot be read, or a setting that changes the features differs.
    """
    if not (checkpoint / EXTRACTOR).exists():
        return
    with blamed(str(checkpoint / EXTRACTOR), REMEDY):
        stored = AutoFeatureExtractor.from_pretrained(checkpoint).to_dict()
    wanted = {name: value for name, value in extractor.to_dict().items() if name not in IGNORED}
    # The statistics come last: computed ones differ where another setting does.
    wanted |= {name: wanted.pop(name) for name in STATISTICS if name in wanted}
    check_same(checkpoint, stored, wanted, SAME)


def stored_facts(checkpoint: str) -> dict:
    """Returns what a checkpoint keeps of the clips and their order; earlier versions have stored less, or nothing."""
    path = Path(checkpoint, DATA)
    return read_json(path, REMEDY) if path.exists() else {}


def order_of(arguments) -> dict:
    """
    Returns the settings that decide the order of clips which are not streamed, for `check_same_clips`. Trainer goes on
    from a number of steps: with other steps it would skip or repeat clips, or whole epochs.
    """
    return {name: getattr(arguments, name) for name in SEEDS} | {CLIPS_PER_STEP: clips_per_step(arguments)}


def check_same_clips(checkpoint: str, fingerprints: dict[str, dict], settings: dict | None = None):
    """
    Checks that a checkpoint to resume from was made with the same clips for training and validation, in one order.

    Args:
        fingerprints: split -> what `reproduction.describe_data` returns; empty in other processes than the main one
        settings: option -> value, those that decide the order or the parts of the clips

    Raises:
        InputError: the clips differ, so that clips that were trained on could become those of the validation or test;
            or a setting does.
    """
    stored = stored_facts(checkpoint)
    for split in ("train", "validation", "weak"):
        then, now = stored.get(split), fingerprints.get(split) or {"clips": 0}
        if fingerprints and then and then != now:
            clips = f"{then['clips']} {split} clips, now there are {now['clips']}"
            clips = clips if then["clips"] != now["clips"] else f"other {split} clips"
            raise InputError(
                f"{checkpoint}: was made with {clips}; resume with the same clips and seed, or begin anew with "
                "--overwrite true"
            )
    known = {name: value for name, value in (settings or {}).items() if name in stored}
    check_same(checkpoint, stored, known, "resume with the same, or begin anew with --overwrite true")
