"""Losses of whole masks, for segmentation."""

from __future__ import annotations

from typing import Any

from dlblocks.losses.entry import entry
from dlblocks.records import Block, Param

_SMOOTH = Param("smooth", 1.0, "float", "added to both sides of the fraction", "[0, inf)")
_FALSE = Param("alpha", 0.3, "float", "weight of places found wrongly", "[0, inf)")
_MISSED = Param("beta", 0.7, "float", "weight of places missed", "[0, inf)")


def _region(name: str, target: str, *params: Param, **about: Any) -> Block:
    return entry(
        name,
        f"dlblocks.losses.segmentation:{target}",
        *params,
        tasks=("segmentation",),
        expects="logits",
        target_format="masks",
        shape="(N, C, *) and indices (N, *), or two of the same shape",
        **about,
    )


BLOCKS = (
    _region(
        "dice",
        "Dice",
        _SMOOTH,
        summary="Overlap of a region with what is found of it.",
        formula="1 - (2 TP + smooth) / (sum p + sum y + smooth), of each region",
        source="Milletari et al. 2016, arXiv:1606.04797",
        differs_from={
            "optax": "its smooth counts twice: 1 is 2 here",
            "pytorch-optimizer": "a region is one of the whole batch; no smooth by default",
        },
    ),
    _region(
        "generalized_dice",
        "GeneralizedDice",
        Param("eps", 1e-6, "float", "the least size of a region, and of the denominator", "(0, inf)"),
        summary="Dice over all regions at once, small ones counting as much as large ones.",
        formula="1 - 2 sum_c w_c TP_c / sum_c w_c (sum p_c + sum y_c), w_c = 1 / (sum y_c)^2",
        source="Sudre et al. 2017, arXiv:1707.03237",
        differs_from={
            "optax": "the mean of dice over regions, each times its w_c, over the batch, as a share of their mean"
        },
    ),
    _region(
        "jaccard",
        "Jaccard",
        _SMOOTH,
        aliases=("iou",),
        summary="Intersection over union.",
        formula="1 - (TP + smooth) / (sum p + sum y - TP + smooth), of each region",
        source="Rahman & Wang 2016 (ISVC)",
        differs_from={"pytorch-optimizer": "a region is one of the whole batch; no smooth by default"},
    ),
    _region(
        "tversky",
        "Tversky",
        _FALSE,
        _MISSED,
        _SMOOTH,
        summary="Dice that weighs what is missed and what is found wrongly.",
        formula="1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth), of each region",
        source="Salehi et al. 2017, arXiv:1706.05721",
        differs_from={
            "keras": "alpha weighs what is missed, beta what is found wrongly; both 0.5 by default",
            "pytorch-optimizer": "one region, the whole batch; alpha and beta 0.5, smooth 1e-6 by default",
        },
    ),
    _region(
        "focal_tversky",
        "FocalTversky",
        Param("gamma", 4 / 3, "float", "above 1, regions that are hardly found count more", "(0, inf)"),
        _FALSE,
        _MISSED,
        _SMOOTH,
        summary="A root of tversky.",
        formula="tversky^(1 / gamma), of each region",
        source="Abraham & Khan 2018, arXiv:1810.07842",
        differs_from={
            "pytorch-optimizer": "tversky^gamma; one region, the whole batch; gamma 1, alpha and beta 0.5,"
            " smooth 1e-6 by default"
        },
    ),
    _region(
        "lovasz",
        "Lovasz",
        aliases=("lovasz_hinge", "lovasz_softmax"),
        summary="The convex surrogate of intersection over union: hinge of masks, softmax of classes.",
        formula="sum_i e_(i) (J_i - J_(i-1)), errors in falling order, J_i the loss of getting the first i wrong",
        source="Berman et al. 2018, arXiv:1705.08790",
    ),
)
