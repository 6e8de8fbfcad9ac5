"""`key=value` command lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlblocks.arguments import command, parse
from dlblocks.errors import UserError
from dlblocks.records import Param

ROOT = Path(__file__).resolve().parents[1]
PARAMS = (
    Param("run", "", "str", "the folder"),
    Param("split", "test", "str", "the part", choices=("val", "test")),
    Param("size", 8, "int", "of a batch", "[1, inf)"),
    Param("overwrite", False, "bool", "an existing file"),
    Param("device", None, "str", "the device"),
)


def test_values_have_the_types_of_their_parameters() -> None:
    given = ["run=a=b c", "split=val", "size=3", "overwrite=True", "device=null"]
    assert parse(given, PARAMS) == {
        "run": "a=b c",
        "split": "val",
        "size": 3,
        "overwrite": True,
        "device": None,
    }
    assert parse(["run=1"], PARAMS, ["run"])["run"] == "1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["runn=x"], r"runn: unknown key\. Did you mean 'run'\? Keys: run, split"),
        (["--split", "val"], r"--split: arguments are key=value\. Did you mean 'split'"),
        (["run=x", "run=y"], "run: given twice"),
        (["split=tset"], r"split=.*tset.*: must be one of val, test .*Did you mean 'test'"),
        (["size=0"], r"size=0: must be a whole number in \[1, inf\)"),
        (["size=many"], r"size=.*many.*: must be a whole number"),
        (["overwrite=1"], "overwrite=.*1.*: must be true or false"),
        ([], "run: missing; the folder"),
        (["run="], "run: missing"),
    ],
    ids=str,
)
def test_mistakes_are_told(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(given, PARAMS, ["run"])


def test_commands_end_in_one_message_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: BaseException) -> int:
        def work(**_: object) -> None:
            raise error

        monkeypatch.setattr(sys, "argv", ["x.py", "run=a"])
        return command("Does it.", PARAMS, work)

    assert fail(UserError("wrong [bold]")) == 1
    assert capsys.readouterr().err == "error: wrong [bold]\n"
    assert fail(FileNotFoundError(2, "No such file or directory", "a.csv")) == 1
    assert capsys.readouterr().err == "error: a.csv: No such file or directory\n"
    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("name", ["evaluate", "export", "predict"])
def test_help_of_the_scripts_needs_no_torch(name: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{name}.py', '--help']\n"
        f"try: runpy.run_path(r'{ROOT / 'scripts' / name}.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "run " in done.stdout
    assert "required" in done.stdout
