"""Fans, counted by running the layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dlblocks.errors import UserError
from dlblocks.initializers.fans import Fans, fans_of

SIZE = 12


def counted(layer: nn.Module, channels: int, dims: int) -> Fans:
    """Connections of an output and of an input in the middle, with all weights 1."""
    nn.init.ones_(layer.weight)
    x = torch.ones(1, channels, *[SIZE] * dims, requires_grad=True)
    output = layer(x)
    middle = (0, 0, *[output.shape[-1] // 2] * dims)
    fan_in = output[middle]
    (gradient,) = torch.autograd.grad(output.sum(), x)
    return Fans(round(fan_in.item()), round(gradient[(0, 0, *[SIZE // 2] * dims)].item()))


@settings(deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_convolutions_are_counted_as_they_connect(
    dims: int, groups: int, inputs: int, outputs: int, kernel: int, transposed: bool
) -> None:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    layer = kind(groups * inputs, groups * outputs, kernel, groups=groups, bias=False)
    assert fans_of(layer.weight, layer) == counted(layer, groups * inputs, dims)


def test_linear_and_bare_tensors() -> None:
    assert fans_of(nn.Linear(3, 5).weight) == Fans(3, 5)
    assert fans_of(torch.empty(5, 3, 2, 2)) == Fans(12, 20)


def test_bilinear_layers_are_counted_as_they_connect() -> None:
    layer = nn.Bilinear(3, 4, 5, bias=False)
    nn.init.ones_(layer.weight)
    # An output sums all products of two inputs; one product goes to every output.
    fan_in = layer(torch.ones(3), torch.ones(4))[0].item()
    fan_out = layer(torch.eye(3)[0], torch.eye(4)[0]).sum().item()
    assert fans_of(layer.weight, layer) == Fans(round(fan_in), round(fan_out)) == Fans(12, 5)


def test_vectors_have_no_fans() -> None:
    with pytest.raises(UserError, match="no fan_in and fan_out"):
        fans_of(torch.empty(5))
