"""What blocks there are: kinds, `activation '*elu*'` for a table, `activation elu` for a page."""

import argparse
import sys

from rich.console import Console

from dlblocks import catalog
from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY
from dlblocks.terminal import say


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "kind", nargs="?", help="activation, initializer, loss, optimizer, scheduler, model, dataset"
    )
    parser.add_argument("name", nargs="?", default="*", help="a name for its page, or a pattern for a table")
    parser.add_argument("--plot", metavar="FILE", help="draw the activations and their derivatives")
    given = parser.parse_args()
    console = Console(highlight=False)
    try:
        if given.plot and given.kind != "activation":
            raise UserError("--plot draws activations: scripts/blocks.py activation NAME --plot FILE")
        if given.kind is None:
            console.print(catalog.kinds())
        elif REGISTRY.has(given.kind, given.name):
            console.print(REGISTRY.get(given.kind, given.name).describe(), markup=False, soft_wrap=True)
        else:
            console.print(catalog.listing(given.kind, given.name))
        if given.plot:
            drawn = catalog.draw(given.name, given.plot)
            console.print(f"{given.plot}: {', '.join(drawn)}", markup=False, soft_wrap=True)
    except (UserError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
