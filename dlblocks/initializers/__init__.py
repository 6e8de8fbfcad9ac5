"""The catalogue of initialisers: one entry a block. Each fills a tensor in place.

`fan_in` and `fan_out` are the inputs of one output and the outputs of one input, as `fans.py` counts them.
"""

from __future__ import annotations

from typing import Any

from dlblocks.records import Block, Param

_KERAS = "truncated normal with corrected variance, as in Keras and JAX"
_NONLINEARITIES = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
)
_GLOROT = "Glorot & Bengio 2010 (AISTATS)"
_HE = "He et al. 2015, arXiv:1502.01852"
_LECUN = "LeCun et al. 1998 (Efficient BackProp); Klambauer et al. 2017, arXiv:1706.02515"

_GAIN = Param("gain", 1.0, "float", "factor of the standard deviation", "(0, inf)")
_KAIMING = (
    Param("a", 0.0, "float", "negative slope of leaky_relu, the default nonlinearity"),
    Param("mode", "fan_in", "str", "keep the variance forward or backward", choices=("fan_in", "fan_out")),
    Param("nonlinearity", "leaky_relu", "str", "activation that follows", choices=_NONLINEARITIES),
)


def _entry(name: str, function: str, *params: Param, needs_fan: bool = False, **about: Any) -> Block:
    target = f"dlblocks.initializers.{function}"
    tags = {"needs_fan": needs_fan}
    about["shape"] = "(outputs, inputs, *kernel), or as the layer has it" if needs_fan else "any"
    return Block(kind="initializer", name=name, target=target, params=params, tags=tags, **about)


