"""Activations that a net computes by functions: in an attribute, or called in the code of a module."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache, partial
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

_NAMES = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardtanh", "hardshrink", "softshrink", "softplus", "softsign", "tanh", "tanhshrink"),
    *("sigmoid", "hardsigmoid", "logsigmoid", "softmax", "log_softmax", "softmin", "glu"),
)
_FUNCTIONS = frozenset((*_NAMES, *(f"{name}_" for name in _NAMES)))


def functions_of(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Attributes that hold an activation of torch as a function, and its name."""
    for attribute, value in vars(module).items():
        while isinstance(value, partial):
            value = value.func
        if not attribute.startswith("_") and _is_function(value):
            yield attribute, value.__name__


def calls_of(module: nn.Module) -> tuple[str, ...]:
    """The functions of torch that are activations and that the code of a module calls: its methods,
    functions in its attributes, and the functions of other places that these call by name."""
    cls: Any = type(module)
    called = dict.fromkeys(_called(cls))
    for attribute, value in vars(module).items():
        if not attribute.startswith("_") and isinstance(value, FunctionType) and not _is_function(value):
            called.update(dict.fromkeys(_calls_in(value, set())))
    return tuple(called)


@cache
def _called(cls: Any) -> tuple[str, ...]:
    called: dict[str, None] = {}
    for base in inspect.getmro(cls):
        if base is object or _of_torch(base):
            continue
        for method in vars(base).values():
            method = getattr(method, "__func__", method)
            if isinstance(method, FunctionType):
                called.update(dict.fromkeys(_calls_in(method, set())))
    return tuple(called)


def _calls_in(function: FunctionType, seen: set[FunctionType]) -> Iterator[str]:
    function = inspect.unwrap(function)
    if function in seen or _of_torch(function):
        return
    seen.add(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # made at run time, without a source
        return
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        match node.func:
            case ast.Name(id=name):
                value: Any = function.__globals__.get(name)
                if _is_function(value):
                    yield value.__name__
                # What `__init__` calls builds the net; it does not compute.
                elif isinstance(value, FunctionType) and function.__name__ != "__init__":
                    yield from _calls_in(value, seen)
            case ast.Attribute(attr=name, value=owner) if name in _FUNCTIONS and not _is_own(owner, function):
                yield name


def _is_function(value: Any) -> bool:
    name = getattr(value, "__name__", None)
    return (
        isinstance(name, str)
        and name in _FUNCTIONS
        and any(getattr(home, name, None) is value for home in (torch, nn.functional, torch.Tensor))
    )


def _of_torch(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] == "torch"


def _is_own(owner: ast.expr, function: FunctionType) -> bool:
    """Whether what the name is looked up in is no tensor and not torch: `self`, or another package."""
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    if not isinstance(owner, ast.Name):
        return False
    known = function.__globals__.get(owner.id)
    return owner.id == "self" or (isinstance(known, ModuleType) and known.__name__.split(".")[0] != "torch")
