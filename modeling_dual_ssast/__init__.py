"""Dual SSAST for Hugging Face Transformers; importing the package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
)

from .configuration_asit import ASiTConfig
from .configuration_dual_ssast import DualSSASTConfig
from .configuration_panns_cnn14 import PannsCnn14Config
from .configuration_vggish import VGGishConfig
from .feature_extraction_dual_ssast import DualSSASTFeatureExtractor
from .feature_extraction_panns_cnn14 import PannsCnn14FeatureExtractor
from .feature_extraction_vggish import VGGishFeatureExtractor
from .modeling_asit import ASiTForAudioClassification, ASiTForPreTraining, ASiTModel
from .modeling_dual_ssast import DualSSASTForAudioClassification, DualSSASTForPreTraining, DualSSASTModel
from .modeling_panns_cnn14 import PannsCnn14ForAudioClassification, PannsCnn14Model
from .modeling_vggish import VGGishForAudioClassification, VGGishModel

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
    "PannsCnn14Config",
    "PannsCnn14FeatureExtractor",
    "PannsCnn14ForAudioClassification",
    "PannsCnn14Model",
    "VGGishConfig",
    "VGGishFeatureExtractor",
    "VGGishForAudioClassification",
    "VGGishModel",
]

for config, extractor, model, classifier, pretraining in (
    (
        DualSSASTConfig,
        DualSSASTFeatureExtractor,
        DualSSASTModel,
        DualSSASTForAudioClassification,
        DualSSASTForPreTraining,
    ),
    (ASiTConfig, DualSSASTFeatureExtractor, ASiTModel, ASiTForAudioClassification, ASiTForPreTraining),
    (PannsCnn14Config, PannsCnn14FeatureExtractor, PannsCnn14Model, PannsCnn14ForAudioClassification, None),
    (VGGishConfig, VGGishFeatureExtractor, VGGishModel, VGGishForAudioClassification, None),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoFeatureExtractor.register(config, extractor, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForAudioClassification.register(config, classifier, exist_ok=True)
    if pretraining is not None:
        AutoModelForPreTraining.register(config, pretraining, exist_ok=True)
