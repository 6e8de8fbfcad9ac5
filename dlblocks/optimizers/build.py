"""An optimizer from its name and a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlblocks.errors import UserError
from dlblocks.optimizers.groups import decay_groups, matrix_groups, tensor_of
from dlblocks.optimizers.params import DECAY_NORM_AND_BIAS, IMPLEMENTATION
from dlblocks.records import Block
from dlblocks.registry import Spec, parse, parse_whole


def optimizer(
    spec: Spec, model_or_params: nn.Module | Iterable[Any], /, where: str = "optimizer", **params: Any
) -> Optimizer:
    """An optimizer of a model's trainable parameters, or of the given parameters or groups.

    `spec` is a name, a `{name: ..., params}` mapping, an Optimizer class or partial (called with the
    groups), or a ready optimizer, which is returned. Of a model, weight decay leaves biases and norms
    alone (see `decay_groups`); given parameters or groups stay as they are.

    Raises:
        UserError: unknown name or parameter, a value or a combination that is not legal, a model with
            nothing to train, an implementation torch does not have here.

    >>> net = nn.Linear(2, 1)
    >>> [group["weight_decay"] for group in optimizer("adamw", net, lr=0.01).param_groups]
    [0.01, 0.0]
    """
    if isinstance(spec, Optimizer):
        if params:
            raise UserError(f"{where}: a ready optimizer takes no parameters, got {', '.join(params)}.")
        return spec
    if callable(spec):
        decay = params.get("weight_decay", _default(spec, "weight_decay"))
        groups = _groups(model_or_params, decay if isinstance(decay, (int, float)) else 0.0, False, where)
        return _call(spec, groups, params, where)
    block, full = parse_whole("optimizer", spec, params, where)
    if block.tags.get("wraps"):
        return _wrapped(block, full, model_or_params, where)
    _check_together(full, where)
    target = block.load()
    # A block of somebody else may have parameters of these names: those are its own.
    everywhere = full.pop("decay_norm_and_bias") if DECAY_NORM_AND_BIAS in block.params else False
    groups = _groups(model_or_params, full.get("weight_decay") or 0.0, everywhere, where)
    if block.tags.get("sparse"):
        _check_sparse(model_or_params, where)
    if flag := block.tags.get("matrix_flag"):
        groups = matrix_groups(groups, flag)
    if IMPLEMENTATION in block.params:
        choice = full.pop("implementation")
        unfusable = full.get("momentum") == 0 or _has_sparse_gradients(model_or_params)
        # Divided among processes (`fully_shard`); torch has fused updates of these for some optimisers only.
        unfusable |= any(hasattr(tensor, "placements") for tensor in _tensors(groups))
        full |= _implementation(choice, target, list(_tensors(groups)), unfusable, where)
    built = _call(target, groups, full, where)
    if block.tags.get("second_order"):
        built.register_step_pre_hook(functools.partial(_demand_graph, block.name))
    return built


def _wrapped(
    block: Block, params: dict[str, Any], model_or_params: nn.Module | Iterable[Any], where: str
) -> Optimizer:
    spec, rate = params.pop("base"), params.pop("lr")
    inner, given = parse("optimizer", spec, f"{where}.base")
    if inner.tags.get("wraps") or inner.tags.get("closure") or inner.tags.get("sparse"):
        raise UserError(
            f"{where}.base={inner.name}: {block.name} goes around optimisers that take one gradient a step,"
            " such as sgd or adamw."
        )
    if rate is not None:
        given["lr"] = rate
    base = optimizer({"name": inner.name, **given}, model_or_params, f"{where}.base")
    if block.tags["parts_decay"]:
        params["decoupled"] = inner.tags.get("kind_of_decay") == "decoupled"
    built: Optimizer = block.load()(base, **params)
    return built


def _call(target: Callable[..., Any], groups: list[Any], params: Mapping[str, Any], where: str) -> Optimizer:
    try:
        built: Optimizer = target(groups, **params)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if params.get("fused"):
        # A fused update can undo the loss scaling of mixed precision itself, and then no one else may:
        # Lightning refuses to clip its gradients. Left to the scaler, both work.
        built._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return built


def _demand_graph(
    name: str, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a step that measures the curvature: refuse gradients that can't be differentiated again."""
    if optimizer.param_groups[0].get("step", 0) % optimizer.update_period or "hessian" in kwargs:
        return None

    def check() -> None:
        grads = [theta.grad for group in optimizer.param_groups for theta in group["params"]]
        grads = [grad for grad in grads if grad is not None]
        if grads and not any(grad.requires_grad for grad in grads):
            raise UserError(
                f"optimizer={name}: measures the curvature, for which the backward pass has to keep its graph:"
                " call loss.backward(create_graph=True), in a LightningModule by overriding `backward`."
            )

    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        check()
        return None

    def checked() -> Any:
        loss = closure()
        check()
        return loss

    return (args[0], checked), {}


