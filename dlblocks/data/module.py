"""Any table as a LightningDataModule: split, scaled, checked and served in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor

from dlblocks import registry
from dlblocks.data import scaling
from dlblocks.data.format import DataFormat
from dlblocks.data.loader import TensorLoader
from dlblocks.data.scaling import Scaler
from dlblocks.data.split import split
from dlblocks.data.table import Table, check
from dlblocks.errors import UserError, unknown

# Without gradients memory is no concern, and larger batches are not faster.
_EVAL_BATCH = 1024


class TableDataModule(pl.LightningDataModule):
    """A data set in memory, ready to train on. All but the arguments is known after `setup()`.

    Args:
        dataset: a name, a mapping `{name: ..., parameters}`, or a `Table`.
        batch_size: instances in a training batch, of all processes together; `full` for all of them.
        val_fraction, test_fraction: parts of the data; 0 for none.
        scale: of x: `standard`, `minmax` or `none`; fitted on the training part.
        scale_target: give a `target_scaler` for regression. Targets are served in their own unit all the
            same; the module standardises them inside the loss, so that metrics stay in that unit.
        flat: give instances as vectors `(features,)`.
        seed: the run's seed; splits the data and orders the batches.
        drop_last: leave out the last training batch of an epoch when it is smaller.
        eval_batch_size: at most so many instances in a validation or test batch; None for the larger of
            1024 and the training batch.

    Raises:
        UserError: no such data set or scaling, or an `eval_batch_size` below 1.
    """

    task: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    outputs: int
    n_train: int
    n_val: int
    n_test: int
    scaler: Scaler
    target_scaler: Scaler | None
    class_counts: dict[str, int]
    format: DataFormat

    def __init__(
        self,
        dataset: str | Mapping[str, Any] | Table,
        batch_size: int | Literal["full"] = 32,
        *,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        scale: str = "standard",
        scale_target: bool = True,
        flat: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if scale not in scaling.SCALINGS:
            raise unknown("scaling", scale, scaling.SCALINGS, "data.scale")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise UserError(f"data.eval_batch_size={eval_batch_size}: must be at least 1, or null.")
        if not isinstance(dataset, Table):
            registry.parse("dataset", dataset, "data")
        self.dataset = dataset
        self.batch_size = batch_size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.scale, self.scale_target = scale, scale_target
        self.flat = flat
        self.seed = seed
        self.drop_last = drop_last
        self.eval_batch_size = eval_batch_size
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - all stages need all parts' scaling
        """Load, check, split and scale the data; once, whatever the stage.

        Sets:
            task, classes, outputs: of the `Table`.
            input_shape: of one instance as served.
            n_train, n_val, n_test: instances in each part.
            scaler: of x. For `flat` pictures it is the map of the pictures.
            target_scaler: mean and standard deviation of the training part's targets, each float32
                `(outputs,)`; None if they are not to be standardised.
            class_counts: instances of each class, or with each label, in the training part; empty for
                regression.
            format: what predictions from raw instances need to know.

        Raises:
            UserError: values or labels that cannot be trained on, a class too small for the split, or a
                batch larger than the training part.
        """
        if self._parts:
            return
        table = (
            self.dataset
            if isinstance(self.dataset, Table)
            else registry.build("dataset", self.dataset, where="data")
        )
        check(table)
        rows = split(table, self.seed, self.val_fraction, self.test_fraction)
        self.task, self.classes, self.outputs = table.task, table.classes, table.outputs
        self.n_train, self.n_val, self.n_test = len(rows.train), len(rows.val), len(rows.test)
        _ = self.train_batch_size
        self.scaler = scaling.fit(self.scale, table.x[rows.train])
        scale_target = self.scale_target and table.task == "regression"
        self.target_scaler = scaling.fit("standard", table.y[rows.train]) if scale_target else None
        self.class_counts = _class_counts(table, rows.train)

        x = self.scaler.apply(table.x)
        x = x.flatten(1) if self.flat else x
        self.input_shape = tuple(x.shape[1:])
        self.format = DataFormat(
            shape=table.shape,
            shift=tuple(self.scaler.shift.flatten().tolist()),
            scale=tuple(self.scaler.scale.flatten().tolist()),
            flat=self.flat,
            features=table.features,
            classes=table.classes,
        )
        self._parts = {
            name: (x[part], table.y[part])
            for name, part in (("train", rows.train), ("val", rows.val), ("test", rows.test))
        }

    @property
    def target_mean(self) -> tuple[float, ...] | None:
        """`target_scaler`'s mean as plain numbers, for a checkpoint."""
        return None if self.target_scaler is None else tuple(self.target_scaler.shift.tolist())

    @property
    def target_std(self) -> tuple[float, ...] | None:
        """`target_scaler`'s standard deviation as plain numbers, for a checkpoint."""
        return None if self.target_scaler is None else tuple(self.target_scaler.scale.tolist())

    @property
    def train_batch_size(self) -> int:
        """`batch_size` as a number.

        Raises:
            UserError: neither `full` nor a whole number from 1 to the size of the training part.
        """
        if self.batch_size == "full":
            return self.n_train
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= self.n_train:
            raise UserError(
                f"data.batch_size={size}: must be a whole number from 1 to {self.n_train}, the instances in"
                " the training part, or full."
            )
        return size

    def part(self, name: Literal["train", "val", "test"]) -> tuple[Tensor, Tensor]:
        """x and y of one part as they are served, on the trainer's device if there is a trainer."""
        x, y = self._parts[name]
        if self.trainer is not None:
            # Once for all epochs; on the CPU these are the same tensors.
            device = self.trainer.strategy.root_device
            x, y = self._parts[name] = x.to(device), y.to(device)
        return x, y

    def train_dataloader(self) -> TensorLoader:
        """Batches `(x, y)` in a new order each epoch; in the same one with Lightning's `overfit_batches`."""
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return TensorLoader(
            *self.part("train"),
            self.train_batch_size,
            shuffle=not overfit,
            seed=self.seed,
            drop_last=self.drop_last,
        )

    def val_dataloader(self) -> TensorLoader | list[Any]:
        """Batches in the order of the table; an empty list if there is no validation part."""
        return self.evaluation("val")

    def test_dataloader(self) -> TensorLoader | list[Any]:
        """Batches in the order of the table; an empty list if there is no test part."""
        return self.evaluation("test")

    def predict_dataloader(self) -> TensorLoader | list[Any]:
        """The batches `(x, y)` of the test part."""
        return self.evaluation("test")

    def evaluation(self, name: Literal["train", "val", "test"]) -> TensorLoader | list[Any]:
        """Batches of one part in the order of the table; an empty list if there is no such part."""
        x, y = self.part(name)
        if not len(x):
            return []
        size = self.eval_batch_size or max(_EVAL_BATCH, self.train_batch_size)
        return TensorLoader(x, y, min(size, len(x)))


def _class_counts(table: Table, train: Tensor) -> dict[str, int]:
    if table.task == "regression":
        return {}
    y = table.y[train]
    counts = y.sum(0).long() if table.task == "multilabel" else y.bincount(minlength=len(table.classes))
    return dict(zip(table.classes, counts.tolist(), strict=True))
