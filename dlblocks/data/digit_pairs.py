"""Pictures that show two different digits: a multilabel problem that needs no download.

The source digits are first dealt to pools, and a picture takes both digits from one pool. The pool is
the picture's group, and a split keeps groups whole: whatever the fractions and the seed of a split, no
source image is in two of its parts.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from dlblocks import seeds
from dlblocks.data.table import Table

POOLS = 20
HEIGHT, WIDTH = 12, 16
_SIZE = 8
# Blank margins keep the strokes apart as often as not: the frames overlap by 0 to 4 columns.
_LEFT, _RIGHT = (0, 2), (6, 8)


def digit_pairs(samples: int = 2000, seed: int = 0) -> Table:
    """Pictures of two different digits: x `(samples, 1, 12, 16)`, 0 to 16; y `(samples, 10)`.

    Every two digits occur equally often, and each digit as often as the others, to within one picture
    (exactly, where `samples` is a multiple of 45).

    Args:
        samples: pictures.
        seed: of the pictures.
    """
    return make(samples, seed)[0]


def make(samples: int, seed: int) -> tuple[Table, Tensor]:
    """The table, and the source images of each picture as rows of scikit-learn's digits `(samples, 2)`."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    draw = seeds.generator(seed, "data")
    pools = _pools(torch.tensor(data.target), draw)

    x = torch.zeros(samples, 1, HEIGHT, WIDTH)
    y = torch.zeros(samples, 10)
    sources = torch.empty(samples, 2, dtype=torch.int64)
    groups = torch.arange(samples) * POOLS // samples
    for i, pool in enumerate(groups.tolist()):
        both = _matched(i)
        y[i, list(both)] = 1
        swap = _between(0, 1, draw)
        for place, digit in enumerate(both[::-1] if swap else both):
            members = pools[pool][digit]
            source = int(members[_between(0, len(members) - 1, draw)])
            sources[i, place] = source
            row = _between(0, HEIGHT - _SIZE, draw)
            column = _between(*(_RIGHT if place else _LEFT), draw)
            window = x[i, 0, row : row + _SIZE, column : column + _SIZE]
            torch.maximum(window, images[source], out=window)
    names = tuple(str(digit) for digit in range(10))
    return Table(x, y, "multilabel", classes=names, name="digit_pairs", groups=groups), sources


def _pools(digits: Tensor, draw: torch.Generator) -> list[list[Tensor]]:
    """For each pool and digit the source images, dealt in turn: `[pool][digit] -> rows`."""
    dealt = []
    for digit in range(10):
        rows = (digits == digit).nonzero().flatten()
        dealt.append(rows[torch.randperm(len(rows), generator=draw)])
    return [[rows[pool::POOLS] for rows in dealt] for pool in range(POOLS)]


def _matched(i: int) -> tuple[int, int]:
    """The two digits of picture i. Ten players, nine rounds of five games: in every five pictures each
    digit occurs once, in every 45 every two digits meet once."""
    round_, game = i // 5 % 9, i % 5
    return (9, round_) if game == 0 else ((round_ + game) % 9, (round_ - game) % 9)


def _between(low: int, high: int, draw: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=draw))
