"""The means of an activation in a net: of its module, at each variance that a batch brings."""

from __future__ import annotations

from collections.abc import Hashable
from math import floor, log2
from types import BuiltinFunctionType, FunctionType

import torch
from torch import Tensor, nn

from dlblocks.errors import UserError
from dlblocks.theory.means import BySamples, Means, means_of

# The means are interpolated between so many variances an octave; fewer where each takes samples.
_AN_OCTAVE, _SAMPLED = 4, 1
_LEAST, _LARGEST = 1e-250, 1e250
# Of activations of several features, numbers in a quarter of the samples.
_NUMBERS = 2**14
# Of activations that have been met, by what decides their means; so many, each of few parameters.
_KNOWN: dict[Hashable, Table] = {}
_KEPT, _FEW_NUMBERS = 64, 64
_VALUES = (bool, int, float, str, FunctionType, BuiltinFunctionType)
_INTERNAL = frozenset((*vars(nn.Module()), "inplace"))


class Table:
    """The means of an activation between variances, each computed once."""

    def __init__(self, means: Means) -> None:
        self.means = means
        self._points = _SAMPLED if isinstance(means, BySamples) else _AN_OCTAVE
        self._found: dict[int, tuple[float, float, float]] = {}

    def at(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E[phi], E[phi^2] and E[phi'^2] at each q, the last two interpolated along powers of q."""
        high = min(max(float(q.amax()), _LEAST), _LARGEST)
        # What is far smaller than others hardly counts, nor where its means are taken.
        low = max(min(float(q.amin()), high), 1e-6 * high, _LEAST)
        first = floor(log2(low) * self._points)
        mean, square, slope = self._rows(range(first, floor(log2(high) * self._points) + 2))
        place = q.clamp(low, high).log2() * self._points - first
        left = place.long()
        share = place - left

        def between(values: Tensor) -> Tensor:
            return values[left] + share * values.diff()[left]

        found = (between(mean), between(square.log()).exp(), between(slope.log()).exp())
        if bool((q > 0).all()):
            return found
        mean, square, slope = (
            torch.where(q > 0, values, zero) for values, zero in zip(found, self.means.at_zero(), strict=True)
        )
        return mean, square, slope

    def _rows(self, places: range) -> Tensor:
        new = [place for place in places if place not in self._found]
        if new:
            moments = self.means.moments(2 ** (torch.tensor(new, dtype=torch.float64) / self._points))
            columns = (moments.mean, *(part.clamp(min=1e-300) for part in (moments.square, moments.slope)))
            self._found.update(
                zip(new, zip(*(column.tolist() for column in columns), strict=True), strict=True)
            )
        return torch.tensor([self._found[place] for place in places], dtype=torch.float64).T


def table_of(module: nn.Module, given: torch.Size, made: torch.Size, axis: int) -> Table | None:
    """Of an activation; kept for others that look the same. None if the module is none, or works along another
    dimension than the features.

    Args:
        module: any module.
        given, made: the shapes of its input and its output.
        axis: of the features.
    """
    look = _look(module)
    keys = (look, (look, given[axis]))  # where features act on one another, their number counts
    table = next((_KNOWN[key] for key in keys if key in _KNOWN), None)
    if table is None:
        try:
            table = Table(means_of(module, given[axis], max(4, _NUMBERS // given[axis])))
        except (UserError, RuntimeError):
            return None
        if look is not None:
            if len(_KNOWN) >= _KEPT:
                _KNOWN.clear()
            _KNOWN[keys[isinstance(table.means, BySamples)]] = table
    if not isinstance(table.means, BySamples):
        return table if made == given else None
    along = 1 if isinstance(module, nn.PReLU) else getattr(module, "dim", -1)
    others = [[size for place, size in enumerate(shape) if place != axis] for shape in (given, made)]
    fits = isinstance(along, int) and along % len(given) == axis and others[0] == others[1]
    return table if fits else None


def _look(module: nn.Module) -> Hashable | None:
    """What decides what a module computes, but for its code; None where that can't be told."""
    parts: list[Hashable] = []
    for part in module.modules():
        own = {name: value for name, value in vars(part).items() if name not in _INTERNAL}
        if not all(value is None or isinstance(value, _VALUES) for value in own.values()):
            return None
        parts.append((type(part), tuple(own.items())))
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.numel() > _FEW_NUMBERS:
            return None
        parts.append(tuple(tensor.detach().flatten().tolist()))
    return tuple(parts)
