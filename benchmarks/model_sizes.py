"""Holds the sizes of the models that the benchmarks measure: keyword arguments of DualSSASTConfig and ASTConfig."""

TINY = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
AST_GRID = {"max_length": 1024, "frequency_stride": 10, "time_stride": 10}  # frames of 10 ms; overlapping patches
