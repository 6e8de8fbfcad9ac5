"""Training, validation and test part of a table, each with the classes in proportion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlblocks import seeds
from dlblocks.data.table import Table
from dlblocks.errors import UserError

_BINS = 10
# Draws after the first in search of one that has every label in every part.
_DRAWS = 20


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of each part, int64 and ascending; disjoint, and together all rows."""

    train: Tensor
    val: Tensor
    test: Tensor


def split(table: Table, seed: int, val: float = 0.2, test: float = 0.2) -> Split:
    """Split a table; the same for the same table, seed and fractions, everywhere.

    - multiclass, binary: of each class, each part gets its proportion to within one instance.
    - multilabel: the same for each set of labels; instances whose set is rare are taken by their
      rarest label.
    - regression: the same for each tenth of the first target's range of ranks.
    - a table with groups: whole groups, drawn at random; the fractions are of groups.

    Args:
        table: the data.
        seed: the run's seed.
        val, test: fractions; the rest is for training. A part with fraction 0 is empty.

    Raises:
        UserError: fractions that leave nothing to train on, a class or label too small to be in every
            part (named), or too few instances or groups.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(
            f"data.val_fraction={val}, data.test_fraction={test}: each must be in [0, 1), their sum below 1."
        )
    fractions = (1 - val - test, val, test)
    draw = seeds.generator(seed, "split")
    if table.groups is not None:
        part = _split_groups(table, table.groups, fractions, draw)
    else:
        part = _split_strata(table, fractions, draw)
        # A label may miss a part by chance, where its instances are in strata of one or two.
        for _ in range(_DRAWS):
            if table.task != "multilabel" or not _missing(table, part, fractions):
                break
            part = _split_strata(table, fractions, draw)
    if table.task == "multilabel" and (missing := _missing(table, part, fractions)):
        count = int(table.y[:, missing[0]].sum())
        raise _too_small(table, "label", table.classes[missing[0]], count, fractions)
    parts = Split(*((part == i).nonzero().flatten() for i in range(3)))
    for rows, fraction in zip((parts.train, parts.val, parts.test), fractions, strict=True):
        if fraction > 0 and not len(rows):
            raise UserError(
                f"data={table.name}: {len(table)} instances are too few for the fractions"
                f" {_shown(fractions)}: a part would be empty."
            )
    return parts


def _split_strata(table: Table, fractions: tuple[float, ...], draw: torch.Generator) -> Tensor:
    """The part of each row: every stratum in the fractions."""
    part = torch.empty(len(table), dtype=torch.int64)
    debt = [0.0, 0.0, 0.0]
    strict = table.task in ("binary", "multiclass")
    for stratum, label in _strata(table, fractions):
        counts = _shares(len(stratum), fractions, debt, everywhere=table.task != "regression")
        if strict and any(f > 0 and not c for f, c in zip(fractions, counts, strict=True)):
            raise _too_small(table, "class", label, len(stratum), fractions)
        shuffled = stratum[torch.randperm(len(stratum), generator=draw)]
        part[shuffled] = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    return part


def _shares(count: int, fractions: tuple[float, ...], debt: list[float], *, everywhere: bool) -> list[int]:
    """`count` in whole numbers, each its proportion rounded down or up.

    What rounds up is decided by the largest remainder plus the debt: what a part was given too little in
    earlier strata, so that errors don't add up over many strata. With `everywhere`, a part that would
    stay empty comes first. `debt` is brought up to date.
    """
    exact = [count * fraction for fraction in fractions]
    # The rounding error of 1 - val - test must not turn 5.0 into 4.
    floors = [int(value + 1e-9) for value in exact]
    due = [value - floor + owed for value, floor, owed in zip(exact, floors, debt, strict=True)]
    order = sorted(
        (i for i in range(len(exact)) if fractions[i] > 0),
        key=lambda i: (everywhere and floors[i] > 0, -round(due[i], 9), i),
    )
    for i in order[: count - sum(floors)]:
        floors[i] += 1
    for i, value in enumerate(exact):
        debt[i] += value - floors[i]
    return floors


def _strata(table: Table, fractions: tuple[float, ...]) -> list[tuple[Tensor, str]]:
    """Disjoint rows that are split each for itself, with the name of the class for messages."""
    y = table.y
    if table.task == "regression":
        ranks = torch.empty(len(y), dtype=torch.int64)
        ranks[y[:, 0].argsort(stable=True)] = torch.arange(len(y))
        keys = ranks * _BINS // len(y)
    elif table.task == "multilabel":
        keys = _label_keys(y, min(f for f in fractions if f > 0))
    else:
        keys = y
    found = torch.unique(keys).tolist()
    named = table.task in ("binary", "multiclass")
    return [((keys == k).nonzero().flatten(), table.classes[int(k)] if named else "") for k in found]


def _label_keys(y: Tensor, smallest: float) -> Tensor:
    """One integer for each row: its set of labels, or, where few have that set, its rarest label."""
    sets, keys, counts = torch.unique(y, dim=0, return_inverse=True, return_counts=True)
    rare = (counts * smallest < 1)[keys]
    frequency = torch.where(y > 0, y.sum(0), torch.inf)  # (N, labels)
    return torch.where(rare, len(sets) + frequency.argmin(1), keys)


def _split_groups(
    table: Table, groups: Tensor, fractions: tuple[float, ...], draw: torch.Generator
) -> Tensor:
    names, member = torch.unique(groups, return_inverse=True)
    counts = _shares(len(names), fractions, [0.0, 0.0, 0.0], everywhere=True)
    if any(f > 0 and not c for f, c in zip(fractions, counts, strict=True)):
        raise UserError(
            f"data={table.name}: {len(names)} groups, which must stay whole, cannot be split into"
            f" {_shown(fractions)}: a part would be empty. Fractions from {1 / len(names):.3g} work."
        )
    part = torch.empty(len(names), dtype=torch.int64)
    part[torch.randperm(len(names), generator=draw)] = torch.repeat_interleave(
        torch.arange(3), torch.tensor(counts)
    )
    return part[member]


def _missing(table: Table, part: Tensor, fractions: tuple[float, ...]) -> list[int]:
    """The labels that some part has no instance of."""
    absent = torch.zeros(table.y.shape[1], dtype=torch.bool)
    for i, fraction in enumerate(fractions):
        if fraction > 0:
            absent |= table.y[part == i].sum(0) == 0
    return absent.nonzero().flatten().tolist()


def _too_small(table: Table, what: str, label: str, count: int, fractions: tuple[float, ...]) -> UserError:
    return UserError(
        f"data={table.name}: {what} {label!r} has {count} instances, too few to be in every part"
        f" ({_shown(fractions)}). Leave it out, merge it with another, or raise the smallest fraction."
    )


def _shown(fractions: tuple[float, ...]) -> str:
    return ", ".join(
        f"{n} {f:.3g}" for n, f in zip(("train", "val", "test"), fractions, strict=True) if f > 0
    )
