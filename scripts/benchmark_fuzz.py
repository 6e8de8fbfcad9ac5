"""Damaged and hostile files through the public functions: each is read, or refused by one error, and nothing in it runs."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import random
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml

import dlblocks
from dlblocks.checkpoints import newest, read
from dlblocks.errors import UserError
from dlblocks.recipe import check
from dlblocks.results import Result
from dlblocks.runs import read_recipe, read_status, saved_recipe
from dlblocks.sweeps.picture import read_curves
from dlblocks.trainer import build_callbacks, build_loggers

LIMIT = 20  # seconds for one case
GROUPS = ("callbacks", "logger")
QUIET = ("callbacks.progress_bar=null", "callbacks.model_summary=null", "trainer.max_epochs=2")
SHELL = (
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "dlblocks.results.os.system",
)
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, float("nan"), "", "os.system", "é\0", [], {}, [[]], {"a": [1, "x"]},
    {"_target_": "os.system", "command": "touch ran"}, "${oc.create:{_target_: os.system, command: touch ran}}",
)  # fmt: skip

# What ran though nothing should: told by Python itself, whatever the payload does.
ran: list[str] = []
_watching = False


def _note(event: str, _: tuple[Any, ...]) -> None:
    if _watching and event in (
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess.Popen",
        "os.mkdir",
    ):
        ran.append(event)


class Payload:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


PAYLOADS = (
    Payload(os.system, "touch ran"),
    Payload(eval, "__import__('os').mkdir('ran')"),
    Payload(exec, "open('ran', 'w')"),
    Payload(os.mkdir, "ran"),
    Payload(open, "ran", "w"),
)


def fuzz(cases: int) -> list[tuple[str, ...]]:
    """One row for each kind of damage: cases, files read, files refused, and anything else, of which there must be none."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _inside(Path(folder)):
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        dlblocks.train(dlblocks.compose("data=wine", "model.widths=[8]", *QUIET), "run")
        for kind, (share, make) in _kinds(Path("run")).items():
            ends = _ends(kind, make, max(1, int(cases * share)))
            rows.append(
                (
                    kind,
                    f"{ends.total()} cases",
                    f"{ends['read']} read",
                    f"{ends['refused']} refused",
                    f"{ends['other']} other",
                    "0 other",
                )
            )
    return rows


def _ends(kind: str, make: Callable[[random.Random], Callable[[], Any]], cases: int) -> Counter[str]:
    ends: Counter[str] = Counter()
    for number in range(cases):
        use = make(random.Random(f"{kind} {number}"))
        ends[_end(f"{kind}, case {number}", use)] += 1
    return ends


def _end(name: str, use: Callable[[], Any]) -> str:
    try:
        with _watched():
            use()
        end = "read"
    except UserError:
        end = "refused"
    except BaseException as error:
        print(f"{name}: {''.join(traceback.format_exception(error)[-4:])}", file=sys.stderr)
        end = "other"
    if ran or Path("ran").exists():
        print(f"{name}: ran {ran}", file=sys.stderr)
        ran.clear()
        end = "other"
    return end


def _kinds(run: Path) -> dict[str, tuple[float, Callable[[random.Random], Callable[[], Any]]]]:
    """Share of the cases, and what writes one damaged file and gives the reading of it."""
    best = run / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    content = torch.load(best, weights_only=True)
    recipe = read_recipe(run)
    text = (run / "config.yaml").read_bytes()
    result = (run / "result.json").read_bytes()
    curves = (run / "curves.csv").read_bytes()

    def checkpoint(data: bytes, choose: random.Random) -> Callable[[], Any]:
        best.write_bytes(data)
        return choose.choice(
            (
                lambda: read(best),
                lambda: dlblocks.load(best),
                lambda: dlblocks.load(run),
                lambda: _newest(run),
            )
        )

    def config(data: bytes) -> Callable[[], Any]:
        (run / "config.yaml").write_bytes(data)
        return lambda: _begin(run)

    def saved(name: str, data: bytes) -> Callable[[], Any]:
        (run / name).write_bytes(data)
        if name == "curves.csv":
            return lambda: read_curves(run)
        return lambda: (read_status(run), Result.load(run).table())

    return {
        "checkpoint: bytes": (0.2, lambda c: checkpoint(_bytes(whole, c), c)),
        "checkpoint: parts of the archive": (0.1, lambda c: checkpoint(_parts(whole, c), c)),
        "checkpoint: hyper-parameters": (
            0.1,
            lambda c: checkpoint(
                _dumped({**content, "hyper_parameters": _values(content["hyper_parameters"], c)}), c
            ),
        ),
        "checkpoint: gone on from": (0.02, lambda c: _resumed(run, content, c)),
        "checkpoint: values and tensors": (0.08, lambda c: checkpoint(_dumped(_values(content, c)), c)),
        "checkpoint: pickled calls": (0.05, lambda c: checkpoint(_calls(content, whole, c), c)),
        "config.yaml: bytes": (0.1, lambda c: config(_bytes(text, c))),
        "config.yaml: values and targets": (0.15, lambda c: config(_yaml(recipe, c))),
        "result.json: bytes": (0.1, lambda c: saved("result.json", _bytes(result, c))),
        "result.json: values": (
            0.05,
            lambda c: saved("result.json", json.dumps(_values(json.loads(result), c), default=str).encode()),
        ),
        "curves.csv: bytes": (0.05, lambda c: saved("curves.csv", _bytes(curves, c))),
    }


def _newest(run: Path) -> None:
    """What `resume=` does to find where it goes on; the undamaged `last.ckpt` is always found."""
    path, damaged = newest(run)
    if path is None:
        raise AssertionError("a whole checkpoint was not found")
    if damaged:
        raise UserError(damaged[0])


def _resumed(run: Path, content: Any, choose: random.Random) -> Callable[[], Any]:
    """Trains for another epoch with values and tensors changed that only going on uses."""
    weights = {"state_dict", "hyper_parameters"}
    changed = _values({key: value for key, value in content.items() if key not in weights}, choose)
    Path("strange.ckpt").write_bytes(_dumped(changed | {key: content[key] for key in weights}))
    recipe = dlblocks.compose("data=wine", "model.widths=[8]", *QUIET[:2], "trainer.max_epochs=3")
    new = f"{run}-{choose.random()}"

    def train() -> None:
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                dlblocks.train(recipe | {"ckpt_path": "strange.ckpt", "diagnose": "off"}, new)
        finally:
            # A run makes its folder and asks git for the revision by itself; a payload would leave its file.
            ran[:] = [event for event in ran if event not in ("os.mkdir", "subprocess.Popen")]

    return train


def _begin(run: Path) -> None:
    """What `resume=` and `repeat=` do with a recipe before they train."""
    (run / "result.json").unlink(missing_ok=True)
    recipe = check(saved_recipe(run, None))
    words = {"run": str(run), "metric": "val/loss", "mode": "min", "name": "a"}
    build_callbacks(recipe.callbacks, words)
    build_loggers(recipe.logger, words)


def _bytes(whole: bytes, choose: random.Random) -> bytes:
    """Bits turned, the end cut off, a stretch left out, doubled, or put in from elsewhere in the file."""
    data = bytearray(whole)
    for _ in range(choose.randint(1, 4)):
        place, other = sorted(choose.randrange(len(data) + 1) for _ in range(2))
        kind = choose.randrange(6)
        if kind < 3 and data:
            data[min(place, len(data) - 1)] ^= 1 << choose.randrange(8)
        elif kind == 3:
            del data[other:]
        elif kind == 4:
            del data[place : min(other, place + 64)]
        else:
            data[place:place] = data[place : min(other, place + 64)]
    return bytes(data)


