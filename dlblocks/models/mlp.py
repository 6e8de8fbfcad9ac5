"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from math import prod

from torch import nn

from dlblocks.activations.width import widened, width_ratio
from dlblocks.errors import UserError
from dlblocks.factory import activation as build_activation
from dlblocks.registry import Spec


def mlp(
    input_shape: Sequence[int],
    outputs: int,
    activation: Spec = "relu",
    *,
    width: int = 128,
    depth: int = 2,
    widths: Sequence[int] | None = None,
    dropout: float = 0.0,
    norm: str = "none",
) -> nn.Sequential:
    """Fully connected layers: `h = dropout(activation(norm(W h + b)))`, then a linear output layer.

    Shape: `(N, *input_shape)` to `(N, outputs)`.

    Args:
        input_shape: of one instance.
        outputs: numbers given for each instance.
        activation: of the hidden layers; each gets an instance of its own. A layer before an
            activation that takes more features than it gives (maxout, GLU) is so much wider.
        width: features of each hidden layer, after the activation.
        depth: hidden layers.
        widths: the features of each hidden layer, one by one, in place of `width` and `depth`.
        dropout: probability that a hidden feature is zeroed in training.
        norm: `none`, `batch` or `layer`, before each activation.

    Raises:
        UserError: both `widths` and `width` or `depth` are given.
    """
    if widths is not None and (width, depth) != (128, 2):
        raise UserError(
            f"model.widths={list(widths)}: already says the width of each of the {len(widths)} hidden layers;"
            f" leave out model.width={width} and model.depth={depth}."
        )
    # No list: a damaged or hostile recipe may ask for any depth.
    each: Iterable[int] = repeat(width, depth) if widths is None else widths
    ratio = width_ratio(activation)
    layers: list[nn.Module] = [nn.Flatten()] if len(input_shape) != 1 else []
    features = prod(input_shape)
    for hidden in each:
        size = widened(hidden, ratio)
        layers.append(nn.Linear(features, size))
        if norm != "none":
            layers.append(nn.BatchNorm1d(size) if norm == "batch" else nn.LayerNorm(size))
        layers.append(build_activation(activation))
        if dropout:
            layers.append(nn.Dropout(dropout))
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, outputs))
