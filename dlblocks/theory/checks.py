"""What may stand as an activation: a function of the features of one instance, the same in training as in evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlblocks.errors import UserError
from dlblocks.theory.quadrature import Function

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)
DROPOUTS = nn.modules.dropout._DropoutNd
ALPHA_DROPOUTS = (nn.AlphaDropout, nn.FeatureAlphaDropout)
# What noise may add to the mean square: rrelu's slopes, by default, add 0.4 % to their mean's.
_NOISE = 0.01


def check_parts(module: nn.Module, name: str) -> None:
    """Refuse what has an argument of its own, or belongs to the layers around an activation.

    Raises:
        UserError: the module holds a norm layer, dropout, or weights.
    """
    for part in module.modules():
        subject = f"activation={name}:" if part is module else f"activation={name}: its {type(part).__name__}"
        if isinstance(part, NORMS):
            raise UserError(
                f"{subject} is no activation but a norm, which acts on the layer's outputs before it: give the"
                " activation alone, with norm='batch', 'layer' or 'rms'."
            )
        if isinstance(part, ALPHA_DROPOUTS) and part.p > 0:
            raise UserError(f"{subject} is alpha dropout, which the theory does not model.")
        if isinstance(part, DROPOUTS) and part.p > 0:
            raise UserError(
                f"{subject} acts in training only: give the activation alone, with dropout={part.p:g}."
            )
        if any(parameter.ndim > 1 for parameter in part.parameters(recurse=False)):
            raise UserError(
                f"{subject} has weights of its own: the theory is of an activation between two layers."
            )


def check_behaviour(function: Function, training: Function, features: int, name: str) -> None:
    """Try out whether each instance alone decides what becomes of it.

    Args:
        function, training: the activation as in evaluation and as in training.
        features: how many to try it on.

    Raises:
        UserError: it can't be applied to `(instances, features)`, gives no finite numbers, is random, or differs
            between training and evaluation, or lets instances act on one another.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, features, generator=draw, dtype=torch.float64)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        whole, again = _applied(function, x, name), _applied(training, x, name)
        apart = torch.cat([_applied(function, half, name) for half in (x[:2], x[2:])])
    if not whole.isfinite().all():
        raise UserError(f"activation={name}: gives numbers that are not finite for standard normal ones.")
    if not _alike(again, whole, _NOISE):
        raise UserError(
            f"activation={name}: gives other values at random, or in training than in evaluation; the theory takes"
            " functions that don't. Dropout is given by dropout=p, a norm by norm='batch', 'layer' or 'rms'."
        )
    if not _alike(apart, whole, 1e-9):
        raise UserError(
            f"activation={name}: what an instance gives depends on the others of its batch; the theory takes"
            " functions of one instance. A norm is given by norm='batch', 'layer' or 'rms'."
        )


def _applied(function: Callable[[Tensor], object], x: Tensor, name: str) -> Tensor:
    try:
        y = function(x)
    except Exception as error:
        raise UserError(
            f"activation={name}: can't be applied to {len(x)} instances of {x.shape[1]} features: {error}"
        ) from error
    if not (isinstance(y, Tensor) and y.ndim == 2 and len(y) == len(x) and y.is_floating_point()):
        got = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(
            f"activation={name}: must give (instances, features) for such, got {got} for {tuple(x.shape)}."
        )
    return y


def _alike(one: Tensor, other: Tensor, share: float) -> bool:
    """Whether the difference has at most this share of the mean square."""
    if one.shape != other.shape:
        return False
    return bool((one - other).square().mean() <= share * other.square().mean() + 1e-24)