BLOCKS: tuple[Block, ...] = (
    _entry(
        "default",
        "plain:default",
        source="the layer's or the model's own authors",
        summary="Leaves what the layer or the predefined model came with.",
        formula="w",
        note="torch's own for linear and convolution is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), biases too",
    ),
    _entry(
        "zeros",
        "plain:zeros",
        aliases=("zero",),
        source="torch.nn.init.zeros_",
        summary="All zero: right for biases; the units of a hidden layer would stay identical.",
        formula="0",
    ),
    _entry(
        "ones",
        "plain:ones",
        aliases=("one",),
        source="torch.nn.init.ones_",
        summary="All one; the units of a hidden layer would stay identical.",
        formula="1",
    ),
    _entry(
        "constant",
        "plain:constant",
        Param("value", 0.0, "float", "the value"),
        source="torch.nn.init.constant_",
        summary="All the same; the units of a hidden layer would stay identical.",
        formula="value",
    ),
    _entry(
        "normal",
        "plain:normal",
        Param("mean", 0.0, "float", "mean"),
        Param("std", 0.05, "float", "standard deviation", "[0, inf)"),
        aliases=("random_normal",),
        source="Keras RandomNormal",
        summary="Normal of a fixed standard deviation, whatever the size of the layer.",
        formula="N(mean, std^2)",
        differs_from={"torch": "std 1 by default", "jax": "std 0.01 by default"},
    ),
    _entry(
        "uniform",
        "plain:uniform",
        Param("low", -0.05, "float", "lower bound"),
        Param("high", 0.05, "float", "upper bound"),
        aliases=("random_uniform",),
        source="Keras RandomUniform",
        summary="Uniform of fixed bounds, whatever the size of the layer.",
        formula="U(low, high)",
        differs_from={"torch": "from 0 to 1 by default", "jax": "from 0 to 0.01 by default"},
    ),
    _entry(
        "truncated_normal",
        "plain:truncated_normal",
        Param("mean", 0.0, "float", "mean"),
        Param("std", 0.05, "float", "standard deviation before the cut", "(0, inf)"),
        aliases=("trunc_normal",),
        source="Keras TruncatedNormal",
        summary="Normal cut at two standard deviations.",
        formula="N(mean, std^2) within mean +- 2 std; the standard deviation left is 0.8796 std",
        differs_from={"torch": "cut at -2 and 2, whatever std is"},
    ),
    _entry(
        "lecun_normal",
        "scaling:lecun_normal",
        needs_fan=True,
        summary="Keeps the variance through a linear layer; the pair of selu.",
        formula="std = sqrt(1 / fan_in), truncated at 2 std / 0.8796",
        source=_LECUN,
        note=_KERAS,
    ),
    _entry(
        "lecun_uniform",
        "scaling:lecun_uniform",
        needs_fan=True,
        summary="Keeps the variance through a linear layer.",
        formula="U(-b, b), b = sqrt(3 / fan_in)",
        source=_LECUN,
    ),
    _entry(
        "he_normal",
        "scaling:he_normal",
        needs_fan=True,
        summary="Keeps the variance through a layer followed by ReLU.",
        formula="std = sqrt(2 / fan_in), truncated at 2 std / 0.8796",
        source=_HE,
        note=_KERAS,
        differs_from={"torch": "kaiming_normal_ is not truncated"},
    ),
    _entry(
        "he_uniform",
        "scaling:he_uniform",
        needs_fan=True,
        summary="Keeps the variance through a layer followed by ReLU.",
        formula="U(-b, b), b = sqrt(6 / fan_in)",
        source=_HE,
    ),
    _entry(
        "glorot_normal",
        "scaling:glorot_normal",
        needs_fan=True,
        summary="Between keeping the variance forward and backward; the pair of tanh and sigmoid.",
        formula="std = sqrt(2 / (fan_in + fan_out)), truncated at 2 std / 0.8796",
        source=_GLOROT,
        note=_KERAS,
        differs_from={"torch": "xavier_normal_ is not truncated"},
    ),
    _entry(
        "glorot_uniform",
        "scaling:glorot_uniform",
        needs_fan=True,
        summary="Between keeping the variance forward and backward; the default of Keras.",
        formula="U(-b, b), b = sqrt(6 / (fan_in + fan_out))",
        source=_GLOROT,
    ),
    _entry(
        "xavier_normal",
        "scaling:xavier_normal",
        _GAIN,
        needs_fan=True,
        summary="glorot_normal as in torch: not truncated, with a gain.",
        formula="N(0, std^2), std = gain * sqrt(2 / (fan_in + fan_out))",
        source=_GLOROT,
    ),
    _entry(
        "xavier_uniform",
        "scaling:xavier_uniform",
        _GAIN,
        needs_fan=True,
        summary="glorot_uniform as in torch, with a gain.",
        formula="U(-b, b), b = gain * sqrt(6 / (fan_in + fan_out))",
        source=_GLOROT,
    ),
    _entry(
        "kaiming_normal",
        "scaling:kaiming_normal",
        *_KAIMING,
        needs_fan=True,
        summary="he_normal as in torch: not truncated, with the gain of the nonlinearity.",
        formula="N(0, std^2), std = gain / sqrt(fan); gain = sqrt(2 / (1 + a^2)) for leaky_relu",
        source=_HE,
        note="grouped and transposed convolutions: fans.py says how they are counted here",
    ),
    _entry(
        "kaiming_uniform",
        "scaling:kaiming_uniform",
        *_KAIMING,
        needs_fan=True,
        summary="he_uniform as in torch, with the gain of the nonlinearity.",
        formula="U(-b, b), b = gain * sqrt(3 / fan); gain = sqrt(2 / (1 + a^2)) for leaky_relu",
        source=_HE,
        note="grouped and transposed convolutions: fans.py says how they are counted here",
    ),
    _entry(
        "orthogonal",
        "scaling:orthogonal",
        _GAIN,
        needs_fan=True,
        summary="Keeps lengths and angles: rows or columns are orthonormal.",
        formula="gain * Q of the QR decomposition of a normal matrix, signs by the diagonal of R",
        source="Saxe et al. 2013, arXiv:1312.6120",
        note="the tensor is seen as (first dimension, all others), as in torch; each group of a convolution for itself",
    ),
    _entry(
        "variance_scaling",
        "scaling:variance_scaling",
        Param("scale", 1.0, "float", "of the variance", "(0, inf)"),
        Param(
            "mode",
            "fan_in",
            "str",
            "what the variance is divided by",
            choices=("fan_in", "fan_out", "fan_avg", "fan_geo_avg"),
        ),
        Param(
            "distribution",
            "truncated_normal",
            "str",
            "of the values",
            choices=("truncated_normal", "normal", "uniform"),
        ),
        needs_fan=True,
        summary="The general form of lecun, glorot and he.",
        formula="variance scale / n; n = fan_in, fan_out, (fan_in + fan_out) / 2 or sqrt(fan_in fan_out)",
        source="Keras VarianceScaling, after He et al. 2015, arXiv:1502.01852",
        differs_from={"keras": "its normal is its truncated_normal; scale 1 by default"},
    ),
    _entry(
        "identity",
        "structured:identity",
        _GAIN,
        Param(
            "groups", 1, "int", "copies within so many groups of outputs (besides a layer's own)", "[1, inf)"
        ),
        aliases=("eye", "dirac"),
        needs_fan=True,
        summary="Each output copies one input; convolutions do so at the middle of the kernel.",
        formula="gain if input = output (within its group) and the kernel is at its middle, else 0",
        source="Zagoruyko & Komodakis 2017, arXiv:1706.00388",
        note="torch's eye_ and dirac_ in one: by the number of dimensions",
    ),
    _entry(
        "delta_orthogonal",
        "structured:delta_orthogonal",
        _GAIN,
        needs_fan=True,
        summary="An orthogonal matrix at the middle of the kernel: the convolution keeps lengths.",
        formula="gain * Q at the middle of the kernel, 0 elsewhere",
        source="Xiao et al. 2018, arXiv:1806.05393",
        note="of a matrix, the same as orthogonal",
    ),
    _entry(
        "sparse",
        "structured:sparse",
        Param("sparsity", 0.9, "float", "share of each output's weights that are 0", "[0, 1]"),
        Param("std", 0.01, "float", "standard deviation of the others", "(0, inf)"),
        needs_fan=True,
        summary="Few weights for each output, the others 0.",
        formula="N(0, std^2) for 1 - sparsity of the inputs of each output, else 0",
        source="Martens 2010 (ICML)",
        differs_from={"torch": "sets zeros for each input, not each output"},
    ),
)
