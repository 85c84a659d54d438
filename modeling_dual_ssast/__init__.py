"""Dual SSAST for Hugging Face Transformers. Importing this package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
)

from .configuration_asit import ASiTConfig
from .configuration_dual_ssast import DualSSASTConfig
from .feature_extraction_dual_ssast import DualSSASTFeatureExtractor
from .modeling_asit import ASiTForAudioClassification, ASiTForPreTraining, ASiTModel
from .modeling_dual_ssast import DualSSASTForAudioClassification, DualSSASTForPreTraining, DualSSASTModel

__version__ = "0.1.0"

__all__ = [
    "ASiTConfig",
    "ASiTForAudioClassification",
    "ASiTForPreTraining",
    "ASiTModel",
    "DualSSASTConfig",
    "DualSSASTFeatureExtractor",
    "DualSSASTForAudioClassification",
    "DualSSASTForPreTraining",
    "DualSSASTModel",
]

for config, model, classifier, pretraining in (
    (DualSSASTConfig, DualSSASTModel, DualSSASTForAudioClassification, DualSSASTForPreTraining),
    (ASiTConfig, ASiTModel, ASiTForAudioClassification, ASiTForPreTraining),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoFeatureExtractor.register(config, DualSSASTFeatureExtractor, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForAudioClassification.register(config, classifier, exist_ok=True)
    AutoModelForPreTraining.register(config, pretraining, exist_ok=True)
