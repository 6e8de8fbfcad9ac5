"""Checkpoint files: whole or not there, and nothing in them is run."""

from __future__ import annotations

import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from dlblocks.checkpoints import AtomicCheckpoints, fitting, newest, read
from dlblocks.errors import UserError
from dlblocks.runs import read_recipe, read_status


def content(step: int = 1) -> dict[str, object]:
    return {"state_dict": nn.Linear(2, 3).state_dict(), "global_step": step}


def write(path: Path, step: int = 1) -> None:
    AtomicCheckpoints().save_checkpoint(content(step), path)


def test_the_previous_last_stays_and_a_damaged_one_is_left_aside(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    write(last, 1)
    write(last, 2)
    found, damaged = newest(tmp_path)
    assert found is not None
    assert (found.path, damaged) == (last, [])
    last.write_bytes(last.read_bytes()[:-100])
    found, damaged = newest(tmp_path)
    assert found is not None
    assert found.path == last.with_name("last-previous.ckpt")
    assert len(damaged) == 1
    assert str(last) in damaged[0]
    assert found.content["global_step"] == 1


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "last.ckpt"
    write(last)
    before = last.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write(last, 2)
    assert last.read_bytes() == before
    assert list(tmp_path.iterdir()) == [last]


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_payload_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: damaged.*mkdir"):
        read("a.ckpt")
    Path("b.ckpt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"b\.ckpt: damaged"):
        read("b.ckpt")
    assert not Path("ran").exists()


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"bias is \(3,\) there and \(4,\) here"):
        fitting(read(tmp_path / "a.ckpt"), nn.Linear(2, 4), "a.ckpt")


def damaged(whole: bytes, choose: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(data))
        if choose.random() < 0.2:
            del data[place:]
            data += b" "
        else:
            data[place] = choose.randrange(256)
    return bytes(data)


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    choose = random.Random(0)
    write(tmp_path / "a.ckpt")
    (tmp_path / "config.yaml").write_text("seed: 0\ntrainer: {max_epochs: 3}\n")
    (tmp_path / "result.json").write_text('{"folder": "a", "status": "failed"}')
    files = {"a.ckpt": lambda: read(tmp_path / "a.ckpt")}
    files["config.yaml"] = lambda: read_recipe(tmp_path)
    files["result.json"] = lambda: read_status(tmp_path)  # type: ignore[assignment,return-value]
    refused = 0
    for name, reading in files.items():
        whole = (tmp_path / name).read_bytes()
        for _ in range(1000):
            (tmp_path / name).write_bytes(damaged(whole, choose))
            try:
                reading()
            except UserError:
                refused += 1
    assert 1000 < refused < 3000
