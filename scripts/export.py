"""Export the trained module of a run as one file that takes instances as they are in the data set.

    python scripts/export.py run=runs/2026-11-23/10-30-00-wine-mlp format=onnx

It is in evaluation mode, scales its inputs itself, takes batches of any size, and is checked against the module.
"""

import sys

from dlblocks.arguments import command
from dlblocks.records import Param

PARAMS = (
    Param("run", "", "str", "the run folder, or a checkpoint"),
    Param("format", "onnx", "str", "of the file", choices=("onnx", "torch_export")),
    Param("output", None, "str", "the file; null for model.onnx or model.pt2 in the run folder"),
    Param(
        "gives",
        "predictions",
        "str",
        "probabilities or values in the targets' units, or the net's own output",
        choices=("predictions", "logits"),
    ),
    Param("overwrite", False, "bool", "replace the file if it exists"),
)


def main(run: str, format: str, output: str | None, gives: str, overwrite: bool) -> None:
    from dlblocks.exporting import export

    made = export(run, format, output, gives=gives, overwrite=overwrite)
    print(f"{made.path}: {made.input} -> {made.output}")
    if made.difference is None:
        print("not checked: onnxruntime is not installed; pip install 'dlblocks[export]' brings it")
    else:
        print(f"checked: differs from the module by at most {made.difference:.2g}")


if __name__ == "__main__":
    sys.exit(command(__doc__, PARAMS, main))
