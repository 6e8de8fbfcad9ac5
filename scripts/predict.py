"""Predict for a file of instances, as they are in the data set: not scaled, in their own units.

    python scripts/predict.py run=runs/2026-11-23/10-30-00-wine-mlp input=new.csv output=predicted.csv

A .csv input names its columns in the first line; columns that are no features are carried to a .csv output.
A .npy input is an array of instances. Output: .csv (probabilities and class names, or values), .npy
(probabilities or values), .npz (probabilities, labels and class names).
"""

import sys

from dlblocks.arguments import command
from dlblocks.records import Param

PARAMS = (
    Param("run", "", "str", "the run folder, or a checkpoint"),
    Param("input", "", "str", "a .csv or .npy file"),
    Param("output", "", "str", "a .csv, .npy or .npz file"),
    Param("overwrite", False, "bool", "replace the output if it exists"),
    Param("batch_size", 1024, "int", "instances at once", "[1, inf)"),
    Param("device", "cpu", "str", "where to compute, such as cpu or cuda"),
)


def main(run: str, input: str, output: str, overwrite: bool, batch_size: int, device: str) -> None:
    from dlblocks.prediction.predict import predict

    count = predict(run, input, output, overwrite=overwrite, batch_size=batch_size, device=device)
    print(f"{output}: {count:,} predictions")


if __name__ == "__main__":
    sys.exit(command(__doc__, PARAMS, main, required=("run", "input", "output")))
