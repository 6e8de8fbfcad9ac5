"""What a run on a batch shows of a net: its layers, and the activation before and after each.

An activation may be a module, or functions called anywhere in the code: `torch.sigmoid(x)`, `x * x.sigmoid()`. The
calls that lead from the outputs of a layer to the next one are noted and tried on other numbers: if each number is
mapped by itself, and not along a line, they are an activation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from dlblocks.errors import UserError, first_line
from dlblocks.initializers.chains import Chain, Kind, Slot, copied, kind_of, look, maps_features, number
from dlblocks.initializers.fans import CONVOLUTIONS, TRANSPOSED
from dlblocks.surgery import find_activations
from dlblocks.theory.checks import NORMS

_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.MultiheadAttention)
_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
# Of the functions that mix features, those that are activations: trials can't tell them from norms.
_WIDE = ("glu", "softmax", "log_softmax", "softmin")
_SUMS = ("add", "add_", "__radd__", "sub", "sub_", "__rsub__", "rsub")
# They take no more of a tensor than its shape and type; so do `zeros_like` and its kin.
_MAKERS = ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor")
# More calls in a row are followed no further: trying them out would take long.
_LONGEST = 64

Use: TypeAlias = Literal["layer", "function", "sum"]


@dataclass(frozen=True)
class Trace:
    """The layers of a net in the order of their first calls, and what is around them then.

    Args:
        layers: linear layers, convolutions and MultiheadAttention.
        recurrent: RNN, LSTM, GRU and their cells, with how often each is called.
        before: the activation whose outputs a layer takes, through pooling, dropout and the like; none of an
            attention, which takes several inputs.
        after: the activation that takes a layer's outputs; or `layer` if a layer or norm takes them, `function`
            if another function does, or nothing that could be seen, and `sum` if they are only added to others
            or given out.
    """

    layers: list[nn.Module]
    recurrent: dict[nn.Module, int]
    before: dict[nn.Module, Chain | None]
    after: dict[nn.Module, Chain | Use]


def trace(model: nn.Module, batch: Tensor) -> Trace:
    """Run a model on a batch, without gradients, and tell what is in it.

    Raises:
        UserError: the model can't be run on the batch.
    """
    found = find_activations(model)
    activations = {model.get_submodule(item.name) for item in found if item.how == "module"}
    inside = {part for module in activations for part in module.modules() if part is not module}
    watch = _Watch(model, activations)
    hooks = [hook for module in model.modules() if module not in inside for hook in watch.hooked(module)]
    try:
        watch.begin(batch)
        with watch:
            output = model(batch)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"init=auto: the model can't be run on the batch: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return watch.end(output)


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor that follows from the batch.

    Args:
        source: the number of a layer's output, or of another tensor, from which it comes by activations, pooling
            and the like.
        grid: equal for tensors that hold at each place what was made of the same number.
        chain: the calls from the source.
    """

    source: int
    grid: int
    chain: Chain


