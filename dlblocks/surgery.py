"""Another activation in a net that exists: torchvision's, timm's, transformers', or anybody's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

from torch import nn

from dlblocks.activations.width import width_ratio
from dlblocks.calls import calls_of, functions_of
from dlblocks.errors import UserError
from dlblocks.factory import activation as build_activation
from dlblocks.records import Block
from dlblocks.registry import REGISTRY, Spec, name_of

# Where classes of activations live; a module of one of these packages need not be installed.
_HOMES = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "transformers.activations",
    "dlblocks.activations",
)
# Gates and outputs: replaced only when they are named.
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
    classes, names = _registered()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module).__name__
        if name.startswith(inside):
            continue
        if _is_activation(module, classes, names):
            inside = (*inside, f"{name}.")
            found.append(_found(name, kind, "module"))
            continue
        found.extend(
            _found(_joined(name, attribute), kind, "attribute") for attribute, kind in functions_of(module)
        )
        found.extend(_found(name, kind, "call") for kind in calls_of(module))
    return found


def _found(name: str, kind: str, how: Literal["module", "attribute", "call"]) -> Found:
    return Found(name, kind, how, _plain(kind) in _SPARED)


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
    shared. What can't be replaced stays and is told in a warning: functions called in the code of a
    module (`F.relu(x)`, `x.tanh()`), and activations that change the number of features (GLU, maxout).
    Gates and outputs (sigmoid, softmax, ...) stay unless `types` names them.

    Args:
        model: any module.
        activation: a name, a `{name: ..., params}` mapping, a module, which is copied, or a class.
        types: only activations of this class or name, or of one of these: `"relu"`, `nn.ReLU`.
        pattern: only those whose dotted name matches this shell pattern, such as `"layer4.*"`.
        inplace: change `model` itself; else a copy is changed.
        where: the place in the config, for messages.

    Returns:
        The changed net. A new activation is in the mode of the one it replaces; its parameters, as of
        PReLU, are on the device and of the type of the nearest ones in the net.

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
    found = [item for item in find_activations(model) if _in(item, pattern) and wanted(model, item)]
    calls = [item for item in found if item.how == "call"]
    wide = [item for item in found if item.how == "module" and _changes_width(model, item)]
    # GLU and the like stay whether asked for or not; calls of gates are told only when they are asked for.
    chosen = [item for item in found if item.how != "call" and item not in wide]
    if chosen and not chosen[0].name:
        raise UserError(
            f"{where}: the model is itself an activation ({chosen[0].kind}); build the other one."
        )
    if not chosen:
        raise UserError(_nothing(model, calls, wide, types, pattern, where))
    for item in chosen:
        _check_hooks(model, item, where)
    if not inplace:
        model = copy.deepcopy(model)
    _exchange(model, chosen, activation, where)
    if stay := _staying(model, calls, wide):
        warnings.warn(f"{where}={name_of(activation)}: {stay}", stacklevel=2)
    return model


def _exchange(model: nn.Module, chosen: Sequence[Found], activation: Spec, where: str) -> None:
    places = []  # all found before any is changed, since one module may stand in several
    for item in chosen:
        parent_name, _, attribute = item.name.rpartition(".")
        parent = model.get_submodule(parent_name)
        places.append((item, parent, attribute, getattr(parent, attribute)))
    new: dict[Any, nn.Module] = {}
    for item, parent, attribute, old in places:
        key = id(old) if item.how == "module" else (id(parent), attribute)
        if key not in new:
            mode = old if item.how == "module" else parent
            like = _nearest_parameter(model, item.name.rpartition(".")[0])
            built = build_activation(activation, where=where).train(mode.training)
            new[key] = built if like is None else built.to(like.device, like.dtype)
        if item.how == "attribute":
            delattr(parent, attribute)
        # torch's transformer layers have a fast path that computes the old function by this flag.
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0
        setattr(parent, attribute, new[key])


def _nearest_parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    """A floating-point one of the module of this name, or else of the smallest that holds it."""
    while True:
        within = model.get_submodule(name).parameters()
        found = next((p for p in within if p.is_floating_point()), None)
        if found is not None or not name:
            return found
        name = name.rpartition(".")[0]


def _in(item: Found, pattern: str) -> bool:
    """Whether a name matches; a call is in the module whose code it is in, `layer4.*` as for its parts."""
    names = [item.name, _joined(item.name, item.kind)] if item.how == "call" else [item.name]
    return any(fnmatchcase(name, pattern) for name in names)


def _changes_width(model: nn.Module, item: Found) -> bool:
    return width_ratio(model.get_submodule(item.name)) != 1


def _staying(model: nn.Module, calls: Sequence[Found], wide: Sequence[Found]) -> str:
    """What can't be replaced, and why."""
    parts = []
    if calls:
        told = dict.fromkeys(f"{i.kind} in {type(model.get_submodule(i.name)).__name__}" for i in calls)
        parts.append(
            f"functions called in the code of a module can't be replaced and stay: {', '.join(told)}."
        )
    if wide:
        told = dict.fromkeys(f"{item.name} ({item.kind})" for item in wide)
        parts.append(f"activations that change the number of features stay: {_listed(told)}.")
    return " ".join(parts)


