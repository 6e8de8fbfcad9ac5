"""Block groups in Hydra: composition, help, completion, sweeps, precedence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dlblocks
from dlblocks.errors import UserError
from dlblocks.hydra import BESIDE, GROUPS
from dlblocks.hydra.source import BlockSource
from dlblocks.recipe import check
from dlblocks.registry import REGISTRY, names

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
# What recipes have beside a block's parameters: of any application, and of conf/train.yaml.
IN_RECIPES = {**BESIDE, "optimizer": {"lr_reference_batch_size": None}}
FILE_GROUPS = ("data", "model", "regime", "trainer", "callbacks", "logger", "experiment")


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, check=False
    )


@pytest.mark.parametrize(("group", "kind"), GROUPS.items())
def test_every_block_is_an_option_with_all_its_defaults(group: str, kind: str) -> None:
    recipe = dlblocks.compose()
    for name in names(kind):
        block = REGISTRY.get(kind, name)
        composed = dlblocks.compose(f"{group}={name}")
        assert composed[group] == {"name": name, **block.defaults(), **IN_RECIPES.get(group, {})}
        assert {key: composed[key] for key in recipe if key != group} == {
            key: recipe[key] for key in recipe if key != group
        }
        for alias in block.aliases:
            assert dlblocks.compose(f"{group}={alias}")[group]["name"] == name


@pytest.mark.parametrize("group", FILE_GROUPS)
def test_every_file_of_conf_composes_to_a_legal_recipe(group: str) -> None:
    options = [path.stem for path in (ROOT / "conf" / group).glob("*.yaml")]
    assert options
    for option in options:
        check(dlblocks.compose(f"{group}={option}"))


def test_parameters_are_overridden_without_a_plus() -> None:
    recipe = dlblocks.compose(
        "activation=elu", "activation.alpha=0.5", "optimizer=sgd", "optimizer.momentum=0.9"
    )
    assert recipe["activation"] == {"name": "elu", "alpha": 0.5}
    assert recipe["optimizer"]["momentum"] == 0.9


def test_data_in_conf_have_the_registrys_defaults() -> None:
    loading = set(dlblocks.compose("data=digits")["data"])
    for name in names("dataset"):
        data = dlblocks.compose(f"data={name}")["data"]
        own = {key: value for key, value in data.items() if key == "name" or key not in loading}
        assert own == {"name": name, **REGISTRY.get("dataset", name).defaults()}


def test_models_in_conf_have_the_registrys_defaults() -> None:
    for name in names("model"):
        block = REGISTRY.get("model", name)
        defaults = block.defaults()
        # Of a library's models, the name on the command line is that in the library.
        names_of = (
            {"library": name, "name": defaults.pop("model")}
            if block.tags.get("predefined")
            else {"name": name}
        )
        assert dlblocks.compose(f"model={name}")["model"] == names_of | defaults


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["activaton=elu"], "Did you mean 'activation'"),
        (["activation=eluu"], "Did you mean 'elu'"),
        (["activation=elu", "activation.alhpa=1"], "Did you mean 'alpha'"),
        (["model.dpeth=3"], "Did you mean 'depth'"),
        (["trainer=ddpcpu"], "Did you mean 'ddp_cpu'"),
        (["data=digit"], "Did you mean 'digits'"),
        (["seed.x=1"], "seed has no keys"),
        (["batch_size=0"], "Did you mean 'data.batch_size'"),
        (["lr=-1"], "Did you mean 'optimizer.lr'"),
        (["dropout=1.5"], "Did you mean 'model.dropout'"),
        (["optimizer.lr=[1"], "can't be read as key=value"),
    ],
)
def test_wrong_overrides_get_the_nearest_name(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        dlblocks.compose(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_config_and_completion_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    (tmp_path / "lightning.py").write_text("raise AssertionError('lightning was imported')")
    env = {"PYTHONPATH": str(tmp_path)}
    shown = run("--help", cwd=tmp_path, **env)
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for kind in GROUPS.values() for name in names(kind))
    shown = run("--cfg", "job", "activation=elu", cwd=tmp_path, **env)
    assert shown.returncode == 0, shown.stderr
    assert "name: elu\n  alpha: 1.0" in shown.stdout
    shown = run("--info", "searchpath", cwd=tmp_path, **env)
    assert shown.returncode == 0, shown.stderr
    assert "dlblocks://" in shown.stdout
    line = "train.py activation=el"
    shown = run("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)), **env)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == ["activation=elu"]
    line = "train.py activation=elu activation.a"
    shown = run("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)), **env)
    assert shown.stdout.split() == ["activation.alpha="]
    assert not list(tmp_path.glob("runs"))


FOREIGN = """
import sys
import hydra
from dlblocks.hydra import register
register()
register()

@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(config):
    print(dict(config.activation), config.net.act.name)

main()
assert "torch" not in sys.modules
"""


def test_a_foreign_application_gets_the_groups_and_keeps_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "conf" / "activation").mkdir(parents=True)
    (tmp_path / "conf" / "app.yaml").write_text(
        "defaults:\n  - activation: elu\n  - activation@net.act: gelu\n  - _self_\n"
        "hydra:\n  run: {dir: out}\n  sweep: {dir: sweep}\n"
    )
    (tmp_path / "conf" / "activation" / "relu.yaml").write_text("name: mine\n")
    (tmp_path / "app.py").write_text(FOREIGN)

    def app(*arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "app.py", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return [line for line in done.stdout.splitlines() if line.startswith("{")]

    assert app() == ["{'name': 'elu', 'alpha': 1.0} gelu"]
    assert app("activation=relu") == ["{'name': 'mine'} gelu"]
    assert len(app("-m", "activation=glob(*elu*)")) == len(names("activation", "*elu*"))


# How a project that knows no recipes builds what it finds under a group.
BUILD: dict[str, Callable[[Any, nn.Module], object]] = {
    "activation": lambda spec, _: dlblocks.activation(spec),
    "init": lambda spec, net: dlblocks.initialize(net, spec),
    "bias_init": lambda spec, _: dlblocks.initializer(spec),
    "loss": lambda spec, _: dlblocks.loss(spec),
    "optimizer": lambda spec, net: dlblocks.optimizer(spec, net.parameters()),
    "scheduler": lambda spec, net: dlblocks.scheduler(
        spec, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=10
    ),
}


@pytest.mark.parametrize(("group", "kind"), GROUPS.items())
def test_what_a_foreign_application_gets_can_be_built_as_it_is(group: str, kind: str) -> None:
    source = BlockSource("dlblocks", "dlblocks://")
    for name in names(kind):
        if name != "sum":  # has no terms of its own
            spec = source.load_config(f"{group}/{name}").config
            assert BUILD[group](spec, nn.Linear(4, 3)) is not None, name


def test_no_other_application_gets_the_groups(tmp_path: Path) -> None:
    code = (
        "from hydra.core.plugins import Plugins; print([c.__module__ for c in Plugins.instance().discover()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "dlblocks" not in done.stdout
