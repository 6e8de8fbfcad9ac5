"""After a deep copy: functions that the copy holds use the copy, too. To Python a function has no parts, so that the copy
of an object runs closures over the original."""

from __future__ import annotations

from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn


def rebind(memo: dict[int, Any]) -> None:
    """Let all functions that copied objects hold in attributes, dicts and lists refer to what was copied.

    Closures, defaults, bound methods, partials and what `functools.wraps` keeps are followed. Of a compiled function the
    plain one is taken, since each copy would be compiled anew. What is in a tuple, or held by an object in a closure
    alone, stays as it is.

    Args:
        memo: as `copy.deepcopy` fills it; an object that is its own copy is left alone.
    """
    # What deepcopy keeps alive are originals.
    rebinding, alive = _Rebinding(memo), memo.get(id(memo))
    for key, made in list(memo.items()):
        if isinstance(made, Tensor) or made is alive or key == id(made):
            continue
        if isinstance(made, list):
            made[:] = map(rebinding.of, made)
        elif isinstance(made, dict):
            rebinding.values(made)
        elif isinstance(held := getattr(made, "__dict__", None), dict):
            rebinding.values(held)
            _without_bound(made, held)


class _Rebinding:
    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._functions: dict[int, FunctionType] = {}
        self._cells: dict[int, CellType] = {}

    def values(self, held: dict[Any, Any]) -> None:
        for name, value in held.items():
            if isinstance(value, (FunctionType, MethodType, partial)):
                held[name] = self.of(value)

    def of(self, value: Any) -> Any:
        """What stands for a value in the copy."""
        if id(value) in self._memo:
            value = self._memo[id(value)]
        if isinstance(value, MethodType):
            function, owner = value.__func__, self.of(value.__self__)
            return MethodType(function if _is_of_class(function, owner) else self.of(function), owner)
        if isinstance(value, partial):
            keywords = {name: self.of(each) for name, each in value.keywords.items()}
            return partial(self.of(value.func), *map(self.of, value.args), **keywords)
        return self._function(value) if isinstance(value, FunctionType) else value

    def _function(self, function: FunctionType) -> Any:
        if (plain := vars(function).get("_torchdynamo_orig_callable")) is not None:
            return self.of(plain)
        if not function.__closure__ and not function.__defaults__ and not function.__kwdefaults__:
            return function
        if (done := self._functions.get(id(function))) is not None:
            return done
        made = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            closure=tuple(self._cell(cell) for cell in function.__closure__ or ()),
        )
        # Before its cells are filled, which may hold the function itself.
        self._functions[id(function)] = made
        made.__defaults__ = function.__defaults__ and tuple(map(self.of, function.__defaults__))
        made.__kwdefaults__ = {
            name: self.of(value) for name, value in (function.__kwdefaults__ or {}).items()
        }
        made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
        made.__annotations__, made.__module__ = function.__annotations__, function.__module__
        vars(made).update({name: self.of(value) for name, value in vars(function).items()})
        for cell in function.__closure__ or ():
            self._fill(cell)
        return made

    def _cell(self, cell: CellType) -> CellType:
        """Functions that share a variable go on to share it."""
        return self._cells.setdefault(id(cell), CellType())

    def _fill(self, cell: CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # a variable without a value
            return
        self._cells[id(cell)].cell_contents = self.of(content)


def _without_bound(made: Any, held: dict[str, Any]) -> None:
    """Leave out an object's own methods, such as a step that was compiled: the class has them, and an object that holds
    them is kept until garbage is collected."""
    if isinstance(made, nn.Module):
        held.pop("_compiled_call_impl", None)
    own = [
        name
        for name, value in held.items()
        if isinstance(value, MethodType) and value.__self__ is made and _is_of_class(value.__func__, made)
    ]
    for name in own:
        del held[name]


def _is_of_class(function: Any, owner: Any) -> bool:
    return getattr(type(owner), getattr(function, "__name__", ""), None) is function
