"""Blocks by name: `dlblocks.activation("elu")`, `dlblocks.loss("huber")`, ...

Wherever a block is accepted, a name, a `{name: ..., params}` mapping, or a ready object is accepted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlblocks.errors import UserError
from dlblocks.registry import Spec, build, name_of, parse, parse_whole
from dlblocks.rules import split

if TYPE_CHECKING:
    from torch import Tensor, nn

# Config key -> the word by which its block follows from the others.
FOLLOWS = {"loss": "auto", "init": "auto", "bias_init": "auto", "activation": "default"}


def activation(spec: Spec, /, where: str = "", **params: Any) -> nn.Module:
    """A fresh activation module. Of a ready module, a copy; of a class, an instance.

    Raises:
        UserError: unknown name or parameter, values that are not legal, alone or together, parameters for a
            ready module.

    >>> activation("leaky_relu")
    LeakyReLU(negative_slope=0.1)
    """
    return _module("activation", spec, where, params)


def loss(spec: Spec, /, where: str = "", **params: Any) -> nn.Module:
    """A loss module, called with `(input, target)`.

    >>> loss("huber", delta=0.5)
    Huber(reduction=mean, delta=0.5)
    """
    return _module("loss", spec, where, params)


def initializer(spec: Spec, /, where: str = "", **params: Any) -> Callable[..., Tensor]:
    """An initialiser, called with `(tensor, fans=None, generator=None)`; it fills the tensor in place.

    Raises:
        UserError: unknown name or parameter, or rules, which only `initialize` can follow; when called, a
            tensor of whole numbers.

    >>> import torch
    >>> initializer("constant", value=0.5)(torch.empty(2))
    tensor([0.5000, 0.5000])
    """
    if callable(spec):
        _no_parameters(params, where or "initializer")
        ready: Callable[..., Tensor] = spec
        return ready
    spec, rules = split(spec, where or "init")
    if rules:
        raise UserError(f"{where or 'init'}.rules: need the names of a model: use dlblocks.initialize.")
    block, full = parse_whole("initializer", spec, params, where)
    return _Fill(block.load(), **full)


class _Fill(functools.partial["Tensor"]):
    """An initialiser with its parameters, which takes no tensor that would round its values."""

    def __call__(self, tensor: Tensor, /, *args: Any, **params: Any) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise UserError(
                f"{self.func.__name__}: fills tensors of floating-point numbers, not of {tensor.dtype}."
            )
        return super().__call__(tensor, *args, **params)


def _module(kind: str, spec: Spec, where: str, params: dict[str, Any]) -> nn.Module:
    if isinstance(spec, type):
        made: nn.Module = spec(**params)
        return made
    if not callable(spec):
        try:
            built: nn.Module = build(kind, spec, where=where, **params)
        except UserError:
            raise
        except (ValueError, AssertionError) as error:  # of parameters that don't go together
            raise UserError(f"{where or kind}: {error}") from error
        return built
    import copy

    _no_parameters(params, where or kind)
    ready: nn.Module = copy.deepcopy(spec)
    return ready


def _no_parameters(params: Mapping[str, Any], where: str) -> None:
    if params:
        raise UserError(f"{where}: what is ready takes no parameters, got {', '.join(params)}.")


def model(
    spec: Spec,
    /,
    input_shape: Sequence[int],
    outputs: int,
    activation: Spec = "relu",
    where: str = "",
    **params: Any,
) -> nn.Module:
    """A net from the shape of one instance to `outputs` logits or values. A ready module is taken as it is.

    The activation `default` is that of a predefined model's authors, relu in our own nets.

    >>> model("mlp", (4,), 3, depth=1, width=8)
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=3, bias=True)
    )
    """
    if isinstance(spec, (str, Mapping)):
        block, _ = parse("model", spec, where)
        if name_of(activation) == "default" and not block.tags.get("predefined"):
            activation = "relu"
        spec = build("model", spec, input_shape, outputs, activation, where=where, **params)
    net: nn.Module = spec
    return net
