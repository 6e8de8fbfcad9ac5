"""Initialise the weights and biases of any module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Generator, Tensor, nn
from torch.nn.parameter import is_lazy

from dlblocks.errors import UserError
from dlblocks.factory import FOLLOWS, initializer
from dlblocks.initializers.auto import adjust
from dlblocks.initializers.fans import CONVOLUTIONS, TRANSPOSED, Fans, fans_of
from dlblocks.initializers.plain import default
from dlblocks.registry import REGISTRY, Spec, name_of, parse
from dlblocks.rules import assign, split

KNOWN = (
    "Linear, Bilinear, convolutions and their transposes, MultiheadAttention, RNN, LSTM, GRU and their cells"
)
_LAZY = "init: the model has lazy layers without a size; run one batch through it first."

Parts = list[tuple[Tensor, "Fans | None"]]


class _Piece(NamedTuple):
    """A part of a parameter that is one matrix of its own, or a bias."""

    values: Tensor
    fans: Fans | None
    parameter: Tensor
    layer: str


def initialize(
    model: nn.Module,
    init: Spec,
    bias_init: Spec = "auto",
    *,
    generator: Generator | None = None,
    batch: Tensor | None = None,
) -> nn.Module:
    """Fill all weights by `init` and all biases by `bias_init`, in place.

    Every matrix is filled on its own with its own fans: query, key and value of an attention, each gate
    of a recurrent layer, each group of a convolution. Norm scales, embeddings, the slopes of PReLU and parameters of unknown modules
    stay as they are unless a rule names them; a parameter that several modules share is filled once.

    Args:
        model: any module.
        init: a name, a `{name: ..., params}` mapping, or a callable `(tensor, fans=, generator=)`; or `auto`,
            which makes all weights orthogonal and then sets scales and biases on a batch, by what the
            activations of the model need, be they modules or functions called in its code
            (`initializers.auto.adjust`; of recurrent layers and attention, `initializers.sequences`). The
            mapping may have `rules`, `{pattern: initialiser}`: a parameter whose name matches the shell
            pattern gets that initialiser instead; the first that matches wins.
        bias_init: as `init`, without rules; `auto` is zeros, or with init=default what the layers came with.
        generator: of all random values; the global one if None.
        batch: a tensor of inputs as the model takes them, some hundred; for init=auto.

    Returns:
        The model.

    Raises:
        UserError: an initialiser that needs fans is given for biases, no weight is found, or no bias for a
            bias_init, a rule matches nothing, a layer is lazy and has no size yet, or its values are computed
            from others, as under weight norm; init=auto without a batch, with one that the model
            can't be run on, or with a bias_init.

    >>> import torch
    >>> net = nn.Linear(2, 1)
    >>> net = initialize(net, {"name": "he_normal", "rules": {"bias": {"name": "constant", "value": 0.1}}})
    >>> net.bias.tolist() == [torch.tensor(0.1).item()]
    True
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"init: give a model, not {type(model).__name__}; of one tensor, dlblocks.initializer(name)(tensor)."
        )
    if name_of(init) == FOLLOWS["init"]:
        if batch is None:
            raise UserError("init=auto: needs a batch of inputs: initialize(model, 'auto', batch=x).")
        if name_of(bias_init) != FOLLOWS["bias_init"]:
            raise UserError(
                f"bias_init={name_of(bias_init)}: init=auto sets the biases too; leave it at auto."
            )
        initialize(model, "orthogonal", generator=generator)
        adjust(model, batch)
        return model
    init, rules = split(init)
    fill_weight = initializer(init, where="init")
    explicit = name_of(bias_init) != FOLLOWS["bias_init"]
    if not explicit:
        bias_init = "default" if _leaves(fill_weight) else "zeros"
    _check_fanless(bias_init, "bias_init", "biases don't")
    fill_bias = initializer(bias_init, where="bias_init")
    ruled = _ruled(model, rules)
    found, biased = bool(ruled), False
    known = set()
    fill: Callable[..., Any]
    for piece in _pieces(model):
        known.add(id(piece.parameter))
        found, biased = found or piece.fans is not None, biased or piece.fans is None
        fill = ruled.get(id(piece.parameter), fill_bias if piece.fans is None else fill_weight)
        if not _leaves(fill):
            _check_fillable(piece)
            fill(piece.values, fans=piece.fans, generator=generator)
    for parameter in model.parameters():
        if id(parameter) not in known and id(parameter) in ruled:
            _fill_whole(parameter, ruled[id(parameter)], generator)
    if not found and not _leaves(fill_weight):
        raise UserError(f"init={name_of(init)}: matched no parameters of the model. Layers known: {KNOWN}.")
    if not biased and explicit and not _leaves(fill_bias):
        raise UserError(
            f"bias_init={name_of(bias_init)}: the model has no biases to fill (of the layers known: {KNOWN})."
            " Leave it at auto."
        )
    return model


