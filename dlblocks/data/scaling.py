"""Scaling of inputs and targets. Always fitted on the training part, applied to all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dlblocks.errors import unknown

SCALINGS = ("standard", "minmax", "none")


class Scaler(NamedTuple):
    """The map `(values - shift) / scale`; for `standard` these are mean and standard deviation.

    Args:
        shift: float32, broadcast against one instance: `(features,)`, or `(channels, 1, 1)`.
        scale: likewise; never 0.
    """

    shift: Tensor
    scale: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Scaled, from the original unit. Shape `(N, *)`, kept."""
        return (values - self.shift.to(values.device)) / self.scale.to(values.device)

    def invert(self, values: Tensor) -> Tensor:
        """Back in the original unit. Shape `(N, *)`, kept."""
        return values * self.scale.to(values.device) + self.shift.to(values.device)


def fit(scaling: str, values: Tensor) -> Scaler:
    """Take the shift and the scale from values.

    Tables `(N, features)` get one pair for each feature. Pictures `(N, channels, *)` get one for each
    channel, so that pixels keep their brightness relative to each other; that holds whether or not the
    net takes them flat. Where all values are equal the scale is 1.

    Args:
        scaling: `standard` (to mean 0, standard deviation 1, divided by N), `minmax` (to [0, 1]), `none`.
        values: `(N, *)`, N at least 1.

    Raises:
        UnknownNameError: no such scaling.
    """
    if scaling not in SCALINGS:
        raise unknown("scaling", scaling, SCALINGS, "data.scale")
    over = (0, *range(2, values.ndim))
    # Sums over large values lose digits in float32.
    exact = values.double()
    low, high = exact.amin(over, keepdim=True), exact.amax(over, keepdim=True)
    if scaling == "standard":
        shift, scale = exact.mean(over, keepdim=True), exact.std(over, correction=0, keepdim=True)
    elif scaling == "minmax":
        shift, scale = low, high - low
    else:
        shift, scale = torch.zeros_like(low), torch.ones_like(low)
    scale = torch.where(low == high, 1.0, scale)
    return Scaler(shift[0].float(), scale[0].float())
