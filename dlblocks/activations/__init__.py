"""The catalogue of activations: one entry a block. Shapes are `(*, features) -> (*, features)`, any
`*`, unless the entry says otherwise."""

from __future__ import annotations

from typing import Any

from dlblocks.records import Block, Param

_DIM = Param("dim", -1, "int", "the dimension it works along; -1 is the features")


def _entry(name: str, target: str, *params: Param, elementwise: bool = True, **about: Any) -> Block:
    tags = {"elementwise": elementwise, **about.pop("tags", {})}
    about.setdefault("shape", "(*, features) -> (*, features)")
    return Block(kind="activation", name=name, target=target, params=params, tags=tags, **about)


BLOCKS: tuple[Block, ...] = (
    _entry(
        "linear",
        "torch.nn:Identity",
        aliases=("identity",),
        source="none: the absence of an activation",
        summary="The input unchanged.",
        formula="x",
    ),
    _entry(
        "sigmoid",
        "torch.nn:Sigmoid",
        aliases=("logistic",),
        source="Rumelhart et al. 1986 (Nature 323)",
        summary="Squashes to (0, 1); saturates at both ends, and its mean is not zero.",
        formula="1 / (1 + exp(-x))",
    ),
    _entry(
        "tanh",
        "torch.nn:Tanh",
        source="LeCun et al. 1998 (Efficient BackProp)",
        summary="Squashes to (-1, 1) around zero.",
        formula="(exp(x) - exp(-x)) / (exp(x) + exp(-x))",
    ),
    _entry(
        "relu",
        "torch.nn:ReLU",
        summary="Rectified linear unit.",
        formula="max(x, 0)",
        source="Nair & Hinton 2010 (ICML)",
    ),
    _entry(
        "leaky_relu",
        "torch.nn:LeakyReLU",
        Param(
            "negative_slope",
            0.1,
            "float",
            "slope for x < 0; torch's default is 0.01",
            "[0, inf)",
            origin=0.01,
        ),
        aliases=("lrelu",),
        summary="ReLU whose negative side keeps a small slope, so that no unit dies.",
        formula="x if x >= 0 else negative_slope * x",
        source="Maas et al. 2013 (ICML workshop)",
        note="slope 0.1 here; torch and JAX have 0.01, Keras's layer 0.3, its function 0.2",
    ),
    _entry(
        "prelu",
        "torch.nn:PReLU",
        Param("num_parameters", 1, "int", "1 slope for all, or one for each feature", "[1, inf)"),
        Param("init", 0.25, "float", "the slope to start from"),
        aliases=("parametric_relu",),
        summary="Leaky ReLU whose slope a is learnt.",
        formula="x if x >= 0 else a * x",
        shape="(N, features, *) -> (N, features, *)",
        source="He et al. 2015, arXiv:1502.01852",
        note="one shared slope as in torch; Keras learns one for each element and starts from zero",
        tags={"trainable": True},
    ),
    _entry(
        "elu",
        "torch.nn:ELU",
        Param("alpha", 1.0, "float", "the value approached for x -> -inf is -alpha", "[0, inf)"),
        summary="Exponential linear unit: smooth, with a mean near zero.",
        formula="x if x > 0 else alpha * (exp(x) - 1)",
        source="Clevert et al. 2015, arXiv:1511.07289",
    ),
    _entry(
        "celu",
        "torch.nn:CELU",
        Param("alpha", 1.0, "float", "scale of the negative side", "(0, inf)"),
        summary="ELU made continuously differentiable for every alpha.",
        formula="max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)",
        source="Barron 2017, arXiv:1704.07483",
    ),
    _entry(
        "selu",
        "torch.nn:SELU",
        summary="Scaled ELU that drives activations to mean 0 and variance 1; pair it with lecun_normal.",
        formula="s * (max(x, 0) + min(a * (exp(x) - 1), 0)), a = 1.6732632423543772, s = 1.0507009873554805",
        source="Klambauer et al. 2017, arXiv:1706.02515",
    ),
    _entry(
        "maxout",
        "dlblocks.activations.maxout:Maxout",
        Param(
            "pieces",
            2,
            "int",
            "linear pieces for each output; the layer before is so many times wider",
            "[1, inf)",
        ),
        _DIM,
        summary="The largest of k linear functions, which the layer before holds: a learnt convex function.",
        formula="max_j x[j * features + i], j = 0 .. pieces - 1",
        shape="(*, pieces * features) -> (*, features)",
        source="Goodfellow et al. 2013, arXiv:1302.4389",
        elementwise=False,
        tags={"width_ratio": "pieces"},
    ),
    _entry(
        "softmax",
        "torch.nn:Softmax",
        Param("dim", -1, "int", "the dimension that sums to 1; -1 is the features", origin=None),
        source="Bridle 1989 (NIPS)",
        summary="Positive and summing to 1: the output of a multiclass net.",
        formula="exp(x_i) / sum_j exp(x_j)",
        elementwise=False,
    ),
    _entry(
        "log_softmax",
        "torch.nn:LogSoftmax",
        Param("dim", -1, "int", "the dimension whose exponentials sum to 1; -1 is the features", origin=None),
        source="Bridle 1989 (NIPS)",
        summary="The logarithm of softmax, computed without overflow.",
        formula="x_i - log(sum_j exp(x_j))",
        elementwise=False,
    ),
    _entry(
        "gelu",
        "torch.nn:GELU",
        Param("approximate", "none", "str", "exact, or the tanh approximation", choices=("none", "tanh")),
        summary="x times the probability that a standard normal is below x.",
        formula="x * Phi(x) = x * (1 + erf(x / sqrt(2))) / 2; tanh: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2",
        source="Hendrycks & Gimpel 2016, arXiv:1606.08415",
        note="exact by default, as in torch; JAX's default is the tanh approximation",
    ),
    _entry(
        "silu",
        "torch.nn:SiLU",
        aliases=("swish",),
        summary="x gated by its own sigmoid.",
        formula="x / (1 + exp(-x))",
        source="Elfwing et al. 2017, arXiv:1702.03118; Ramachandran et al. 2017, arXiv:1710.05941",
    ),
    _entry(
        "mish",
        "torch.nn:Mish",
        summary="Smooth and not monotonic, much like SiLU.",
        formula="x * tanh(log(1 + exp(x)))",
        source="Misra 2019, arXiv:1908.08681",
    ),
    _entry(
        "softplus",
        "torch.nn:Softplus",
        Param("beta", 1.0, "float", "sharpness; large values approach ReLU", "(0, inf)"),
        Param("threshold", 20.0, "float", "beta * x above which it is x itself, against overflow"),
        summary="Smooth ReLU, positive everywhere.",
        formula="log(1 + exp(beta * x)) / beta",
        source="Dugas et al. 2000 (NIPS)",
    ),
    _entry(
        "softsign",
        "torch.nn:Softsign",
        summary="Like tanh with slower saturation.",
        formula="x / (1 + |x|)",
        source="Bergstra et al. 2009 (technical report 1337, Montreal)",
    ),
    _entry(
        "hardswish",
        "torch.nn:Hardswish",
        aliases=("hard_swish", "hard_silu"),
        summary="SiLU made of straight pieces and one parabola.",
        formula="x * min(max(x + 3, 0), 6) / 6",
        source="Howard et al. 2019, arXiv:1905.02244",
    ),
    _entry(
        "relu6",
        "torch.nn:ReLU6",
        summary="ReLU cut at 6, for low precision.",
        formula="min(max(x, 0), 6)",
        source="Krizhevsky 2010 (convolutional deep belief networks on CIFAR-10)",
    ),
    _entry(
        "glu",
        "torch.nn:GLU",
        _DIM,
        summary="Half of the features, gated by the sigmoid of the other half.",
        formula="a * sigmoid(b), x = [a, b]",
        shape="(*, 2 * features) -> (*, features)",
        source="Dauphin et al. 2016, arXiv:1612.08083",
        elementwise=False,
        tags={"width_ratio": 2},
    ),
)
