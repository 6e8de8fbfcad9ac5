"""Lines and panels on the terminal. Rich is imported where something is printed, since `--help` need not wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(panel: RenderableType) -> None:
    """A panel or table."""
    from rich.console import Console

    Console().print(panel)


def tell(line: str) -> None:
    """One line of what a run does."""
    from rich.console import Console

    Console(soft_wrap=True).print(line, markup=False, highlight=False)


def say(line: str) -> None:
    """One line on standard error; an error is red."""
    from rich.console import Console

    style = "bold red" if line.startswith("error") else None
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, style=style, markup=False)