def _ruled(model: nn.Module, rules: Mapping[str, Spec]) -> dict[int, Callable[..., Any]]:
    """What the rules fill each parameter with, by the parameter's id.

    Raises:
        UserError: as `assign`, or an initialiser that needs fans for a parameter that has none.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    ruled: dict[int, Callable[..., Any]] = {}
    for key, pattern in assign(names, rules).items():
        where = f"init.rules.{pattern}"
        for name in names[key]:
            if not is_lazy(parameters[name]) and parameters[name].ndim < 2:
                _check_fanless(rules[pattern], where, f"{name}, of one dimension, does not")
        ruled[key] = initializer(rules[pattern], where=where)
    return ruled


def _pieces(model: nn.Module) -> Iterator[_Piece]:
    seen: dict[int, Tensor] = {}  # holds the tensors too, so that no id is used again
    for name, module in model.named_modules():
        for parameter, parts in _parts(module):
            if id(parameter) in seen:
                continue
            seen[id(parameter)] = parameter
            for values, fans in parts:
                yield _Piece(values, fans, parameter, f"{name} ({type(module).__name__})".strip())


def _parts(module: nn.Module) -> Iterator[tuple[Tensor, Parts]]:
    """Each parameter of a layer, cut into its matrices; fans of None mark a bias."""
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            yield _stacked(module.in_proj_weight, 3)
        else:
            for weight in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
                yield _stacked(weight, 1)
        for bias in (module.in_proj_bias, module.bias_k, module.bias_v):
            if bias is not None:
                yield bias, [(bias.data, None)]
    elif isinstance(module, nn.RNNBase):
        for weights in module.all_weights:
            yield from _gates(module.hidden_size, *weights)
    elif isinstance(module, nn.RNNCellBase):
        yield from _gates(
            module.hidden_size, module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh
        )
    elif isinstance(module, (nn.Linear, nn.Bilinear, *CONVOLUTIONS, *TRANSPOSED)):
        weight = module.weight
        if is_lazy(weight):
            yield weight, [(weight.data, Fans(0, 0))]
        else:
            fans, groups = fans_of(weight, module), getattr(module, "groups", 1)
            yield weight, [(block, fans) for block in weight.data.chunk(groups)]
        if module.bias is not None:
            yield module.bias, [(module.bias.data, None)]


def _gates(hidden_size: int, *parameters: Tensor | None) -> Iterator[tuple[Tensor, Parts]]:
    for parameter in parameters:
        if parameter is None:
            continue
        if parameter.ndim == 1:
            yield parameter, [(parameter.data, None)]
        else:
            # A projection has fewer rows than one gate.
            yield _stacked(parameter, max(1, parameter.shape[0] // hidden_size))


def _stacked(weight: Tensor, count: int) -> tuple[Tensor, Parts]:
    return weight, [(block, fans_of(block)) for block in weight.data.chunk(count)]


def _fill_whole(parameter: nn.Parameter, fill: Callable[..., Any], generator: Generator | None) -> None:
    """Fill a parameter of which nothing is known but its shape."""
    if _leaves(fill):
        return
    if is_lazy(parameter):
        raise UserError(_LAZY)
    fill(parameter.data, fans=fans_of(parameter) if parameter.ndim >= 2 else None, generator=generator)


def _leaves(fill: Callable[..., Any]) -> bool:
    """Whether this is `default`, by its name or as a ready object."""
    return getattr(fill, "func", fill) is default


def _check_fillable(piece: _Piece) -> None:
    if is_lazy(piece.parameter):
        raise UserError(_LAZY)
    # Weight norm, pruning and other parametrisations compute the values anew at each use.
    if not isinstance(piece.parameter, nn.Parameter):
        raise UserError(
            f"{'bias_init' if piece.fans is None else 'init'}: layer {piece.layer} computes its values from"
            " other parameters (weight norm, spectral norm, pruning), so filling them would have no effect."
            " Initialise the model before this is applied."
        )


def _check_fanless(init: Spec, where: str, lacking: str) -> None:
    if not isinstance(init, (str, Mapping)):
        return
    block, _ = parse("initializer", init, where)
    if block.tags.get("needs_fan"):
        fit = [
            n
            for n in REGISTRY.names("initializer")
            if not REGISTRY.get("initializer", n).tags.get("needs_fan")
        ]
        raise UserError(
            f"{where}={block.name}: needs fan_in and fan_out, which {lacking} have."
            f" Those that fit: {', '.join(fit)}."
        )
