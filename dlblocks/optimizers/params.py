"""The parameters that many optimisers share."""

from __future__ import annotations

from typing import Any

from dlblocks.records import SAME, Param

# These two are dlblocks' own: `build.py` acts on them, the target never sees them.
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


def lr(default: float, origin: Any = SAME) -> Param:
    return Param("lr", default, "float", "learning rate", "(0, inf)", origin=origin)


def eps(default: float, doc: str) -> Param:
    return Param("eps", default, "float", doc, "(0, inf)")


def betas(doc: str) -> Param:
    return Param("betas", (0.9, 0.999), "floats", doc, "[0, 1)", size=2)


def decay(default: float = 0.0) -> Param:
    return Param("weight_decay", default, "float", "strength of the decay of the weights", "[0, inf)")


MOMENTS = betas("decay rates of the averages of g and of g^2")
