"""Losses of values that are negative log-likelihoods, or measure shares and directions."""

from __future__ import annotations

from dlblocks.losses.entry import SAME_SHAPE, entry, regression
from dlblocks.records import Param

BLOCKS = (
    entry(
        "gaussian_nll",
        "dlblocks.losses.likelihood:GaussianNLL",
        Param("full", False, "bool", "add the constant log(2 pi) / 2"),
        Param("eps", 1e-6, "float", "the least variance", "(0, inf)"),
        tasks=("regression",),
        expects="mean_log_variance",
        target_format="values",
        shape="(N, 2 K) and (N, K)",
        summary="Negative log-likelihood of a normal distribution whose width is learnt too; the net gives both.",
        formula="(s + (y - m)^2 exp(-s)) / 2, x = (m, s), s the logarithm of the variance",
        source="Nix & Weigend 1994 (IEEE ICNN)",
        differs_from={"torch": "takes the variance itself, as a third argument"},
    ),
    entry(
        "tweedie",
        "dlblocks.losses.likelihood:Tweedie",
        Param("p", 1.5, "float", "power of the mean that the variance is proportional to", "(1, 2)"),
        tasks=("regression",),
        expects="log_rate",
        target_format="values",
        shape=SAME_SHAPE,
        tags={"target_range": "[0, inf)"},
        summary="For amounts that are often exactly 0; the input is the logarithm of the mean.",
        formula="exp((2 - p) x) / (2 - p) - y exp((1 - p) x) / (1 - p)",
        source="Tweedie 1984; Jorgensen 1987 (J. R. Stat. Soc. B 49)",
    ),
    entry(
        "gamma_nll",
        "dlblocks.losses.likelihood:GammaNLL",
        tasks=("regression",),
        expects="log_rate",
        target_format="values",
        shape=SAME_SHAPE,
        tags={"target_range": "(0, inf)"},
        summary="For positive amounts whose spread grows with their mean; the input is the logarithm of the mean.",
        formula="x + y exp(-x)",
        source="Nelder & Wedderburn 1972 (J. R. Stat. Soc. A 135)",
    ),
    regression(
        "msle",
        "dlblocks.losses.regression:MSLE",
        aliases=("mean_squared_logarithmic_error",),
        tags={"target_range": "[0, inf)", "unscaled": True},
        summary="Squared error of the order of magnitude.",
        formula="(log(1 + max(x, 0)) - log(1 + y))^2",
        source="Keras MeanSquaredLogarithmicError",
    ),
    regression(
        "mape",
        "dlblocks.losses.regression:MAPE",
        Param("eps", 1e-7, "float", "the least size of a target", "(0, inf)"),
        aliases=("mean_absolute_percentage_error",),
        tags={"unscaled": True},
        summary="The error as a share of the target.",
        formula="|x - y| / max(|y|, eps)",
        source="Keras MeanAbsolutePercentageError",
        differs_from={"keras": "in percent: 100 times as much"},
    ),
    regression(
        "cosine_similarity",
        "dlblocks.losses.regression:CosineSimilarity",
        Param("eps", 1e-8, "float", "the least product of the lengths", "(0, inf)"),
        aliases=("cosine", "cosine_distance"),
        summary="Whether the direction is right, whatever the length.",
        formula="1 - x . y / (|x| |y|), over the last dimension",
        source="optax cosine_distance",
        differs_from={"keras": "without the 1: minus the cosine"},
    ),
)
