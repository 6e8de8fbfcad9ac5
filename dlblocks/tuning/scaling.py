"""How the learning rate follows the batch size."""

from __future__ import annotations

import math
from typing import Literal

from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY

Rule = Literal["linear", "square root"]


def rule_of(optimizer: str) -> Rule:
    """`linear` for those whose steps are in proportion to the gradient (Goyal et al. 2017, arXiv:1706.02677), `square
    root` for elementwise ones whose steps do not depend on its scale. Malladi et al. 2022, arXiv:2205.10287, derive
    that for Adam and RMSprop; they let eps and the decay rates of the averages follow as well, which stay here.

    Raises:
        UserError: no rule is known for this optimizer.
    """
    rules: dict[int | None, Rule] = {1: "linear", 0: "square root"}
    rule = rules.get(REGISTRY.get("optimizer", optimizer).tags.get("gradient_degree"))
    if rule is None:
        raise UserError(
            f"optimizer.lr_reference_batch_size: no rule is known by which the rate of {optimizer} follows the batch"
            " size; leave it null, or use optimizer.lr=auto."
        )
    return rule


def rescaled(lr: float, reference: int, size: int, rule: Rule) -> float:
    """The rate for another batch size: lr (size / reference), or of that ratio the square root.

    >>> rescaled(0.1, 256, 64, "linear"), rescaled(0.001, 256, 64, "square root")
    (0.025, 0.0005)
    """
    ratio = size / reference
    return lr * (ratio if rule == "linear" else math.sqrt(ratio))
