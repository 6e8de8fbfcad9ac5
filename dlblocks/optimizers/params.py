"""The parameters that dlblocks gives to optimisers: `build.py` acts on them, the target never sees them."""

from __future__ import annotations

from dlblocks.records import Param

DECAY_NORM_AND_BIAS = Param(
    "decay_norm_and_bias",
    False,
    "bool",
    "whether weight decay also reaches biases, norm scales and other 1-D parameters (PReLU slopes)",
)
IMPLEMENTATION = Param(
    "implementation",
    "auto",
    "str",
    "how torch computes the update: in one kernel, tensor lists, or a loop; same result to rounding",
    choices=("auto", "fused", "foreach", "single"),
)
