"""Losses of embeddings, orders and sequences, called with arguments of their own (tag `arguments`)."""

from __future__ import annotations

from typing import Any

from dlblocks.losses.entry import REDUCTION
from dlblocks.records import Block, Param


def _entry(
    name: str, target: str, *params: Param, task: str, expects: str, arguments: str, **about: Any
) -> Block:
    return Block(
        kind="loss",
        name=name,
        target=f"dlblocks.losses.{target}",
        params=(*params, REDUCTION),
        tags={
            "tasks": (task,),
            "expects": expects,
            "target": "own",
            "arguments": tuple(arguments.split()),
        },
        **about,
    )


def _metric(name: str, target: str, *params: Param, **about: Any) -> Block:
    return _entry(name, f"metric:{target}", *params, task="metric", expects="embeddings", **about)


def _margin(default: float, doc: str) -> Param:
    return Param("margin", default, "float", doc, "[0, inf)")


BLOCKS = (
    _metric(
        "triplet",
        "Triplet",
        _margin(1.0, "by how much the negative has to be farther away"),
        Param(
            "distance",
            "euclidean",
            "str",
            "between embeddings; cosine is 1 minus the cosine",
            choices=("euclidean", "squared", "cosine"),
        ),
        Param("swap", False, "bool", "take positive to negative where that is nearer"),
        arguments="anchor positive negative",
        aliases=("triplet_margin",),
        shape="three times (N, D)",
        summary="What belongs to the anchor nearer than what does not.",
        formula="max(0, d(anchor, positive) - d(anchor, negative) + margin)",
        source="Schroff et al. 2015, arXiv:1503.03832",
        differs_from={"optax": "1e-6 is added inside the root of a distance; no swap"},
    ),
    _metric(
        "cosine_embedding",
        "CosineEmbedding",
        Param("margin", 0.0, "float", "a cosine below it costs nothing", "[-1, 1]"),
        arguments="input1 input2 target",
        shape="(N, D), (N, D) and (N,) of 1 or -1",
        summary="Pairs that belong together in one direction, others not.",
        formula="1 - cos(a, b) if y = 1 else max(0, cos(a, b) - margin)",
        source="torch.nn.CosineEmbeddingLoss",
    ),
    _metric(
        "hinge_embedding",
        "HingeEmbedding",
        _margin(1.0, "a distance above it costs nothing"),
        arguments="input target",
        shape="(N,) distances and (N,) of 1 or -1",
        aliases=("contrastive",),
        summary="Pairs that belong together near, others beyond a margin.",
        formula="x if y = 1 else max(0, margin - x)",
        source="Hadsell et al. 2006 (CVPR), without squares",
    ),
    _metric(
        "nt_xent",
        "NTXent",
        Param("temperature", 0.07, "float", "of the softmax", "(0, inf)"),
        arguments="embeddings labels",
        shape="(N, D) and (N,)",
        aliases=("ntxent", "infonce", "sup_con"),
        summary="Each embedding is to find those of its label among all of the batch.",
        formula="-mean_p log(exp(s_ip / temperature) / sum_(k != i) exp(s_ik / temperature)), s the cosines",
        source="Chen et al. 2020, arXiv:2002.05709; several positives: Khosla et al. 2020, arXiv:2004.11362",
        differs_from={
            "optax": "of several positives, the others are left out of the denominator; the mean is over pairs"
        },
    ),
    _metric(
        "circle",
        "Circle",
        Param("margin", 0.25, "float", "m: positives are to reach 1 - m, negatives m", "[0, 1]"),
        Param("gamma", 256.0, "float", "scale of the cosines", "(0, inf)"),
        arguments="embeddings labels",
        shape="(N, D) and (N,)",
        summary="Pairs that are far from where they belong are pulled more.",
        formula="softplus(log sum_n exp(gamma a_n (s_n - m)) + log sum_p exp(-gamma a_p (s_p - 1 + m))),"
        " a_n = max(0, s_n + m), a_p = max(0, 1 + m - s_p)",
        source="Sun et al. 2020, arXiv:2002.10857",
        differs_from={
            "keras": "margin 0.4 and gamma 80 by default; the gradient passes through a_n and a_p too;"
            " its mean leaves out anchors that cost nothing"
        },
    ),
    _entry(
        "margin_ranking",
        "metric:MarginRanking",
        _margin(0.0, "by how much"),
        task="ranking",
        expects="scores",
        arguments="input1 input2 target",
        shape="(N,), (N,) and (N,) of 1 or -1",
        summary="Two scores in the right order.",
        formula="max(0, margin - y (x1 - x2))",
        source="torch.nn.MarginRankingLoss",
    ),
    _entry(
        "ranking_softmax",
        "metric:RankingSoftmax",
        task="ranking",
        expects="scores",
        arguments="input target",
        shape="(N, items) and (N, items)",
        aliases=("listnet",),
        summary="The relevant ones on top of each list.",
        formula="-sum_i y_i log softmax(x)_i / sum_i y_i",
        source="Cao et al. 2007 (ICML)",
        differs_from={"optax": "relevances are not divided by their sum"},
    ),
    _entry(
        "ctc",
        "sequence:CTC",
        Param("blank", 0, "int", "the class that is no label", "[0, inf)"),
        Param("zero_infinity", False, "bool", "a target that does not fit costs nothing, not infinity"),
        task="sequence",
        expects="log_probabilities",
        arguments="log_probs targets input_lengths target_lengths",
        shape="(T, N, C), (N, S), (N,) and (N,)",
        summary="Labels of a sequence without knowing when each comes.",
        formula="-log sum over alignments of prod_t p_t",
        source="Graves et al. 2006 (ICML)",
    ),
)
