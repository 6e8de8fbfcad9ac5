"""One integer seeds a run: each purpose draws from a generator of its own, derived from it.

So the order of the data does not depend on how many numbers the weights took. The purposes used here:
`split`, `weights`, `order`, `dropout`, `data`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str) -> int:
    """The seed of one purpose: the same in every process, Python version and platform.

    Returns:
        An integer in [0, 2**63).

    >>> derive(0, "split"), derive(0, "weights")
    (7808932479262376786, 1055468394997592402)
    """
    digest = blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A fresh generator on the CPU for one purpose; the global random state is left alone."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose))
