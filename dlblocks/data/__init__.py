"""The catalogue of data sets: one entry each. A data set is a `dlblocks.data.table:Table`; all of these
are part of scikit-learn or made from its digits, so nothing is downloaded."""

from __future__ import annotations

from dlblocks.records import Block, Param

BLOCKS: tuple[Block, ...] = (
    Block(
        kind="dataset",
        name="digits",
        target="dlblocks.data.embedded:digits",
        summary="1797 handwritten digits, 8 x 8 grey values from 0 to 16; ten classes.",
        shape="x (1797, 1, 8, 8), y (1797,)",
        source="scikit-learn load_digits; Alpaydin & Kaynak 1998 (UCI, optical recognition of digits)",
        tags={"task": "multiclass", "images": True},
    ),
    Block(
        kind="dataset",
        name="breast_cancer",
        target="dlblocks.data.embedded:breast_cancer",
        summary="569 tumours, 30 measurements of their cell nuclei; malignant (0) or benign (1).",
        shape="x (569, 30), y (569,)",
        source="scikit-learn load_breast_cancer; Wolberg et al. 1995 (UCI, Wisconsin diagnostic)",
        tags={"task": "binary"},
    ),
    Block(
        kind="dataset",
        name="wine",
        target="dlblocks.data.embedded:wine",
        summary="178 wines, 13 measurements of a chemical analysis; which of three growers made it.",
        shape="x (178, 13), y (178,)",
        source="scikit-learn load_wine; Aeberhard & Forina 1991 (UCI, wine)",
        tags={"task": "multiclass"},
    ),
    Block(
        kind="dataset",
        name="diabetes",
        target="dlblocks.data.embedded:diabetes",
        summary="442 patients, 10 measurements; progression of the disease one year later, from 25 to 346.",
        shape="x (442, 10), y (442, 1)",
        source="scikit-learn load_diabetes, unscaled; Efron et al. 2004 (Annals of Statistics 32)",
        tags={"task": "regression"},
    ),
    Block(
        kind="dataset",
        name="digit_pairs",
        target="dlblocks.data.digit_pairs:digit_pairs",
        params=(
            Param("samples", 2000, "int", "pictures", "[100, inf)"),
            Param("seed", 0, "int", "of the pictures; the run's seed only splits them", "[0, inf)"),
        ),
        summary="Two different digits in one picture, partly overlapping; ten labels, two of them on.",
        formula="max of two digits at random places, one to the left and one to the right",
        shape="x (samples, 1, 12, 16), y (samples, 10)",
        source="made from scikit-learn load_digits",
        note="the pictures stand in 20 groups that share no digit image; a split keeps groups whole",
        tags={"task": "multilabel", "images": True},
    ),
)