class _Watch(TorchFunctionMode):
    """Sees the calls of functions and modules in a run."""

    def __init__(self, model: nn.Module, activations: set[nn.Module]) -> None:
        super().__init__()
        self._activations = activations
        # By id, with a reference that tells whether it is still that tensor; None for constants, which don't
        # follow from the batch.
        self._known: dict[int, tuple[weakref.ref[Tensor], _Value | None]] = {}
        self._numbers = count()
        self._kinds: dict[Hashable, Kind] = {}
        self._copies: dict[Hashable, Callable[[Tensor], Tensor]] = {}
        self._depth = 0  # of modules whose inner calls don't count
        self._sources: dict[nn.Module, int] = {}
        self._recurrent: dict[nn.Module, int] = {}
        self._before: dict[nn.Module, Chain | None] = {}
        self._uses: dict[int, Chain | Use] = {}
        self._sums: set[int] = set()
        for module in model.modules():
            for tensor in (
                *vars(module).values(),
                *module.parameters(recurse=False),
                *module.buffers(recurse=False),
            ):
                if isinstance(tensor, Tensor):
                    self._know(tensor, None)

    def hooked(self, module: nn.Module) -> list[RemovableHandle]:
        """Have the calls of a module noted."""
        if module in self._activations or _is_layer(module):
            return [
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(self._leave, with_kwargs=True),
            ]
        if not list(module.children()) and type(module).__module__.partition(".")[0] != "torch":
            return [module.register_forward_hook(self._passed)]
        return []

    def begin(self, batch: Tensor) -> None:
        self._know(batch, self._new())

    def end(self, output: Any) -> Trace:
        for tensor in _tensors(output):
            self._use(tensor, "sum")
        after = {
            layer: self._uses.get(source, "sum" if source in self._sums else "function")
            for layer, source in self._sources.items()
        }
        return Trace(list(self._sources), self._recurrent, self._before, after)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        if not self._depth:
            self._note(func, args, kwargs or {}, made)
        return made

    def _note(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
        """Tell what a function has made."""
        outputs = list(_tensors(made))
        if not outputs:
            return
        inputs = list(_tensors([*args, *kwargs.values()]))
        values = [value for tensor in inputs if (value := self._value(tensor))]
        name = getattr(function, "__name__", "")
        if not values or name in _MAKERS or name.endswith("_like"):
            if values or all(self._is_constant(tensor) for tensor in inputs):
                for tensor in outputs:
                    self._know(tensor, None)
            return
        grids, sources = {value.grid for value in values}, {value.source for value in values}
        if len(grids) == 1 and isinstance(made, Tensor):
            chain = self._extended(function, args, kwargs, made)
            if chain is not None and self._followed(chain, values[0], inputs, made, wide=name in _WIDE):
                return
        if len(values) == 1 and not any(self._weighs(tensor) for tensor in inputs):
            self._pass(values[0], outputs)
            return
        # Where something is divided by a mean of its own, as by a norm, the mean is no activation's.
        curves = len(grids) == 1 or len(sources) > 1
        for tensor in inputs:
            self._use(tensor, "sum" if curves and name in _SUMS else "function", curves=curves)
        for tensor in outputs:
            self._know(tensor, self._new())

    def _enter(self, *_: Any) -> None:
        self._depth += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
        if self._depth == 1:
            inputs, outputs = list(_tensors([*args, *kwargs.values()])), list(_tensors(made))
            if module in self._activations and len(inputs) == len(outputs) == 1:
                self._activate(module, inputs[0], outputs[0])
            elif inputs and outputs:
                self._meet(module, inputs, outputs)
        self._depth -= 1

    def _activate(self, module: nn.Module, given: Tensor, made: Tensor) -> None:
        value = self._value(given) or self._new()
        chain = self._called(module, value.chain, in_place=made is given)
        if chain is None or not self._followed(chain, value, [given], made, wide=True):
            self._pass(value, [made])

    def _meet(self, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Note a layer, a recurrent layer or a norm."""
        given = self._value(inputs[0])
        for tensor in inputs:
            self._use(tensor, "layer")
        for tensor in outputs:
            self._know(tensor, self._new())
        made = self._value(outputs[0])
        if isinstance(module, _RECURRENT):
            self._recurrent[module] = self._recurrent.get(module, 0) + 1
        elif isinstance(module, _LAYERS) and module not in self._sources and made is not None:
            self._sources[module] = made.source
            alone = not isinstance(module, nn.MultiheadAttention)
            self._before[module] = given.chain if alone and given and given.chain.curved else None

    def _passed(self, module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        """Note a module of others whose calls could not be seen, as those of scripted code."""
        given = args[0] if args else None
        if self._depth or not isinstance(given, Tensor) or not isinstance(made, Tensor):
            return
        value = self._value(given)
        if value is None or self._is_known(made):
            return
        self._depth += 1
        chain = None
        if all(parameter.numel() == max(parameter.shape, default=1) for parameter in module.parameters()):
            chain = self._called(module, value.chain, in_place=False)
        if chain is None or not self._followed(chain, value, [given], made, wide=False):
            self._pass(value, [made])
        self._depth -= 1

    def _pass(self, value: _Value, outputs: Sequence[Tensor]) -> None:
        """Note what leaves an activation as it is: pooling, dropout, another shape."""
        for tensor in outputs:
            self._know(tensor, replace(value, grid=next(self._numbers)))

    def _followed(
        self, chain: Chain, value: _Value, inputs: Sequence[Tensor], made: Tensor, *, wide: bool
    ) -> bool:
        """Note what an activation, or a function along a line, has made; whether it was one."""
        if all(tensor.shape == made.shape for tensor in inputs if self._value(tensor)):
            if chain.key not in self._kinds:
                self._kinds[chain.key] = kind_of(chain)
            kind = self._kinds[chain.key]
            if kind != "neither":
                self._know(made, replace(value, chain=replace(chain, curved=kind == "curve")))
                return True
        if not wide or len(inputs) != 1 or not made.numel():
            return False
        chain = replace(chain, curved=True, ratio=chain.ratio * inputs[0].numel() / made.numel())
        if not maps_features(chain):
            return False
        self._know(made, _Value(value.source, next(self._numbers), chain))
        return True

    def _extended(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Tensor
    ) -> Chain | None:
        """The chain with a function at its end; None if it takes what can't be given again."""
        filled: dict[int | str, Any] = {}
        keys: list[Hashable] = [function]
        length, ratio = 1, 1.0
        given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for place, value in given:
            known = self._value(value) if isinstance(value, Tensor) else None
            if known is not None:
                length, ratio = length + known.chain.length, known.chain.ratio
                filled[place] = Slot(known.chain)
                keys.append((place, known.chain.key))
            elif isinstance(value, Tensor):
                constant = None if self._spans(value, made) else number(value)
                if constant is None:
                    return None
                filled[place] = constant
                keys.append((place, float(constant), constant.dtype))
            elif any(True for _ in _tensors(value)):
                return None
            else:
                filled[place] = False if place == "training" else value
                keys.append((place, repr(value)))
        if length > _LONGEST:
            return None
        return Chain(
            tuple(keys),
            function,
            tuple(filled[place] for place in range(len(args))),
            {name: filled[name] for name in kwargs},
            in_place=any(value is made for _, value in given),
            length=length,
            ratio=ratio,
        )

    def _called(self, module: nn.Module, chain: Chain, *, in_place: bool) -> Chain | None:
        """The chain with a module at its end; None if the module can't be copied."""
        key = look(module)
        if key not in self._copies:
            try:
                self._copies[key] = copied(module)
            except Exception:  # others may keep in a module what can't be copied
                return None
        return Chain(
            (key, chain.key),
            self._copies[key],
            (Slot(chain),),
            in_place=in_place,
            length=chain.length + 1,
            ratio=chain.ratio,
        )

    def _use(self, tensor: Tensor, use: Use, *, curves: bool = True) -> None:
        """Note what takes a tensor: the first to take it counts, and sums only if nothing else does."""
        value = self._value(tensor)
        if value is None or not tensor.is_floating_point():
            return
        if curves and value.chain.curved:
            self._uses.setdefault(value.source, value.chain)
        elif use == "sum":
            self._sums.add(value.source)
        else:
            self._uses.setdefault(value.source, use)

    def _new(self) -> _Value:
        return _Value(next(self._numbers), next(self._numbers), Chain())

    def _know(self, tensor: Tensor, value: _Value | None) -> None:
        self._known[id(tensor)] = weakref.ref(tensor), value

    def _is_known(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        return known is not None and known[0]() is tensor

    def _value(self, tensor: Tensor) -> _Value | None:
        return self._known[id(tensor)][1] if self._is_known(tensor) else None

    def _is_constant(self, tensor: Tensor) -> bool:
        return self._is_known(tensor) and self._value(tensor) is None

    def _weighs(self, tensor: Tensor) -> bool:
        """Whether it holds weights, or the like, and not places or a single number."""
        return self._value(tensor) is None and tensor.numel() > 1 and tensor.is_floating_point()

    def _spans(self, tensor: Tensor, made: Tensor) -> bool:
        """Whether a tensor of unknown origin has a row for each input, so that it may follow from the batch."""
        rows = tensor.ndim == made.ndim and tensor.shape[:1] == made.shape[:1] != (1,)
        return rows and not self._is_constant(tensor)


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a layer or a norm; a recurrent layer or attention that others call in their way is none."""
    if isinstance(module, (*_RECURRENT, nn.MultiheadAttention)):
        return any(type(module).forward is kind.forward for kind in (*_RECURRENT, nn.MultiheadAttention))
    return isinstance(module, (*_LAYERS, *NORMS))


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
