"""Transformers' common suites over every model, configuration and feature extractor; `run.py` runs them."""

import unittest

import numpy as np
import torch
from transformers_tests import (
    test_configuration_common,
    test_modeling_common,
    test_sequence_feature_extraction_common,
)

import modeling_dual_ssast
from modeling_dual_ssast import (
    ASiTConfig,
    DualSSASTConfig,
    DualSSASTFeatureExtractor,
    PannsCnn14Config,
    PannsCnn14FeatureExtractor,
    VGGishConfig,
    VGGishFeatureExtractor,
)

# Tests that fail for a reason: pattern of the name -> reason. A pattern that no failure matches is an error.
EXPECTED_FAILURES = {
    "*::test_model_get_set_embeddings": "the input is a spectrogram, and the suite looks for embeddings of token ids",
    "ASiTForPreTraining::test_training_gradient_checkpointing*": (
        "the suite watches the first block, which is the teacher's and never trained; the student's are checkpointed"
    ),
}

BATCH, FRAMES = 3, 64
PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_length": FRAMES,
    "num_mel_bins": 32,
}
HEADS = dict.fromkeys(("class_dim", "data_dim", "head_hidden_size", "head_bottleneck_size"), 16)
RECONSTRUCTION = {"reconstruction_hidden_size": 16, "reconstruction_bottleneck_size": 8}
CHANNELS = [4, 4, 6, 6, 8, 8]
# Family: class of the configuration, its settings, and the classes' suffixes.
FAMILIES = {
    "DualSSAST": (
        DualSSASTConfig,
        PATCHES,
        ("Model", "ForAudioClassification", "ForAudioFrameClassification", "ForPreTraining"),
    ),
    "ASiT": (
        ASiTConfig,
        PATCHES | HEADS | RECONSTRUCTION,
        ("Model", "ForAudioClassification", "ForAudioFrameClassification", "ForPreTraining"),
    ),
    "VGGish": (
        VGGishConfig,
        {"channels": CHANNELS[:4], "fc_size": 16, "embedding_size": 8, "example_length": 32, "num_mel_bins": 32},
        ("Model", "ForAudioClassification", "ForAudioFrameClassification"),
    ),
    "PannsCnn14": (
        PannsCnn14Config,
        {"channels": CHANNELS, "embedding_size": 16, "num_mel_bins": 32},
        ("Model", "ForAudioClassification", "ForAudioFrameClassification"),
    ),
}
EXTRACTORS = (DualSSASTFeatureExtractor, VGGishFeatureExtractor, PannsCnn14FeatureExtractor)


class ModelTester:
    """Makes a tiny configuration and a batch for a model class, as the suites ask for them."""

    batch_size = BATCH

    def __init__(self, family: str, suffix: str):
        self.config_class, self.settings, _ = FAMILIES[family]
        self.is_training = suffix != "Model"
        self.crops = (2,) if (family, suffix) == ("ASiT", "ForPreTraining") else ()
        config = self.get_config()
        if hasattr(config, "hidden_size"):
            self.hidden_size = config.hidden_size
            self.num_hidden_layers = config.num_hidden_layers
            self.num_attention_heads = config.num_attention_heads
            self.seq_length = config.num_prefix_tokens + config.num_patches
            self.num_masks, self.mask_length = 2, config.num_patches
        else:  # the suite looks at the last two axes of the first map: time and frequency
            self.num_hidden_layers = 2  # not looked at: the suite takes the number of maps
            self.expected_num_hidden_layers = len(config.layers)
            stride = config.time_stride(config.layers[0])
            self.seq_length = (config.example_length if family == "VGGish" else FRAMES) // stride
            self.hidden_size = config.num_mel_bins // stride

    def get_config(self):
        return self.config_class(**self.settings)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        mask = torch.ones(BATCH, FRAMES, dtype=torch.long)
        mask[1, FRAMES // 2 :] = 0
        values = torch.randn(BATCH, *self.crops, FRAMES, config.num_mel_bins)
        return config, {"input_values": values, "attention_mask": mask}


class ModelSuite(test_modeling_common.ModelTesterMixin):
    """Runs the suite of models on one class; `FAMILIES` gives the classes."""

    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ModelTester(self.family, self.suffix)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Adds what the models would draw at random, and what the suite cannot know."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        values = inputs["input_values"]
        if self.suffix == "ForAudioClassification" and return_labels:
            inputs["labels"] = torch.zeros(len(values), dtype=torch.long)
        elif self.suffix == "ForAudioFrameClassification" and return_labels:
            with torch.no_grad():
                logits = model_class(self.model_tester.get_config()).eval()(values).logits
            inputs["labels"] = torch.zeros(logits.shape[:2], dtype=torch.long)
        elif self.model_tester.crops:
            inputs["corrupted_values"] = values / 2
            inputs["corruption_mask"] = torch.ones_like(values, dtype=torch.bool)
        elif self.suffix == "ForPreTraining":
            first = torch.arange(self.model_tester.mask_length) < self.model_tester.num_masks
            inputs.setdefault("bool_masked_pos", first.expand(len(values), -1))
        elif "bool_masked_pos" in inputs:
            inputs["mask_token"] = torch.zeros(self.model_tester.hidden_size)
        return inputs


class ConfigSuite:
    """Runs the suite of configurations on one class."""

    def test_config(self):
        config_class, settings, _ = FAMILIES[self.family]
        tester = test_configuration_common.ConfigTester(
            self, config_class=config_class, has_text_modality=False, **settings
        )
        if "hidden_size" not in settings:  # convolutional networks
            tester.common_properties = ["channels", "num_mel_bins"]
        tester.run_common_tests()


class ExtractorTester:
    """Makes an extractor's settings and inputs, as the suite asks for them."""

    batch_size, feature_size = 7, 4
    min_seq_length, max_seq_length, seq_length_diff = 11, 56, 9  # frames

    def prepare_feat_extract_dict(self):
        return {"num_mel_bins": self.feature_size}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        random = np.random.default_rng(0)
        # The longest is as long as the suite pads to: it counts on padding by 0, which would not show.
        lengths = [self.min_seq_length + self.seq_length_diff * place for place in range(self.batch_size)]
        lengths = [self.max_seq_length] * self.batch_size if equal_length else lengths
        clips = [random.random((length, self.feature_size)) for length in lengths]
        return clips if numpify else [clip.tolist() for clip in clips]


class ExtractorSuite(test_sequence_feature_extraction_common.SequenceFeatureExtractionTestMixin):
    """Runs the suite of feature extractors on one class."""

    def setUp(self):
        self.feat_extract_tester = ExtractorTester()


for family, (config_class, _, suffixes) in FAMILIES.items():
    for suffix in suffixes:
        name = family + suffix
        members = {"family": family, "suffix": suffix, "all_model_classes": (getattr(modeling_dual_ssast, name),)}
        members["has_attentions"] = family in ("DualSSAST", "ASiT")
        globals()[name] = type(name, (ModelSuite, unittest.TestCase), members)
    name = config_class.__name__
    globals()[name] = type(name, (ConfigSuite, unittest.TestCase), {"family": family})
for extractor in EXTRACTORS:
    name = extractor.__name__
    globals()[name] = type(name, (ExtractorSuite, unittest.TestCase), {"feature_extraction_class": extractor})
