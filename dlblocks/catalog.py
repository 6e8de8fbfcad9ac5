"""Finding one's way among the blocks: tables, pages and pictures of what the registry holds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

# Where the curves are drawn.
_LOW, _HIGH = -4.0, 4.0


def kinds() -> Table:
    """All kinds of blocks, with how many there are of each."""
    from rich.table import Table

    table = Table("kind", "blocks", title="Blocks", title_justify="left")
    for kind in REGISTRY.kinds:
        table.add_row(kind, str(len(REGISTRY.names(kind))))
    return table


def listing(kind: str, pattern: str = "*") -> Table:
    """The blocks of a kind that match a shell pattern: formula, parameters with defaults, source.

    Raises:
        UserError: no such kind, or no name matches.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "formula", "parameters", "source", title=f"{kind}: {pattern}", title_justify="left")
    for name in _matching(kind, pattern):
        block = REGISTRY.get(kind, name)
        params = ", ".join(f"{key}={value}" for key, value in block.defaults().items())
        table.add_row(*map(escape, (name, block.formula, params, block.source)))
    return table


def draw(pattern: str, path: str | Path) -> list[str]:
    """Draw the elementwise activations that match a name or pattern, each with its derivative.

    Args:
        pattern: a name, an alias or a shell pattern.
        path: of the picture; its ending says the format.

    Returns:
        The names drawn.

    Raises:
        UserError: no name matches, none that does is a function of one variable, or the format is unknown.
    """
    from matplotlib.figure import Figure

    matching = [REGISTRY.get("activation", pattern).name] if REGISTRY.has("activation", pattern) else None
    found = matching or _matching("activation", pattern)
    drawn = [name for name in found if REGISTRY.get("activation", name).tags.get("elementwise")]
    if not drawn:
        raise UserError(f"{', '.join(found)}: no function of one variable, so there is no curve to draw.")
    columns = min(len(drawn), 5)
    rows = ceil(len(drawn) / columns)
    figure = Figure(figsize=(max(2.4 * columns, 4.8), max(2 * rows, 3.2)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, name in zip(grid, drawn, strict=False):
        _draw_one(axes, name)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    grid[0].legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return drawn


def _draw_one(axes: Axes, name: str) -> None:
    import torch

    from dlblocks.factory import activation

    x = torch.linspace(_LOW, _HIGH, 801, dtype=torch.float64, requires_grad=True)
    y = activation(name).double().eval()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    at = x.detach().numpy()
    axes.plot(at, y.detach().numpy(), label="f(x)")
    axes.plot(at, slope.numpy(), "--", label="f'(x)", linewidth=1)
    axes.set(title=name, xlim=(_LOW, _HIGH), ylim=(-2.2, 4.2))
    axes.grid(alpha=0.3)


def _matching(kind: str, pattern: str) -> Sequence[str]:
    found = REGISTRY.names(kind, pattern)
    if not found and not set(pattern) & set("*?["):
        REGISTRY.get(kind, pattern)  # raises, with the nearest names
    if not found:
        raise UserError(f"{kind}: no name matches {pattern!r}. Names: {', '.join(REGISTRY.names(kind))}.")
    return found
