"""Groups of parameters: those that weight decay reaches, those that are matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from dlblocks.errors import UserError

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def decay_groups(
    model: nn.Module, weight_decay: float, decay_norm_and_bias: bool = False
) -> list[dict[str, Any]]:
    """The parameter groups of a model: those that decay, then those that do not.

    Decay keeps weights small so that the function is smooth. A bias, the scale of a norm, a PReLU
    slope and other parameters of at most one dimension do not serve that end and are left alone,
    unless `decay_norm_and_bias`. Each group is in the order of the model's modules; frozen parameters
    are left out, tied ones come once, and a group without parameters is left out. With
    `weight_decay == 0` there is nothing to tell apart, so there is one group.

    Raises:
        UserError: nothing to train, or a lazy layer whose shape is not yet known.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [(len(group["params"]), group["weight_decay"]) for group in decay_groups(model, 0.1)]
    [(1, 0.1), (3, 0.0)]
    """
    decayed: list[nn.Parameter] = []
    left_alone: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if is_lazy(parameter):
                raise UserError(
                    f"{type(module).__name__} does not know its shape yet: run one batch through the model"
                    " before the optimizer is made."
                )
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            apart = weight_decay > 0 and not decay_norm_and_bias and _left_alone(module, name, parameter)
            (left_alone if apart else decayed).append(parameter)
    if not seen:
        raise UserError(
            f"{type(model).__name__} has nothing to train: it has no parameter with requires_grad=True."
        )
    if not weight_decay:
        return [{"params": decayed}]
    groups = ((decayed, weight_decay), (left_alone, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _left_alone(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or "bias" in name or isinstance(module, _NORMS)


def matrix_groups(params_or_groups: Iterable[Any], flag: str) -> list[dict[str, Any]]:
    """Each group parted into its matrices, with `flag` True, and the rest, with `flag` False.

    A matrix has two dimensions or more: the kernels of a convolution are one, flattened behind their
    outputs. A group that has the flag already is left as it is.
    """
    items = list(params_or_groups)
    parted = []
    for group in items if items and isinstance(items[0], dict) else [{"params": items}]:
        if flag in group:
            parted.append(group)
            continue
        for wanted in (True, False):
            members = [item for item in group["params"] if (tensor_of(item).ndim >= 2) == wanted]
            if members:
                parted.append({**group, "params": members, flag: wanted})
    return parted


def tensor_of(item: Any) -> Tensor:
    """A parameter, also of a `(name, parameter)` pair."""
    tensor: Tensor = item[1] if isinstance(item, tuple) else item
    return tensor
