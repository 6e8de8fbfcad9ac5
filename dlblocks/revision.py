"""Which commit the working directory is at, for results that can be repeated."""

from __future__ import annotations

import os
import subprocess

# A program that the repository's own settings name is not started.
_STATUS = [
    "git",
    "-c",
    "core.fsmonitor=false",
    "status",
    "--porcelain=v2",
    "--branch",
    "--untracked-files=no",
]


def revision() -> tuple[str | None, bool | None]:
    """The git commit of the working directory, and whether files that git follows differ from it; None and None where
    there is no git, no repository, or no commit."""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            _STATUS,
            env=quiet,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, None
    lines = done.stdout.splitlines()
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    if not commits or commits[0] == "(initial)":
        return None, None
    return commits[0], any(not line.startswith("#") for line in lines)
