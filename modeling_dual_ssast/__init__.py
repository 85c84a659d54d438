"""Dual SSAST for Hugging Face Transformers; importing the package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForPreTraining,
)

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

for config, extractor, model, classifier, frame_classifier, pretraining in (
    (
        DualSSASTConfig,
        DualSSASTFeatureExtractor,
        DualSSASTModel,
        DualSSASTForAudioClassification,
        DualSSASTForAudioFrameClassification,
        DualSSASTForPreTraining,
    ),
    (
        ASiTConfig,
        DualSSASTFeatureExtractor,
        ASiTModel,
        ASiTForAudioClassification,
        ASiTForAudioFrameClassification,
        ASiTForPreTraining,
    ),
    (
        PannsCnn14Config,
        PannsCnn14FeatureExtractor,
        PannsCnn14Model,
        PannsCnn14ForAudioClassification,
        PannsCnn14ForAudioFrameClassification,
        None,
    ),
    (
        VGGishConfig,
        VGGishFeatureExtractor,
        VGGishModel,
        VGGishForAudioClassification,
        VGGishForAudioFrameClassification,
        None,
    ),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoFeatureExtractor.register(config, extractor, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForAudioClassification.register(config, classifier, exist_ok=True)
    AutoModelForAudioFrameClassification.register(config, frame_classifier, exist_ok=True)
    if pretraining is not None:
        AutoModelForPreTraining.register(config, pretraining, exist_ok=True)
