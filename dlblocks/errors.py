"""The errors dlblocks raises for a user's mistake: what was wrong, where, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input, told in one message. The command line prints it without a traceback."""


class UnknownNameError(UserError):
    """A name that is not among the legal ones; the message holds the nearest and the legal ones."""


class DuplicateBlockError(UserError):
    """Two owners claim one name in the registry; the message names both."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message holds the pip command that brings it."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run, which can be resumed; `code` is the exit code that shells give it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"by signal {number}")
        self.code = 128 + number


def nearest(name: object, legal: Iterable[str], count: int = 3) -> list[str]:
    """The legal names most like `name`, best first; empty if none is near."""
    import difflib

    # A key of a file need not be text.
    wanted = str(name).lower()
    by_lower = {candidate.lower(): candidate for candidate in legal}
    # Letters in another order, the commonest slip, count for little in difflib's measure.
    swapped = [candidate for candidate in by_lower if sorted(candidate) == sorted(wanted)]
    close = difflib.get_close_matches(wanted, by_lower, n=count, cutoff=0.6)
    return [by_lower[candidate] for candidate in dict.fromkeys((*swapped, *close))][:count]


def did_you_mean(name: object, legal: Iterable[str]) -> str:
    """`" Did you mean 'elu' or 'relu'?"`, or an empty string when no legal name is near."""
    found = nearest(name, legal)
    return f" Did you mean {' or '.join(repr(candidate) for candidate in found)}?" if found else ""


def unknown(what: str, name: str, legal: Iterable[str], where: str = "") -> UnknownNameError:
    """The error for a name that does not exist, with the nearest and all legal ones."""
    legal = sorted(legal)
    place = f"{where}: " if where else ""
    return UnknownNameError(
        f"{place}unknown {what} {name!r}.{did_you_mean(name, legal)}"
        f" Legal: {', '.join(legal) if legal else '(none)'}."
    )


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