def _groups(
    model_or_params: nn.Module | Iterable[Any], weight_decay: float, everywhere: bool, where: str
) -> list[Any]:
    if isinstance(model_or_params, nn.Module):
        return decay_groups(model_or_params, weight_decay, everywhere)
    if isinstance(model_or_params, Tensor):
        raise UserError(f"{where}: give a model or a list of parameters, not one tensor.")
    if isinstance(model_or_params, (str, Mapping)) or not isinstance(model_or_params, Iterable):
        raise UserError(
            f"{where}: give a model, or a list of parameters or groups, not {type(model_or_params).__name__}."
        )
    return [
        {**item, "params": _listed(item["params"])} if isinstance(item, Mapping) else item
        for item in model_or_params
    ]


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _tensors(groups: Iterable[Any]) -> Iterator[Tensor]:
    """The parameters in tensors, `(name, tensor)` pairs, and groups of either."""
    for item in groups:
        if isinstance(item, Mapping):
            yield from _tensors(item["params"])
        else:
            yield tensor_of(item)


def _check_together(params: Mapping[str, Any], where: str) -> None:
    if "dampening" in params and params.get("nesterov") and (not params["momentum"] or params["dampening"]):
        raise UserError(
            f"{where}.nesterov=true: needs momentum > 0 and dampening = 0, got"
            f" momentum={params['momentum']:g}, dampening={params['dampening']:g}."
            f" Try {where}.momentum=0.9."
        )


def _default(target: Callable[..., Any], name: str) -> Any:
    parameter = inspect.signature(target).parameters.get(name)
    return parameter.default if parameter else None


def _has_sparse_gradients(model_or_params: nn.Module | Iterable[Any]) -> bool:
    return isinstance(model_or_params, nn.Module) and any(map(_is_sparse, model_or_params.modules()))


def _is_sparse(module: nn.Module) -> bool:
    return getattr(module, "sparse", False) is True


def _check_sparse(model_or_params: nn.Module | Iterable[Any], where: str) -> None:
    """Refuse a model with a dense gradient, which torch would only notice in the first step."""
    if not isinstance(model_or_params, nn.Module):
        return
    for path, module in model_or_params.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and not _is_sparse(module):
                raise UserError(
                    f"{where}: moves only rows that have a sparse gradient, as those of"
                    f" nn.Embedding(sparse=True); {'.'.join(filter(None, (path, name)))} has none."
                    " Try adam, or give it those parameters alone."
                )


def _implementation(
    choice: str, target: Callable[..., Any], tensors: list[Tensor], unfusable: bool, where: str
) -> dict[str, bool]:
    """The keywords that choose among torch's implementations of one update.

    `auto`, as measured on a CPU: fused where torch has it; else lists of tensors, which beat the loop
    on small nets and equal it on large ones. Without momentum SGD is a single operation, which fusing
    only slows; sparse gradients cannot be fused. On other devices torch's own choice stands where there
    is no fused one.
    """
    offered = [name for name in ("fused", "foreach") if name in inspect.signature(target).parameters]
    places = {(tensor.device, tensor.dtype) for tensor in tensors}

    def runs(name: str) -> bool:
        return name in offered and all(_runs(target, name, *place) for place in places)

    if choice == "single":
        return dict.fromkeys(offered, False)
    if choice != "auto":
        if not runs(choice):
            here = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
            raise UserError(
                f"{where}.implementation={choice}: torch has no {choice} {target.__name__} for {here}."
                f" Try {where}.implementation=auto."
            )
        return {choice: True}
    if not unfusable and runs("fused"):
        return {"fused": True}
    if all(device.type == "cpu" for device, _ in places) and runs("foreach"):
        return {"foreach": True}
    return {}


@functools.cache
def _runs(target: Callable[..., Any], implementation: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch can do it, found by doing it to one number: it depends on torch's version too."""
    try:
        probe = torch.zeros(1, device=device, dtype=dtype, requires_grad=True)
        probe.grad = torch.zeros_like(probe)
        target([probe], **{implementation: True}).step()
    except RuntimeError:
        return False
    return True
