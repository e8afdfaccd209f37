"""Questions to a Llama: what each part knows, writes, reads and causes.

Each takes a `Run` or a `Llama` and gives a small object of named axes, which prints, draws and
tabulates itself. Begin with `results.py`, then the file of the question.
"""

from llama_jax.analysis.attention import AttentionMap, attention_map
from llama_jax.analysis.attribution import (
    Attribution,
    Decomposition,
    direct_logit_attribution,
    residual_decomposition,
)
from llama_jax.analysis.circuits import (
    SVD,
    Factored,
    composition_scores,
    ov_circuit,
    qk_circuit,
)
from llama_jax.analysis.difference import Comparison, Difference, compare
from llama_jax.analysis.heads import HeadScores, head_scores, repeated_tokens
from llama_jax.analysis.integrated import IntegratedGradients, integrated_gradients
from llama_jax.analysis.lens import LogitLens, logit_lens
from llama_jax.analysis.needs import MissingPointError
from llama_jax.analysis.patching import (
    PatchSweep,
    SweepError,
    attribution_patching,
    patch_sweep,
)
from llama_jax.analysis.results import Result
from llama_jax.analysis.weights import Overview, WeightStatistics, overview, weight_statistics
from llama_jax.metrics import log_probability, logit, logit_difference

__all__ = [
    "SVD",
    "AttentionMap",
    "Attribution",
    "Comparison",
    "Decomposition",
    "Difference",
    "Factored",
    "HeadScores",
    "IntegratedGradients",
    "LogitLens",
    "MissingPointError",
    "Overview",
    "PatchSweep",
    "Result",
    "SweepError",
    "WeightStatistics",
    "attention_map",
    "attribution_patching",
    "compare",
    "composition_scores",
    "direct_logit_attribution",
    "head_scores",
    "integrated_gradients",
    "log_probability",
    "logit",
    "logit_difference",
    "logit_lens",
    "ov_circuit",
    "overview",
    "patch_sweep",
    "qk_circuit",
    "repeated_tokens",
    "residual_decomposition",
    "weight_statistics",
]
