"""What a trained module has to know of its data, so that it can predict from raw instances."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks.data.scaling import Scaler
from dlblocks.errors import UserError

# Of float32 sums, relative to the scale.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class DataFormat:
    """What an instance is in the data set, how it becomes what the net takes, and what the outputs stand for.

    Args:
        shape: of one instance, as the data set has it.
        shift, scale: one for each feature, or for each channel of pictures: `(value - shift) / scale`.
        flat: whether the net takes pictures as vectors.
        features: the names of the numbers in one instance; empty if they have none.
        classes: the names of the classes or labels; empty for regression.
    """

    shape: tuple[int, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    flat: bool = False
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> DataFormat:
        """From the plain values that a checkpoint holds.

        Raises:
            UserError: keys, types or lengths that don't belong together.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise UserError(f"data_format: must be a mapping with the keys {', '.join(sorted(names))}.")
        lists = {key: values[key] for key in names if key != "flat"}
        for key, kind in (
            ("shape", int),
            ("shift", float),
            ("scale", float),
            ("features", str),
            ("classes", str),
        ):
            items = lists[key]
            if not isinstance(items, (list, tuple)) or not all(type(item) is kind for item in items):
                raise UserError(f"data_format.{key}: must be a list of values of type {kind.__name__}.")
        made = cls(flat=bool(values["flat"]), **{key: tuple(items) for key, items in lists.items()})
        count = made.shape[0] if made.shape else 0
        usable = all(map(math.isfinite, (*made.shift, *made.scale))) and 0 not in made.scale
        if min(made.shape, default=0) < 1 or not len(made.shift) == len(made.scale) == count or not usable:
            raise UserError(
                f"data_format: instances of shape {made.shape} need {count} finite numbers in shift and scale,"
                " none of scale 0."
            )
        if made.features and len(made.features) != prod(made.shape):
            raise UserError(
                f"data_format: {len(made.features)} feature names for instances of shape {made.shape}."
            )
        return made

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def like(self, other: DataFormat) -> bool:
        """Whether another is the same, but for the rounding of its scaling on another machine."""
        numbers = zip(self.shift, other.shift, self.scale, other.scale, strict=False)
        close = all(abs(a - b) <= _ROUNDING * u and abs(u - v) <= _ROUNDING * u for a, b, u, v in numbers)
        return close and replace(self, shift=other.shift, scale=other.scale) == other

    @property
    def scaler(self) -> Scaler:
        """The map of the inputs, as it was fitted on the training part."""
        broadcast = (-1, *(1 for _ in self.shape[1:]))
        return Scaler(
            torch.tensor(self.shift).reshape(broadcast), torch.tensor(self.scale).reshape(broadcast)
        )

    def prepare(self, x: Tensor) -> Tensor:
        """What the net takes, from instances `(N, *shape)` as the data set has them."""
        scaled = self.scaler.apply(x)
        return scaled.flatten(1) if self.flat else scaled

    def column(self, index: int) -> str:
        """The name of one number of an instance, counted over the flattened instance."""
        return self.features[index] if self.features else f"number {index + 1}"

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse an array of another shape than `(N, *shape)`, or for pictures `(N, numbers)`.

        Raises:
            UserError: names both.
        """
        rows = (prod(self.shape),)
        if shape[1:] not in (self.shape, rows):
            legal = [f"(N, {', '.join(map(str, each))})" for each in dict.fromkeys((self.shape, rows))]
            raise UserError(f"input: has shape {tuple(shape)}; the model takes {' or '.join(legal)}.")

    def check(self, x: Any, place: Callable[[int], str] = "input, instance {}".format) -> Tensor:
        """Instances from outside as float32 `(N, *shape)`.

        Args:
            x: a tensor, array or list `(N, *shape)`; pictures also as rows `(N, numbers)`.
            place: what to call an instance in messages, by its number from 0.

        Raises:
            UserError: not numbers, of another shape, or not finite in float32.
        """
        values = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
        if values.dtype.kind not in "biuf":
            raise UserError(f"input: must be numbers, but its type is {values.dtype}.")
        self.check_shape(values.shape)
        with np.errstate(over="ignore"):
            checked = torch.from_numpy(values.astype(np.float32)).reshape(-1, *self.shape)
        if not checked.isfinite().all():
            row, number = (~checked.isfinite()).flatten(1).nonzero()[0].tolist()
            raise UserError(
                f"{place(row)}, {self.column(number)}: {values.reshape(len(values), -1)[row, number]} is not a"
                " finite number in float32."
            )
        return checked
