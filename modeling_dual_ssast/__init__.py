"""Dual SSAST for Hugging Face Transformers. Importing this package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
)

from .configuration_dual_ssast import DualSSASTConfig
from .feature_extraction_dual_ssast import DualSSASTFeatureExtractor
from .modeling_dual_ssast import DualSSASTForAudioClassification, DualSSASTForPreTraining, DualSSASTModel

__version__ = "0.1.0"

__all__ = [
    "DualSSASTConfig",
    "DualSSASTFeatureExtractor",
    "DualSSASTForAudioClassification",
    "DualSSASTForPreTraining",
    "DualSSASTModel",
]

AutoConfig.register(DualSSASTConfig.model_type, DualSSASTConfig, exist_ok=True)
AutoFeatureExtractor.register(DualSSASTConfig, DualSSASTFeatureExtractor, exist_ok=True)
AutoModel.register(DualSSASTConfig, DualSSASTModel, exist_ok=True)
AutoModelForAudioClassification.register(DualSSASTConfig, DualSSASTForAudioClassification, exist_ok=True)
AutoModelForPreTraining.register(DualSSASTConfig, DualSSASTForPreTraining, exist_ok=True)
