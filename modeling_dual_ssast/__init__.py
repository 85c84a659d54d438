"""Dual SSAST for Hugging Face Transformers; importing the package registers its classes with the Auto classes."""

import transformers

from .configuration_asit import ASiTConfig
from .configuration_dual_ssast import DualSSASTConfig
from .configuration_panns_cnn14 import PannsCnn14Config
from .configuration_vggish import VGGishConfig
from .feature_extraction_dual_ssast import DualSSASTFeatureExtractor
from .feature_extraction_panns_cnn14 import PannsCnn14FeatureExtractor
from .feature_extraction_vggish import VGGishFeatureExtractor
from .modeling_asit import ASiTForAudioClassification, ASiTForAudioFrameClassification, ASiTForPreTraining, ASiTModel
from .modeling_dual_ssast import (
    DualSSASTForAudioClassification,
    DualSSASTForAudioFrameClassification,
    DualSSASTForPreTraining,
    DualSSASTModel,
)
from .modeling_panns_cnn14 import (
    PannsCnn14ForAudioClassification,
    PannsCnn14ForAudioFrameClassification,
    PannsCnn14Model,
)
from .modeling_vggish import VGGishForAudioClassification, VGGishForAudioFrameClassification, VGGishModel

__version__ = "0.1.0"

__all__ = [
    "ASiTConfig",
    "ASiTForAudioClassification",
    "ASiTForAudioFrameClassification",
    "ASiTForPreTraining",
    "ASiTModel",
    "DualSSASTConfig",
    "DualSSASTFeatureExtractor",
    "DualSSASTForAudioClassification",
    "DualSSASTForAudioFrameClassification",
    "DualSSASTForPreTraining",
    "DualSSASTModel",
    "PannsCnn14Config",
    "PannsCnn14FeatureExtractor",
    "PannsCnn14ForAudioClassification",
    "PannsCnn14ForAudioFrameClassification",
    "PannsCnn14Model",
    "VGGishConfig",
    "VGGishFeatureExtractor",
    "VGGishForAudioClassification",
    "VGGishForAudioFrameClassification",
    "VGGishModel",
]

for config in (DualSSASTConfig, ASiTConfig, PannsCnn14Config, VGGishConfig):
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto_class, place in config.auto_classes.items():
        if auto_class != "AutoConfig":
            own_class = globals()[place.partition(".")[2]]
            getattr(transformers, auto_class).register(config, own_class, exist_ok=True)
