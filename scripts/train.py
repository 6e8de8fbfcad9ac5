"""Train one recipe, or with -m every combination: `python scripts/train.py activation=elu init=glorot_uniform`."""

import sys
from pathlib import Path

from dlblocks.hydra.main import main

if __name__ == "__main__":
    sys.exit(main(config_path=Path(__file__).resolve().parent.parent / "conf"))