def _matcher(types: Types, where: str) -> Callable[[nn.Module, Found], bool]:
    """Whether an activation is asked for by its type; one that changes the width is, to be told of."""
    if types is None:
        return lambda model, item: not item.spared or (item.how == "module" and _changes_width(model, item))
    several = (types,) if isinstance(types, (str, type)) else tuple(types)
    classes = tuple(kind for kind in several if isinstance(kind, type))
    names = {_plain(kind.__name__) for kind in classes}
    for kind in several:
        if isinstance(kind, str):
            names |= _names_of(REGISTRY.get("activation", kind, f"{where}: types"))

    def wanted(model: nn.Module, item: Found) -> bool:
        of_class = item.how == "module" and isinstance(model.get_submodule(item.name), classes)
        return of_class or _plain(item.kind) in names

    return wanted


def _names_of(block: Block) -> set[str]:
    """The names that a block, its class and its function have here and elsewhere."""
    loaded = getattr(block.load(), "__name__", block.name)
    return {_plain(name) for name in (block.name, *block.aliases, loaded)}


def _plain(kind: str) -> str:
    """`GELUActivation`, `Gelu`, `gelu_` -> `gelu`."""
    return kind.lower().removesuffix("activation").replace("_", "")


def _is_activation(module: nn.Module, classes: frozenset[type], names: frozenset[str]) -> bool:
    if _plain(type(module).__name__) in _NO_ACTIVATIONS:
        return False
    homes = [cls.__module__ for cls in type(module).__mro__]
    # Others that write an activation themselves, as timm's models do, give it the name of the field; it
    # may be made of further activations.
    named = _plain(type(module).__name__) in names and all(
        _is_activation(child, classes, names) for child in module.children()
    )
    return (
        named
        or type(module) in classes
        or any(
            home == known or home.startswith((f"{known}.", f"{known}_")) for home in homes for known in _HOMES
        )
    )


def _registered() -> tuple[frozenset[type], frozenset[str]]:
    """Classes that others have registered, and the names of all activations that keep the width."""
    blocks = [REGISTRY.get("activation", name) for name in REGISTRY.names("activation")]
    names = {name for block in blocks if "width_ratio" not in block.tags for name in _names_of(block)}
    classes = frozenset(block.target for block in blocks if isinstance(block.target, type))
    return classes, frozenset(names.difference(_SPARED))


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


def _nothing(
    model: nn.Module,
    calls: Sequence[Found],
    wide: Sequence[Found],
    types: Types,
    pattern: str,
    where: str,
) -> str:
    asked = "" if types is None and pattern == "*" else " that matches"
    lines = f"{where}: {type(model).__name__} has no activation{asked} that can be replaced."
    modules = dict.fromkeys(f"{i.name} ({i.kind})" for i in find_activations(model) if i.how != "call")
    if modules:
        lines += f" It has {_listed(modules)}."
    if calls:
        lines += f" Its code calls {', '.join(dict.fromkeys(item.kind for item in calls))}, which stays."
    if wide:
        told = dict.fromkeys(item.kind for item in wide)
        lines += f" {', '.join(told)} changes the number of features, so it stays."
    return lines


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _joined(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute
