"""How the learning rate follows the batch size."""

from __future__ import annotations

import math

from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY


def rule_of(optimizer: str) -> str:
    """`linear` for gradient descent (Goyal et al. 2017, arXiv:1706.02677), `square root` for adaptive methods that
    work on each element (Malladi et al. 2022, arXiv:2205.10287).

    Raises:
        UserError: no rule is known for this optimizer.
    """
    block = REGISTRY.get("optimizer", optimizer)
    if block.tags.get("gradient_descent"):
        return "linear"
    if block.tags.get("elementwise"):
        return "square root"
    raise UserError(
        f"optimizer.lr_reference_batch_size: no rule is known by which the rate of {optimizer} follows the batch"
        " size; leave it null, or use optimizer.lr=auto."
    )


def rescaled(lr: float, reference: int, size: int, rule: str) -> float:
    """The rate for another batch size: lr (size / reference), or of that ratio the square root.

    >>> rescaled(0.1, 256, 64, "linear"), rescaled(0.001, 256, 64, "square root")
    (0.025, 0.0005)
    """
    ratio = size / reference
    return lr * (ratio if rule == "linear" else math.sqrt(ratio))
