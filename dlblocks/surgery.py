"""Another activation in a net that exists: torchvision's, timm's, transformers', or anybody's."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from dlblocks.activations.width import width_ratio
from dlblocks.errors import UserError
from dlblocks.factory import activation as build_activation
from dlblocks.registry import REGISTRY, Spec, name_of

# Where classes of activations live; a module of one of these packages need not be installed.
_HOMES = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "transformers.activations",
    "dlblocks.activations",
)
# Gates, outputs and what changes the width: replaced only when they are named.
_SPARED = (
    "sigmoid",
    "hardsigmoid",
    "logsigmoid",
    "softmax",
    "softmax2d",
    "logsoftmax",
    "softmin",
    "glu",
    "linear",
    "identity",
)
_NO_ACTIVATIONS = ("multiheadattention",)
# Functions of torch and methods of tensors that are hidden activations.
_HIDDEN = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardtanh", "hardshrink", "softshrink", "softplus", "softsign", "tanh", "tanhshrink"),
)
_FUNCTIONS = frozenset((*_HIDDEN, *(f"{name}_" for name in _HIDDEN)))

Types: TypeAlias = "str | type[nn.Module] | Sequence[str | type[nn.Module]] | None"


@dataclass(frozen=True)
class Found:
    """An activation in a net.

    Args:
        name: dotted name of the module or attribute, or of the module whose code calls a function.
        kind: the class, or the function.
        how: `module`; `attribute`, which holds a function; or `call`, of a function in the code.
        spared: whether it is a gate or an output, which is replaced only when it is named.
    """

    name: str
    kind: str
    how: Literal["module", "attribute", "call"]
    spared: bool = False


def find_activations(model: nn.Module) -> list[Found]:
    """The activations of a net, in the order of its modules.

    >>> find_activations(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    [Found(name='1', kind='ReLU', how='module', spared=False)]
    """
    found: list[Found] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module).__name__
        if name.startswith(inside):
            continue
        if _is_activation(module):
            inside = (*inside, f"{name}.")
            found.append(Found(name, kind, "module", _plain(kind) in _SPARED))
            continue
        for attribute, function in _functions_of(module):
            found.append(Found(_joined(name, attribute), function.__name__, "attribute"))
        found.extend(Found(name, called, "call") for called in _called(module.__class__))
    return found


def replace_activations(
    model: nn.Module,
    activation: Spec,
    *,
    types: Types = None,
    pattern: str = "*",
    inplace: bool = False,
    where: str = "activation",
) -> nn.Module:
    """A net with other activations; weights, names and `state_dict` keys stay.

    Modules, and attributes that hold a function, are replaced; one that several places share stays
    shared. A function called in the code of a module (`F.relu(x)`, `x.tanh()`) can't be: such calls are
    told in a warning, unless `types` is given. Gates and outputs (sigmoid, softmax, GLU, ...) stay unless `types` names them.

    Args:
        model: any module.
        activation: a name, a `{name: ..., params}` mapping, a module, which is copied, or a class.
        types: only activations of this class or name, or of one of these: `"relu"`, `nn.ReLU`.
        pattern: only those whose dotted name matches this shell pattern, such as `"layer4.*"`.
        inplace: change `model` itself; else a copy is changed.
        where: the place in the config, for messages.

    Returns:
        The changed net. New parameters, as of PReLU, are on the device and of the type of the net's.

    Raises:
        UserError: nothing matches, the activation changes the number of features, or one to be replaced
            has hooks, which would be lost.

    >>> replace_activations(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "gelu")[1]
    GELU(approximate='none')
    """
    if (ratio := width_ratio(activation)) != 1:
        raise UserError(
            f"{where}={name_of(activation)}: takes {ratio} times the features that it gives, so it fits no"
            " place of an elementwise activation."
        )
    wanted = _matcher(types, where)
    found = [item for item in find_activations(model) if fnmatchcase(item.name, pattern)]
    calls = [item for item in found if item.how == "call" and types is None]
    chosen = [item for item in found if item.how != "call" and wanted(model, item)]
    if chosen and not chosen[0].name:
        raise UserError(
            f"{where}: the model is itself an activation ({chosen[0].kind}); build the other one."
        )
    if not chosen:
        raise UserError(_nothing(model, calls, types, pattern, where))
    for item in chosen:
        _check_hooks(model, item, where)
    if not inplace:
        model = copy.deepcopy(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    new: dict[Any, nn.Module] = {}
    for item in chosen:
        parent_name, _, attribute = item.name.rpartition(".")
        parent = model.get_submodule(parent_name)
        old = getattr(parent, attribute)
        key = id(old) if item.how == "module" else (id(parent), attribute)
        if key not in new:
            built = build_activation(activation, where=where).train(parent.training)
            new[key] = built if like is None else built.to(like.device, like.dtype)
        if item.how == "attribute":
            delattr(parent, attribute)
            # torch's transformer layers have a fast path that computes the old function by this flag.
            if isinstance(parent, nn.TransformerEncoderLayer):
                parent.activation_relu_or_gelu = 0
        setattr(parent, attribute, new[key])
    if calls:
        told = dict.fromkeys(f"{i.kind} in {type(model.get_submodule(i.name)).__name__}" for i in calls)
        warnings.warn(
            f"{where}={name_of(activation)}: functions called in the code of a module can't be replaced and"
            f" stay: {', '.join(told)}.",
            stacklevel=2,
        )
    return model


def _matcher(types: Types, where: str) -> Callable[[nn.Module, Found], bool]:
    """Whether an activation is asked for by its type."""
    if types is None:
        return lambda model, item: not item.spared  # noqa: ARG005
    several = (types,) if isinstance(types, (str, type)) else tuple(types)
    classes = tuple(kind for kind in several if isinstance(kind, type))
    names = {_class_name(kind, where) for kind in several if isinstance(kind, str)}

    def wanted(model: nn.Module, item: Found) -> bool:
        if item.how == "attribute":
            return _plain(item.kind) in names
        return isinstance(model.get_submodule(item.name), classes) or _plain(item.kind) in names

    return wanted


def _class_name(name: str, where: str) -> str:
    target = REGISTRY.get("activation", name, f"{where}: types").load()
    return _plain(getattr(target, "__name__", name))


def _plain(kind: str) -> str:
    """`GELUActivation`, `Gelu`, `gelu_` -> `gelu`."""
    return kind.lower().removesuffix("activation").replace("_", "")


def _is_activation(module: nn.Module) -> bool:
    homes = (cls.__module__ for cls in type(module).__mro__)
    return (
        any(
            home == known or home.startswith((f"{known}.", f"{known}_")) for home in homes for known in _HOMES
        )
        or type(module) in _registered()
    ) and _plain(type(module).__name__) not in _NO_ACTIVATIONS


def _registered() -> frozenset[Any]:
    """Classes that others have registered."""
    blocks = (REGISTRY.get("activation", name) for name in REGISTRY.names("activation"))
    return frozenset(block.target for block in blocks if isinstance(block.target, type))


def _functions_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that hold an activation of torch as a function."""
    for attribute, value in vars(module).items():
        if not attribute.startswith("_") and callable(value) and _is_function(value):
            yield attribute, value


def _is_function(value: Any) -> bool:
    return getattr(value, "__name__", None) in _FUNCTIONS and any(
        getattr(home, value.__name__, None) is value for home in (torch, nn.functional, torch.Tensor)
    )


@cache
def _called(cls: Hashable) -> tuple[str, ...]:
    """The functions of torch that are activations and that the methods of a class call."""
    called: dict[str, None] = {}
    for base in inspect.getmro(cls):  # type: ignore[arg-type]
        if base.__module__.startswith("torch.") or base is object:
            continue
        for method in vars(base).values():
            if isinstance(method, FunctionType):
                called.update(dict.fromkeys(_calls_in(method)))
    return tuple(called)


def _calls_in(method: FunctionType) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, SyntaxError):  # made at run time, without a source
        return
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        match node.func:
            case ast.Name(id=name) if _is_function(method.__globals__.get(name)):
                yield name
            case ast.Attribute(attr=name, value=owner) if name in _FUNCTIONS and not _is_own(owner, method):
                yield name


