"""Loading a finished classifier, for the programs that only use it: with little more than torch and transformers."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import ASTConfig, AutoFeatureExtractor, AutoModelForAudioClassification, PretrainedConfig
from transformers.utils import logging

# Importing the package registers the Auto classes, so that no code of a checkpoint has to be trusted.
from modeling_dual_ssast import ASiTConfig, DualSSASTConfig, PannsCnn14Config, VGGishConfig

from ..data.labels import LabelSet
from ..errors import InputError

# Encoders of patches, which every task takes, and convolutional networks, which have no pretraining here.
PATCH_MODEL_TYPES = (DualSSASTConfig.model_type, ASiTConfig.model_type)
MODEL_TYPES = (*PATCH_MODEL_TYPES, VGGishConfig.model_type, PannsCnn14Config.model_type)


def load_classifier(name: str, revision: str = "main", **settings):
    """
    The classifier, ready for inference on the accelerator if there is one, and its feature extractor.

    Args:
        name: folder or Hub name
        revision: branch, tag or commit on the Hub
        settings: of `from_pretrained`, such as `attn_implementation`

    Raises:
        InputError: it cannot be loaded, is another kind of model, or its classifier was never trained.
    """
    verbosity = logging.get_verbosity()
    try:
        check_folder(name, revision)
        extractor = AutoFeatureExtractor.from_pretrained(name, revision=revision)
        logging.set_verbosity_error()  # the missing weights are told here
        model, loading = AutoModelForAudioClassification.from_pretrained(
            name, revision=revision, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name}: not a classifier that can be loaded ({reason}); name a folder or a Hub model"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    untrained = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if untrained:
        raise InputError(
            f"{name}: has no trained classifier ({len(untrained)} weights are missing or of another size, such as "
            f"{untrained[0]}); fine-tune it with train_hf.py"
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.eval().to(device), extractor


def check_folder(name: str, revision: str = "main"):
    """
    Tells other kinds of models, and folders without a feature extractor, in words that name the remedy.

    Raises:
        InputError: it is one of them.
    """
    model_type = PretrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type")
    if model_type == ASTConfig.model_type:
        raise InputError(
            f"{name}: model_type is {model_type!r}, expected {DualSSASTConfig.model_type!r}; convert the folder with "
            "python -m conversion hf-ast FOLDER OUT"
        )
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"{name}: not a classifier that can be loaded (model_type is {model_type!r}, expected one of "
            f"{', '.join(MODEL_TYPES)}); SSAST and AST models are converted with python -m conversion"
        )
    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").exists():
        raise InputError(f"{name}: has no preprocessor_config.json; copy the one that was saved with the model")


def check_encoder_weights(name: str, loading: dict):
    """
    Raises:
        InputError: by its loading report an encoder lacks weights, which would be random. What fuses layers may be
            missing: it begins with equal weights and norms that change nothing.
    """
    missing = {key for key in loading["missing_keys"] if not key.startswith("fusion.")}
    missing = sorted(missing | {key for key, *_ in loading["mismatched_keys"]})
    if missing:
        raise InputError(
            f"{name}: {len(missing)} weights are missing or of another size, such as {missing[0]}; convert or train it "
            "anew"
        )


def labels_of(name: str, config: DualSSASTConfig) -> LabelSet:
    """
    The model's classes, and by Transformers' convention what a model that does not say it was trained for.

    Raises:
        InputError: it gives several numbers per clip.
    """
    problem_type = config.problem_type
    if problem_type is None:
        problem_type = "regression" if config.num_labels == 1 else "single_label_classification"
    if problem_type != "regression":
        return LabelSet(tuple(config.id2label[index] for index in range(config.num_labels)), problem_type)
    if config.num_labels > 1:
        raise InputError(f"{name}: gives {config.num_labels} numbers per clip, but one can be told; call the model")
    return LabelSet(("value",), problem_type)
