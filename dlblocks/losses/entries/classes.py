"""Losses of classes and labels: margins, noise, rare classes."""

from __future__ import annotations

from typing import Any

from dlblocks.losses.entry import CLASSES, SAME_SHAPE, SMOOTHING, WEIGHT, entry
from dlblocks.records import Block, Param


def _labels(name: str, target: str, *params: Param, **about: Any) -> Block:
    return entry(
        name,
        f"dlblocks.losses.{target}",
        *params,
        tasks=("binary", "multilabel"),
        expects="logits",
        target_format="indicators",
        shape=SAME_SHAPE,
        **about,
    )


def _classes(name: str, target: str, *params: Param, **about: Any) -> Block:
    return entry(
        name,
        f"dlblocks.losses.{target}",
        *params,
        tasks=("multiclass", "binary_softmax"),
        expects="logits",
        target_format="indices",
        shape=CLASSES,
        **about,
    )


BLOCKS = (
    _labels(
        "soft_margin",
        "margin:SoftMargin",
        aliases=("multilabel_soft_margin", "logistic"),
        summary="Binary cross-entropy for targets of -1 and 1.",
        formula="log(1 + exp(-y x)), y = -1 or 1; a target of 0 counts as -1",
        source="torch.nn.SoftMarginLoss",
    ),
    _labels(
        "perceptron",
        "margin:Perceptron",
        summary="What is on the right side costs nothing.",
        formula="max(0, -y x), y = -1 or 1; a target of 0 counts as -1",
        source="Rosenblatt 1958 (Psychological Review 65)",
    ),
    _labels(
        "asymmetric",
        "robust:Asymmetric",
        Param("gamma_neg", 4.0, "float", "how much less easy unwanted labels count", "[0, inf)"),
        Param("gamma_pos", 1.0, "float", "how much less easy wanted labels count", "[0, inf)"),
        Param("clip", 0.05, "float", "unwanted labels of a smaller probability don't count", "[0, 1)"),
        aliases=("asl", "asymmetric_multilabel"),
        summary="Focal loss with other powers for wanted and unwanted labels, for many labels of which few apply.",
        formula="-y (1 - p)^gamma_pos log p - (1 - y) q^gamma_neg log(1 - q), q = max(p - clip, 0)",
        source="Ridnik et al. 2020, arXiv:2009.14119",
    ),
    _labels(
        "soft_f1",
        "robust:SoftF1",
        Param("beta", 1.0, "float", "how much more recall counts than precision", "(0, inf)"),
        summary="1 minus the F score of each label, with probabilities for counts, over the batch.",
        formula="1 - (1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP), of each label",
        source="pytorch-optimizer SoftF1Loss",
        note="reduction=none gives a value for each label",
        differs_from={"pytorch-optimizer": "takes probabilities; one score of all labels together"},
        tags={"whole_batch": True},
    ),
    entry(
        "multilabel_margin",
        "dlblocks.losses.margin:MultilabelMargin",
        tasks=("multilabel",),
        expects="logits",
        target_format="indicators",
        shape="(N, C) and (N, C)",
        summary="Each wanted label above each other.",
        formula="sum_(i wanted, j not) max(0, 1 - x_i + x_j) / C",
        source="torch.nn.MultiLabelMarginLoss",
        differs_from={"torch": "takes the wanted labels as a list of indices, ended by -1"},
    ),
    _classes(
        "multi_margin",
        "margin:MultiMargin",
        Param("p", 1, "int", "power of each violation", choices=(1, 2)),
        Param("margin", 1.0, "float", "by how much the target's score is to be above each other", "(0, inf)"),
        summary="The target's score above each other's by a margin.",
        formula="sum_(c != y) max(0, margin - x_y + x_c)^p / C",
        source="Weston & Watkins 1999 (ESANN)",
    ),
    _classes(
        "categorical_hinge",
        "margin:CategoricalHinge",
        Param("margin", 1.0, "float", "by how much; 0 is the perceptron's loss", "[0, inf)"),
        aliases=("multiclass_hinge", "crammer_singer"),
        summary="The target's score above the strongest other by a margin.",
        formula="max(0, margin + max_(c != y) x_c - x_y)",
        source="Crammer & Singer 2001 (JMLR 2)",
    ),
    _classes(
        "poly_cross_entropy",
        "robust:PolyCrossEntropy",
        Param("epsilon", 2.0, "float", "added to the first coefficient; 0 is cross_entropy", "[-1, inf)"),
        SMOOTHING,
        aliases=("poly1", "poly_loss_cross_entropy"),
        summary="Cross-entropy with its first polynomial term changed.",
        formula="-log p_y + epsilon (1 - p_y), p = softmax(x)",
        source="Leng et al. 2022, arXiv:2204.12511",
    ),
    _classes(
        "generalized_cross_entropy",
        "robust:GeneralizedCrossEntropy",
        Param("q", 0.7, "float", "towards 0 cross_entropy, at 1 the mean absolute error", "(0, 1]"),
        aliases=("gce",),
        summary="Between cross-entropy and mean absolute error, which noisy labels harm less.",
        formula="(1 - p_y^q) / q, p = softmax(x)",
        source="Zhang & Sabuncu 2018, arXiv:1805.07836",
    ),
    _classes(
        "bi_tempered",
        "robust:BiTempered",
        Param("t1", 0.8, "float", "below 1 the loss of one instance is bounded", "[0, 1]"),
        Param("t2", 1.3, "float", "above 1 the probabilities have heavy tails", "[1, 4]"),
        Param("iterations", 30, "int", "of the search for the normalisation", "[1, inf)"),
        aliases=("bi_tempered_logistic",),
        summary="Logistic loss with a bounded logarithm and a heavy-tailed softmax, for noisy labels.",
        formula="sum_c y_c (log_t1 y_c - log_t1 p_c) - (y_c^(2 - t1) - p_c^(2 - t1)) / (2 - t1), p by exp_t2",
        source="Amid et al. 2019, arXiv:1906.03361",
        differs_from={"pytorch-optimizer": "5 iterations by default"},
    ),
    _classes(
        "ldam",
        "robust:LDAM",
        Param("counts", None, "floats", "instances of each class; null for as many of each", "(0, inf)"),
        Param("max_margin", 0.5, "float", "margin of the rarest class", "(0, inf)"),
        Param("scale", 30.0, "float", "of the logits", "(0, inf)"),
        WEIGHT,
        summary="Cross-entropy with larger margins for rarer classes.",
        formula="-log softmax(scale z)_y, z_y = x_y - max_margin (min_k n_k / n_y)^(1/4), else z_c = x_c",
        source="Cao et al. 2019, arXiv:1906.07413",
    ),
    _classes(
        "asymmetric_single_label",
        "robust:AsymmetricSingleLabel",
        Param("gamma_pos", 0.0, "float", "power of the target's class", "[0, inf)"),
        Param("gamma_neg", 4.0, "float", "power of the others", "[0, inf)"),
        Param(
            "label_smoothing", 0.1, "float", "share of the target spread evenly over the classes", "[0, 1]"
        ),
        summary="Focal loss of one class of many, with another power for the other classes.",
        formula="-sum_c y_c |y_c - p_c|^g_c log p_c, p = softmax(x)",
        source="Ridnik et al. 2020, arXiv:2009.14119",
    ),
    _classes(
        "focal_cosine",
        "robust:FocalCosine",
        Param("gamma", 2.0, "float", "how much less easy instances count in the focal term", "[0, inf)"),
        Param("focal_weight", 0.1, "float", "of the focal term", "[0, inf)"),
        summary="Cosine with the target's direction, for few instances.",
        formula="1 - x_y / |x| + focal_weight (1 - p_y)^gamma (-log p_y), p = softmax(x / |x|)",
        source="Barz & Denzler 2019, arXiv:1901.09054",
    ),
    _classes(
        "sparsemax_loss",
        "robust:SparsemaxLoss",
        aliases=("multiclass_sparsemax",),
        summary="The convex loss whose gradient is sparsemax(x) - y.",
        formula="(sum_(c in S) (x_c^2 - tau^2) + 1) / 2 - x_y, S and tau of sparsemax(x)",
        source="Martins & Astudillo 2016, arXiv:1602.02068",
    ),
    entry(
        "generalized_kl",
        "dlblocks.losses.robust:GeneralizedKL",
        tasks=("multiclass", "binary_softmax"),
        expects="log_probabilities",
        target_format="distribution",
        shape="(N, C) and (N, C)",
        aliases=("convex_kl_divergence",),
        summary="Kullback-Leibler divergence of what need not sum to 1.",
        formula="y_c (log y_c - x_c) + exp(x_c) - y_c",
        source="Csiszar 1991 (Ann. Stat. 19)",
    ),
)
