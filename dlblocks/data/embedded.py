"""The data sets that come with scikit-learn, with their values as they are there."""

from __future__ import annotations

from sklearn import datasets

from dlblocks.data.table import Table


def digits() -> Table:
    """Handwritten digits: x `(1797, 1, 8, 8)`, grey values 0 to 16; y `(1797,)`, ten classes."""
    data = datasets.load_digits()
    return Table.from_arrays(
        data.images[:, None],
        data.target,
        "multiclass",
        classes=[str(name) for name in data.target_names],
        features=data.feature_names,
        name="digits",
    )


def breast_cancer() -> Table:
    """Cell nuclei of tumours: x `(569, 30)`; y `(569,)`, 0 malignant, 1 benign."""
    data = datasets.load_breast_cancer()
    return Table.from_arrays(
        data.data,
        data.target,
        "binary",
        classes=[str(name) for name in data.target_names],
        features=[str(name) for name in data.feature_names],
        name="breast_cancer",
    )


def wine() -> Table:
    """Wines of three growers: x `(178, 13)`, of a chemical analysis; y `(178,)`, three classes."""
    data = datasets.load_wine()
    return Table.from_arrays(
        data.data,
        data.target,
        "multiclass",
        classes=[str(name) for name in data.target_names],
        features=[str(name) for name in data.feature_names],
        name="wine",
    )


def diabetes() -> Table:
    """Patients: x `(442, 10)` in the units they were measured in; y `(442, 1)`, progression in a year."""
    data = datasets.load_diabetes(scaled=False)
    return Table.from_arrays(
        data.data, data.target, "regression", features=data.feature_names, name="diabetes"
    )
