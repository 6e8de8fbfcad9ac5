"""Records of the optimisers of our own."""

from __future__ import annotations

from typing import Any, Literal

from dlblocks.optimizers.params import DECAY_NORM_AND_BIAS
from dlblocks.records import Block, Param


def entry(
    name: str,
    target: str,
    *params: Param,
    decay: Literal["l2", "decoupled", ""] = "",
    elementwise: bool = False,
    gradient_degree: int | None = 0,
    linear_in_lr: bool = True,
    closure: bool = False,
    **about: Any,
) -> Block:
    tags: dict[str, Any] = {"elementwise": elementwise, "linear_in_lr": linear_in_lr, "closure": closure}
    if elementwise and gradient_degree is not None:
        tags["gradient_degree"] = gradient_degree
    if decay:
        params, tags = (*params, DECAY_NORM_AND_BIAS), {**tags, "kind_of_decay": decay}
    return Block(
        kind="optimizer",
        name=name,
        target=f"dlblocks.optimizers.{target}",
        params=params,
        tags=tags,
        **about,
    )


def wrapper(
    name: str, target: str, *params: Param, closure: bool = False, parts_decay: bool = False, **about: Any
) -> Block:
    """A record of a wrapper; with `parts_decay` it is told whether the base's decay is decoupled."""
    base = Param("base", "adamw", "any", "the optimizer inside: a name or {name: ..., parameters}")
    rate = Param("lr", None, "float", "learning rate of the base; null is the base's own", "(0, inf)")
    return Block(
        kind="optimizer",
        name=name,
        target=f"dlblocks.optimizers.{target}",
        params=(rate, base, *params),
        tags={
            "elementwise": False,
            "linear_in_lr": False,
            "closure": closure,
            "wraps": True,
            "parts_decay": parts_decay,
        },
        **about,
    )
