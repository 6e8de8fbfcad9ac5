"""Judge a run's best checkpoint on a part of its data: all metrics, a table by class, a picture.

python scripts/evaluate.py run=runs/2026-11-23/10-30-00-digits-mlp split=all
"""

import sys

from dlblocks.arguments import command
from dlblocks.records import Param

PARAMS = (
    Param("run", "", "str", "the run folder"),
    Param("split", "test", "str", "part of the data", choices=("train", "val", "test", "all")),
    Param("accelerator", None, "str", "the device; null for that of the run"),
)


def main(run: str, split: str, accelerator: str | None) -> None:
    import logging

    from rich.console import Console

    from dlblocks.evaluation.evaluate import evaluate

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    evaluation = evaluate(run, split, accelerator)
    console = Console(soft_wrap=True, highlight=False)
    for table in evaluation.tables():
        console.print(table)
    for path in evaluation.save():
        console.print(str(path), markup=False)


if __name__ == "__main__":
    sys.exit(command(__doc__, PARAMS, main))
