"""Initialisers whose variance follows from the size of the layer. All fill `tensor` in place and return it.

`fans` are those of the layer; without them they are taken from the tensor's shape. All raise `UserError`
for a tensor of fewer than two dimensions.
"""

from __future__ import annotations

from math import sqrt

from torch import Generator, Tensor
from torch.nn import init

from dlblocks.initializers.fans import Fans, fans_of
from dlblocks.initializers.plain import filled_wide, truncated_normal

# Standard deviation of a standard normal cut at +-2.
_TRUNCATED_STD = 0.87962566103423978


def variance_scaling(
    tensor: Tensor,
    *,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    fans: Fans | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Variance `scale / n`: `n` is `fan_in`, `fan_out`, their mean (`fan_avg`) or the root of their product
    (`fan_geo_avg`). The general form of LeCun's, Glorot's and He's.

    Args:
        tensor: to fill.
        scale: of the variance.
        mode: `fan_in`, `fan_out`, `fan_avg` or `fan_geo_avg`.
        distribution: `truncated_normal` (cut at 2 standard deviations, variance corrected), `normal`, `uniform`.
        fans: of the layer.
        generator: of the random values.
    """
    fan_in, fan_out = _fans(tensor, fans)
    size = {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": (fan_in + fan_out) / 2,
        "fan_geo_avg": sqrt(fan_in * fan_out),
    }[mode]
    if distribution == "truncated_normal":
        return _truncated(tensor, scale / size, generator)
    if distribution == "uniform":
        return _uniform(tensor, scale / size, generator)
    return init.normal_(tensor, 0.0, sqrt(scale / size), generator=generator)


def lecun_normal(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:
    """Truncated normal of variance `1 / fan_in` (Klambauer et al. 2017, arXiv:1706.02515)."""
    return _truncated(tensor, 1 / _fans(tensor, fans).fan_in, generator)


def lecun_uniform(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:
    """Uniform of variance `1 / fan_in`: bounds `+-sqrt(3 / fan_in)`."""
    return _uniform(tensor, 1 / _fans(tensor, fans).fan_in, generator)


def he_normal(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:
    """Truncated normal of variance `2 / fan_in` (He et al. 2015, arXiv:1502.01852)."""
    return _truncated(tensor, 2 / _fans(tensor, fans).fan_in, generator)


def he_uniform(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:
    """Uniform of variance `2 / fan_in`: bounds `+-sqrt(6 / fan_in)` (He et al. 2015, arXiv:1502.01852)."""
    return _uniform(tensor, 2 / _fans(tensor, fans).fan_in, generator)


def glorot_normal(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:
    """Truncated normal of variance `2 / (fan_in + fan_out)` (Glorot & Bengio 2010)."""
    return _truncated(tensor, 2 / sum(_fans(tensor, fans)), generator)


def glorot_uniform(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:
    """Uniform of variance `2 / (fan_in + fan_out)` (Glorot & Bengio 2010)."""
    return _uniform(tensor, 2 / sum(_fans(tensor, fans)), generator)


def xavier_normal(
    tensor: Tensor, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    """Normal of variance `gain^2 * 2 / (fan_in + fan_out)`, as `torch.nn.init.xavier_normal_`."""
    return init.normal_(tensor, 0.0, gain * sqrt(2.0 / float(sum(_fans(tensor, fans)))), generator=generator)


def xavier_uniform(
    tensor: Tensor, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    """Uniform of variance `gain^2 * 2 / (fan_in + fan_out)`, as `torch.nn.init.xavier_uniform_`."""
    bound = sqrt(3.0) * (gain * sqrt(2.0 / float(sum(_fans(tensor, fans)))))
    return init.uniform_(tensor, -bound, bound, generator=generator)


def kaiming_normal(
    tensor: Tensor,
    *,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    fans: Fans | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal of standard deviation `gain / sqrt(fan)`, as `torch.nn.init.kaiming_normal_`."""
    std = _gain(nonlinearity, a) / sqrt(getattr(_fans(tensor, fans), mode))
    return init.normal_(tensor, 0.0, std, generator=generator)


def kaiming_uniform(
    tensor: Tensor,
    *,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    fans: Fans | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform of standard deviation `gain / sqrt(fan)`, as `torch.nn.init.kaiming_uniform_`."""
    bound = sqrt(3.0) * (_gain(nonlinearity, a) / sqrt(getattr(_fans(tensor, fans), mode)))
    return init.uniform_(tensor, -bound, bound, generator=generator)


def orthogonal(
    tensor: Tensor, *, gain: float = 1.0, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    """`gain` times a random orthogonal matrix, as `torch.nn.init.orthogonal_` (Saxe et al. 2013,
    arXiv:1312.6120): of the tensor seen as `(first, rest)`, the rows are orthonormal, or the columns if
    they are fewer."""
    _fans(tensor, fans)
    # QR knows no narrow formats.
    return filled_wide(tensor, lambda wide: init.orthogonal_(wide, gain, generator=generator))


def _fans(tensor: Tensor, fans: Fans | None) -> Fans:
    # An empty tensor has no values to draw, so its fans must only not divide by zero.
    return Fans(*(max(1, fan) for fan in (fans_of(tensor) if fans is None else fans)))


def _truncated(tensor: Tensor, variance: float, generator: Generator | None) -> Tensor:
    return truncated_normal(tensor, std=sqrt(variance) / _TRUNCATED_STD, generator=generator)


def _uniform(tensor: Tensor, variance: float, generator: Generator | None) -> Tensor:
    bound = sqrt(3 * variance)
    return init.uniform_(tensor, -bound, bound, generator=generator)


def _gain(nonlinearity: str, a: float) -> float:
    return init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
