"""How a loss is described: the parameters and facts that many share."""

from __future__ import annotations

from typing import Any

from dlblocks.records import Block, Param

SAME_SHAPE = "(N, *) and (N, *)"
CLASSES = "(N, C) and (N,)"
REDUCTION = Param(
    "reduction", "mean", "str", "over the instances (and outputs)", choices=("none", "mean", "sum")
)


def entry(
    name: str,
    target: str,
    *params: Param,
    tasks: tuple[str, ...],
    expects: str,
    target_format: str,
    reduction: Param = REDUCTION,
    **about: Any,
) -> Block:
    tags = {"tasks": tasks, "expects": expects, "target": target_format, **about.pop("tags", {})}
    return Block(
        kind="loss",
        name=name,
        target=target,
        params=(*params, reduction),
        tags=tags,
        **about,
    )


def regression(name: str, target: str, *params: Param, **about: Any) -> Block:
    return entry(
        name,
        target,
        *params,
        tasks=("regression",),
        expects="values",
        target_format="values",
        shape=SAME_SHAPE,
        **about,
    )


WEIGHT = Param("weight", None, "floats", "factor of each class; mean is then the weighted mean", "[0, inf)")
IGNORE = Param("ignore_index", -100, "int", "targets of this index don't count")
SMOOTHING = Param(
    "label_smoothing", 0.0, "float", "share of the target spread evenly over the classes", "[0, 1]"
)
