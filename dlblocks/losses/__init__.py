"""The catalogue of losses: one entry a block, called with `(input, target)`.

Each says what it expects of the input (`values`, `logits`, `log_probabilities`, `log_rate`,
`mean_log_variance`, `embeddings`, `scores`) and the format of the target: `values` and `indicators` (0 or 1)
have the input's shape, `indices` are int64 `(N,)`, `distribution` is one probability for each class, `masks`
are a class for each place or 0 and 1, and `own` is what the tag `arguments` says; `target_range` where not
all numbers are legal.
N instances, C classes.
"""

from __future__ import annotations

from dataclasses import replace

from dlblocks.losses.entries import classes, embeddings, likelihoods, regions
from dlblocks.losses.entry import (
    CLASSES,
    IGNORE,
    REDUCTION,
    SAME_SHAPE,
    SMOOTHING,
    WEIGHT,
    entry,
    regression,
)
from dlblocks.records import Block, Param

BLOCKS: tuple[Block, ...] = (
    regression(
        "mse",
        "dlblocks.losses.regression:MSE",
        aliases=("l2",),
        source="Legendre 1805; Gauss 1809",
        summary="Mean squared error: the log-likelihood of a normal of fixed width.",
        formula="(x - y)^2",
        differs_from={"optax": "l2_loss is half of it"},
    ),
    regression(
        "mae",
        "dlblocks.losses.regression:MAE",
        aliases=("l1",),
        source="Boscovich 1757; Laplace 1774",
        summary="Mean absolute error: aims at the median, and outliers weigh no more than others.",
        formula="|x - y|",
    ),
    regression(
        "huber",
        "dlblocks.losses.regression:Huber",
        Param("delta", 1.0, "float", "error at which the parabola turns into a line", "(0, inf)"),
        summary="Squared for small errors, linear for large ones.",
        formula="e^2 / 2 if |e| <= delta else delta * (|e| - delta / 2), e = x - y",
        source="Huber 1964 (Ann. Math. Stat. 35)",
    ),
    regression(
        "smooth_l1",
        "dlblocks.losses.regression:SmoothL1",
        Param("beta", 1.0, "float", "error at which the parabola turns into a line; 0 is mae", "[0, inf)"),
        summary="Huber's loss divided by beta: its lines have slope 1.",
        formula="e^2 / (2 beta) if |e| < beta else |e| - beta / 2, e = x - y",
        source="Girshick 2015, arXiv:1504.08083",
    ),
    entry(
        "poisson_nll",
        "dlblocks.losses.likelihood:PoissonNLL",
        Param(
            "log_input", True, "bool", "take the logarithm of the rate; false: the rate, a net's by softplus"
        ),
        Param("full", False, "bool", "add Stirling's approximation of log y!, where y > 1"),
        tasks=("regression",),
        expects="log_rate",
        target_format="values",
        shape=SAME_SHAPE,
        source="Nelder & Wedderburn 1972 (J. R. Stat. Soc. A 135)",
        summary="Negative log-likelihood of counts; the input is the logarithm of their rate.",
        formula="exp(x) - y * x  (+ y log y - y + log(2 pi y) / 2); of the rate x - y * log(x + 1e-8)",
        differs_from={"keras": "takes the rate itself"},
        tags={"target_range": "[0, inf)", "unscaled": True, "expects_by": {"log_input": {False: "rate"}}},
    ),
    entry(
        "bce",
        "dlblocks.losses.classification:BCE",
        Param(
            "pos_weight", None, "floats", "w: factor of the positive term, one for each output", "[0, inf)"
        ),
        Param("label_smoothing", 0.0, "float", "share of the target moved to one half", "[0, 1]"),
        tasks=("binary", "multilabel"),
        expects="logits",
        target_format="indicators",
        shape=SAME_SHAPE,
        aliases=("binary_cross_entropy",),
        source="Good 1952 (J. R. Stat. Soc. B 14)",
        summary="Binary cross-entropy on logits, fused with the sigmoid.",
        formula="-(w y log s + (1 - y) log(1 - s)), s = 1 / (1 + exp(-x))",
        differs_from={"keras": "takes probabilities by default"},
    ),
    entry(
        "cross_entropy",
        "dlblocks.losses.classification:CrossEntropy",
        WEIGHT,
        IGNORE,
        SMOOTHING,
        tasks=("multiclass", "binary_softmax"),
        expects="logits",
        target_format="indices",
        shape="(N, C) and (N,) indices, or (N, C) one-hot or soft",
        aliases=("categorical_cross_entropy", "label_smoothing_cross_entropy", "soft_target_cross_entropy"),
        source="Good 1952 (J. R. Stat. Soc. B 14); label smoothing: Szegedy et al. 2015, arXiv:1512.00567",
        summary="Categorical cross-entropy on logits, fused with the softmax.",
        formula="-sum_c y_c log p_c, p = softmax(x)",
        note="with weight, the mean of one-hot and soft targets divides by N, that of indices by the sum of"
        " their weights, as in torch",
        differs_from={"keras": "takes probabilities by default"},
    ),
    entry(
        "nll",
        "dlblocks.losses.classification:NLL",
        WEIGHT,
        IGNORE,
        tasks=("multiclass", "binary_softmax"),
        expects="log_probabilities",
        target_format="indices",
        shape=CLASSES,
        source="Fisher 1922 (Phil. Trans. R. Soc. A 222)",
        summary="Negative log-likelihood, of log-probabilities.",
        formula="-x[y]",
    ),
    entry(
        "kl_div",
        "dlblocks.losses.classification:KLDiv",
        Param("log_target", False, "bool", "the target is log-probabilities too"),
        tasks=("multiclass", "binary_softmax"),
        expects="log_probabilities",
        target_format="distribution",
        shape="(N, C) and (N, C)",
        summary="Kullback-Leibler divergence of the input's distribution from the target's.",
        formula="sum_c y_c (log y_c - x_c)",
        source="Kullback & Leibler 1951 (Ann. Math. Stat. 22)",
        note="batchmean is the mathematical mean over instances",
        differs_from={"torch": "its mean, by default, is over all N * C numbers"},
        reduction=replace(
            REDUCTION, default="batchmean", choices=("none", "batchmean", "mean", "sum"), origin="mean"
        ),
    ),
    entry(
        "hinge",
        "dlblocks.losses.classification:Hinge",
        Param("margin", 1.0, "float", "score beyond which an instance costs nothing", "(0, inf)"),
        tasks=("binary", "multilabel"),
        expects="logits",
        target_format="indicators",
        shape=SAME_SHAPE,
        summary="Hinge loss of a maximum-margin classifier, on scores.",
        formula="max(0, margin - y x), y = -1 or 1; a target of 0 counts as -1",
        source="Cortes & Vapnik 1995 (Machine Learning 20)",
    ),
    regression(
        "quantile",
        "dlblocks.losses.regression:Quantile",
        Param("q", 0.5, "float", "the quantile to aim at", "(0, 1)"),
        aliases=("pinball",),
        summary="Aims at a quantile of the targets.",
        formula="max(q e, (q - 1) e), e = y - x",
        source="Koenker & Bassett 1978 (Econometrica 46)",
    ),
    regression(
        "log_cosh",
        "dlblocks.losses.regression:LogCosh",
        summary="Squared for small errors, linear for large ones, smooth throughout.",
        formula="log(cosh(x - y))",
        source="Keras LogCosh",
    ),
    entry(
        "squared_hinge",
        "dlblocks.losses.classification:SquaredHinge",
        Param("margin", 1.0, "float", "score beyond which an instance costs nothing", "(0, inf)"),
        tasks=("binary", "multilabel"),
        expects="logits",
        target_format="indicators",
        shape=SAME_SHAPE,
        summary="Hinge loss squared, and so smooth.",
        formula="max(0, margin - y x)^2, y = -1 or 1; a target of 0 counts as -1",
        source="Keras SquaredHinge, after Cortes & Vapnik 1995 (Machine Learning 20)",
    ),
    entry(
        "binary_focal",
        "dlblocks.losses.classification:BinaryFocal",
        Param("gamma", 2.0, "float", "how much less easy instances count; 0 is bce", "[0, inf)"),
        Param("alpha", None, "float", "weight of target 1, that of 0 is 1 - alpha; null for none", "[0, 1]"),
        tasks=("binary", "multilabel"),
        expects="logits",
        target_format="indicators",
        shape=SAME_SHAPE,
        summary="Binary cross-entropy on logits whose easy instances count less.",
        formula="-a_y (1 - p_y)^gamma log p_y, p_y the probability of the target",
        source="Lin et al. 2017, arXiv:1708.02002",
        note="no alpha by default; the paper's is 0.25",
        differs_from={"pytorch-optimizer": "BCEFocalLoss takes probabilities; alpha 0.25 by default"},
    ),
    entry(
        "focal",
        "dlblocks.losses.classification:Focal",
        Param("gamma", 2.0, "float", "how much less easy instances count; 0 is cross_entropy", "[0, inf)"),
        tasks=("multiclass", "binary_softmax"),
        expects="logits",
        target_format="indices",
        shape=CLASSES,
        summary="Categorical cross-entropy on logits whose easy instances count less.",
        formula="-(1 - p_y)^gamma log p_y, p = softmax(x)",
        source="Lin et al. 2017, arXiv:1708.02002",
    ),
    *likelihoods.BLOCKS,
    *classes.BLOCKS,
    *regions.BLOCKS,
    *embeddings.BLOCKS,
    Block(
        kind="loss",
        name="sum",
        target="dlblocks.losses.combined:Sum",
        params=(
            Param(
                "terms", None, "any", "loss -> its weight, or {weight: ..., parameters}: {mse: 1.0, mae: 0.1}"
            ),
            REDUCTION,
        ),
        summary="A weighted sum of losses that take the same input and target.",
        formula="sum_k w_k loss_k(x, y)",
        shape="that of its terms",
        source="dlblocks",
        # Those of its terms: see `terms.contract`.
        tags={"tasks": None, "expects": None, "target": None},
    ),
)
