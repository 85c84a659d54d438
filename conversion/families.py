"""Lists the families of original checkpoints in the order of the help. `FAMILY` of a module describes its family."""

from . import asit, ast_original, dual_ssast, hf_ast, panns_cnn14, ssast, vggish

FAMILIES = {
    module.FAMILY.name: module.FAMILY for module in (ssast, dual_ssast, ast_original, asit, hf_ast, vggish, panns_cnn14)
}