def _parts(whole: bytes, choose: random.Random) -> bytes:
    """The archive with a part that is missing, empty, exchanged, packed, or blown up."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        parts = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at, other = choose.randrange(len(parts)), choose.randrange(len(parts))
    name, data = parts[at]
    kind = choose.randrange(6)
    packing = zipfile.ZIP_STORED
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts[at] = name, b""
    elif kind == 2:
        parts[at], parts[other] = (name, parts[other][1]), (parts[other][0], data)
    elif kind == 3:
        parts[at], packing = (name, bytes(10 ** choose.randint(1, 7))), zipfile.ZIP_DEFLATED
    elif kind == 4:
        parts[at] = f"../{name}", data
    else:
        parts[at] = name, _bytes(data, choose) if data else b"x"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, data in parts:
            archive.writestr(name, data)
    return file.getvalue()


def _values(content: Any, choose: random.Random) -> Any:
    """The same with one to three values anywhere in it replaced, left out, renamed, or nested."""
    content = copy.deepcopy(content)
    for _ in range(choose.randint(1, 3)):
        if not content:
            return content
        holder, key = _place(content, choose)
        kind = choose.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[choose.choice(("x", "_target_", 3))] = holder.pop(key)
        elif kind == 2:
            for _ in range(choose.choice((3, 60, 120))):
                holder[key] = [holder[key]]
        elif isinstance(holder[key], torch.Tensor):
            holder[key] = _tensor(holder[key], choose)
        elif kind == 3 and type(holder[key]) in (int, float):
            holder[key] = holder[key] * choose.choice((-1, 0, 2, 10**4, 10**9))
        else:
            holder[key] = copy.deepcopy(choose.choice(STRANGE))
    return content


def _tensor(tensor: torch.Tensor, choose: random.Random) -> Any:
    # One stored number, and a shape that claims a hundred million of them.
    huge = torch.zeros(1).expand(10**4, 10**4)
    return choose.choice(
        (tensor.flatten()[:-1], tensor.double(), tensor.to(torch.int8), tensor[None], huge, "x", None)
    )


def _place(content: Any, choose: random.Random) -> tuple[Any, Any]:
    """Some key of a mapping or list: a walk down, so that long lists get no more of them than short ones."""
    while True:
        key = choose.choice(list(content) if isinstance(content, dict) else range(len(content)))
        inner = content[key]
        if not isinstance(inner, (dict, list)) or not inner or choose.random() < 0.15:
            return content, key
        content = inner


def _dumped(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _calls(content: Any, whole: bytes, choose: random.Random) -> bytes:
    """A call in the place of some value, by torch.save or in a bare pickle, whole or with a damaged end."""
    content = copy.deepcopy(content)
    holder, key = _place(content, choose)
    holder[key] = choose.choice(PAYLOADS)
    data = _dumped(content) if choose.random() < 0.7 else pickle.dumps(holder[key], choose.randrange(6))
    kind = choose.randrange(3)
    return data if kind else data + whole if choose.random() < 0.5 else _bytes(data, choose)


def _yaml(recipe: dict[str, Any], choose: random.Random) -> bytes:
    """A recipe with strange values, targets that are functions, tags that are calls, or aliases that blow up."""
    kind = choose.randrange(5)
    recipe = _values(recipe, choose) if kind < 3 else copy.deepcopy(recipe)
    group, shell = choose.choice(GROUPS), choose.choice(SHELL)
    target = {
        "_target_": shell,
        choose.choice(("command", "args", "_args_")): choose.choice(("touch ran", ["touch ran"])),
    }
    if kind == 2:
        recipe[group] = {"mine": target}
    elif kind == 3:
        timer = "lightning.pytorch.callbacks.Timer"
        recipe["callbacks"] = {
            "mine": {"_target_": timer, "duration": choose.choice((target, [target], *STRANGE))}
        }
    text = yaml.safe_dump(recipe, sort_keys=False)
    if kind == 4:
        laughs = "".join(
            f"  a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, choose.choice((3, 9, 30)))
        )
        call = f"!!python/object/apply:{shell} ['touch ran']"
        place = choose.choice(("callbacks", "trainer", "sweep", "data", "name"))
        del recipe[place]
        ending = choose.choice(
            (f"{place}:\n  a0: &a0 x\n{laughs}", f"{place}: {call}", f"{place}: &a [*a]", f"{call}: 1")
        )
        text = yaml.safe_dump(recipe, sort_keys=False) + ending
    return text.encode()


@contextmanager
def _watched() -> Iterator[None]:
    global _watching
    _watching = True
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        _watching = False


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In a folder where a payload leaves its mark, with a limit on the time of each case."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    before, handler = Path.cwd(), signal.signal(signal.SIGALRM, late)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        signal.signal(signal.SIGALRM, handler)


sys.addaudithook(_note)
