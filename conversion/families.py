"""The families of original checkpoints: what converts each, and which options it takes."""

from modeling_dual_ssast import (
    ASiTForPreTraining,
    DualSSASTForPreTraining,
    DualSSASTModel,
    PannsCnn14Model,
    VGGishModel,
)

from . import asit, ast_original, hf_ast, panns_cnn14, ssast, vggish

FAMILIES = {
    "ssast": ssast.convert,
    "ast": ast_original.convert,
    "asit": asit.convert,
    "hf-ast": hf_ast.convert,
    "vggish": vggish.convert,
    "panns-cnn14": panns_cnn14.convert,
}
SOURCES = {
    "ssast": "a .pth file of the SSAST repository: patch or frame model, pretrained or fine-tuned",
    "ast": "a .pth file of the AST repository",
    "asit": "a .pth file of the ASiT repository, with student and teacher",
    "hf-ast": "a folder of Transformers' ASTForAudioClassification",
    "vggish": "a .pth file of VGGish in PyTorch",
    "panns-cnn14": "a .pth file of PANNs' CNN14, for 16 or 32 kHz",
}
# Families whose model has patches, and features that are normalised with statistics.
TRANSFORMERS = ("ssast", "ast", "asit", "hf-ast")
LABELLED = ("ssast", "ast", "hf-ast", "panns-cnn14")
GRID_HELP = {
    "ssast": "pretrained files are resized to it; for fine-tuned files, which do not tell, it describes the file",
    "ast": "describes the file, which does not tell",
    "asit": "resize to it",
    "hf-ast": "resize to it",
}
STATISTICS = {"asit": "the file's, else AudioSet's", "hf-ast": "the folder's, else AudioSet's"}
TASKS = {
    "ssast": (("pretraining", "classification"), "what to make; default: what the file holds"),
    "asit": (
        ("pretraining", "encoder"),
        "what to make; default: pretraining, with both networks; encoder: one of them alone, to be fine-tuned",
    ),
    "panns-cnn14": (("classification", "encoder"), "what to make; default: classification, if the file can"),
}
# For the model that is saved; the others are classifiers.
AUTO_CLASSES = {
    DualSSASTForPreTraining: "AutoModelForPreTraining",
    ASiTForPreTraining: "AutoModelForPreTraining",
    DualSSASTModel: "AutoModel",
    PannsCnn14Model: "AutoModel",
    VGGishModel: "AutoModel",
}