def _is_own(owner: ast.expr, method: FunctionType) -> bool:
    """Whether what the name is looked up in is no tensor and not torch: `self`, or another package."""
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    if not isinstance(owner, ast.Name):
        return False
    known = method.__globals__.get(owner.id)
    foreign = isinstance(known, ModuleType) and not known.__name__.startswith("torch")
    return owner.id == "self" or foreign


def _check_hooks(model: nn.Module, item: Found, where: str) -> None:
    if item.how != "module":
        return
    module = model.get_submodule(item.name)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, hook) for hook in hooks):
        raise UserError(
            f"{where}: {item.name} ({item.kind}) has hooks, which would be lost with it. Remove them first,"
            " or leave it out by types or pattern."
        )


def _nothing(model: nn.Module, calls: Sequence[Found], types: Types, pattern: str, where: str) -> str:
    asked = "" if types is None and pattern == "*" else " that matches"
    lines = f"{where}: {type(model).__name__} has no activation{asked} that can be replaced."
    modules = dict.fromkeys(f"{i.name} ({i.kind})" for i in find_activations(model) if i.how != "call")
    if modules:
        lines += f" It has {', '.join(list(modules)[:10])}{', ...' if len(modules) > 10 else ''}."
    if calls:
        lines += f" Its code calls {', '.join(dict.fromkeys(item.kind for item in calls))}, which stays."
    return lines


def _joined(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute
