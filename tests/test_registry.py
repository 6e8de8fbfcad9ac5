"""The registry."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dlblocks
from dlblocks.errors import DuplicateBlockError, MissingPackageError, UnknownNameError, UserError, nearest
from dlblocks.records import Block, Param
from dlblocks.registry import CATALOGUES, REGISTRY, Registry, build, names, register


@pytest.fixture
def name() -> Iterator[str]:
    """A name of a block that this test may add; it is gone afterwards."""
    own = f"block_{uuid.uuid4().hex[:8]}"
    blocks, aliases = (
        dict(REGISTRY._blocks.get("activation", {})),
        dict(REGISTRY._aliases.get("activation", {})),
    )
    yield own
    if blocks:
        REGISTRY._blocks["activation"], REGISTRY._aliases["activation"] = blocks, aliases
    else:
        REGISTRY._blocks.pop("activation", None)


@pytest.mark.parametrize("kind", CATALOGUES)
def test_every_record_is_whole(kind: str) -> None:
    for block_name in names(kind):
        block = REGISTRY.get(kind, block_name)
        assert block.kind == kind
        assert block.summary.endswith((".", ")")), block_name
        assert callable(block.load())
        assert block.check(block.defaults()) is not None
        assert block_name in block.describe()
        if kind not in ("model", "dataset"):
            # Of an extra package's, the paper says it; the page names it.
            assert block.formula or block.package, block_name
            assert block.source, block_name
        if kind in ("activation", "initializer", "loss"):
            assert block.shape, block_name
        for param in block.params:
            assert param.doc, f"{block_name}.{param.name}"


def test_names_match_patterns() -> None:
    assert names("activation", "?elu") == ["celu", "gelu", "relu", "selu"]
    assert names("activation", "nothing*") == []


def test_aliases_lead_to_the_same_record() -> None:
    assert REGISTRY.get("activation", "swish") is REGISTRY.get("activation", "silu")
    assert "swish" not in names("activation")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dlblocks.activation("eluu"), "activation: unknown activation 'eluu'. Did you mean 'elu'"),
        (lambda: dlblocks.activation("ELU"), "Did you mean 'elu'"),
        (lambda: dlblocks.activation("zzz"), "'zzz'. Legal: celu"),
        (lambda: names("activations"), "Did you mean 'activation'"),
        (lambda: dlblocks.activation("elu", alhpa=1), "no parameter 'alhpa'. Did you mean 'alpha'"),
        (lambda: dlblocks.activation("relu", alpha=1), "Its parameters: none"),
        (
            lambda: dlblocks.activation({"name": "elu", "alpha": "x"}),
            r"activation.alpha=x: must be a number in \[0, inf\)",
        ),
        (lambda: dlblocks.activation({"alpha": 1}), "must be a name or a mapping"),
        (lambda: dlblocks.activation("gelu", approximate="tan"), "one of none, tanh .*Did you mean 'tanh'"),
        (lambda: dlblocks.activation("maxout", pieces=2.5), "a whole number"),
        (lambda: dlblocks.activation("maxout", pieces=True), "a whole number"),
        (lambda: dlblocks.activation("elu", alpha=float("nan")), "alpha=nan"),
    ],
)
def test_one_message_with_what_would_be_right(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


def test_lists_are_checked_element_by_element() -> None:
    param = Param("betas", (0.9, 0.999), "floats", "", range="[0, 1)", size=2)
    assert param.check([0, 0.5], "x") == (0.0, 0.5)
    for wrong in ([0.9], [0.9, 1.0], "ab", 0.9, [0.9, "b"], None):
        with pytest.raises(UserError, match=r"must be a list of 2 numbers in \[0, 1\)"):
            param.check(wrong, "x")
    assert Param("w", None, "floats", "").check(None, "x") is None


def test_records_are_frozen() -> None:
    block = REGISTRY.get("activation", "elu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        block.tags["elementwise"] = False  # type: ignore[index]


@pytest.mark.parametrize("kind", CATALOGUES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_of_records_are_equal_and_frozen(kind: str, copied: Callable[[Block], Block]) -> None:
    for name in names(kind):
        block = REGISTRY.get(kind, name)
        other = copied(block)
        assert other is not block
        assert other == block
        assert other.describe() == block.describe()
        with pytest.raises(TypeError):
            other.tags["elementwise"] = False  # type: ignore[index]


@pytest.mark.parametrize("kind", CATALOGUES)
def test_records_are_hashable(kind: str) -> None:
    blocks = [REGISTRY.get(kind, block_name) for block_name in names(kind)]
    assert len({*blocks, *map(dataclasses.replace, blocks)}) == len(blocks)
    assert len({param for block in blocks for param in block.params}) > 0


def test_register_reads_the_signature(name: str) -> None:
    import torch

    class Scaled(torch.nn.Module):
        """Its input times a factor.

        More text.
        """

        def __init__(self, factor: float = 2.0, steps: int = 3) -> None:
            super().__init__()
            self.factor = factor
            self.steps = steps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    assert (
        register("activation", name, formula="factor * x", elementwise=True, aliases=(f"{name}_too",))(Scaled)
        is Scaled
    )
    block = REGISTRY.get("activation", f"{name}_too")
    assert block.summary == "Its input times a factor."
    assert block.formula == "factor * x"
    assert block.tags["elementwise"] is True
    assert block.defaults() == {"factor": 2.0, "steps": 3}
    assert dlblocks.activation(name, factor=3)(torch.ones(1)) == 3
    assert dlblocks.model("mlp", (2,), 1, name)(torch.ones(1, 2)).shape == (1, 1)
    with pytest.raises(UserError, match="a whole number"):
        dlblocks.activation(name, steps="many")
    register("activation", name)(Scaled)


def test_names_without_one_given_are_snake_case() -> None:
    registry_names = {"SquaredReLU": "squared_relu", "MyThing": "my_thing", "GLU": "glu", "ReLU6": "relu6"}
    from dlblocks.registry import _snake

    assert {key: _snake(key) for key in registry_names} == registry_names


def test_a_parameter_without_default_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="parameter 'size' has no default"):
        register("activation", name)(lambda size: size)


def test_the_same_definition_run_again_replaces_itself(name: str) -> None:
    def define(slope: float, aliases: tuple[str, ...]) -> None:
        @register("activation", name, aliases=aliases)
        class Own:
            def __init__(self, slope: float = slope) -> None:
                self.slope = slope

    define(1.0, (f"{name}_a", f"{name}_b"))
    define(2.0, (f"{name}_b", f"{name}_c"))
    assert REGISTRY.get("activation", name).defaults() == {"slope": 2.0}
    assert build("activation", f"{name}_c").slope == 2.0
    assert REGISTRY.has("activation", f"{name}_b")
    assert not REGISTRY.has("activation", f"{name}_a")


def test_duplicates_name_both_owners(name: str) -> None:
    first = Block(kind="activation", name=name, target="torch.nn:ReLU", owner="first_package")
    REGISTRY.add(first)
    for second in (
        dataclasses.replace(first, owner="second_package"),
        dataclasses.replace(first, name=f"{name}2", aliases=(name,), owner="second_package"),
    ):
        with pytest.raises(DuplicateBlockError, match="first_package and by second_package"):
            REGISTRY.add(second)
    with pytest.raises(DuplicateBlockError, match="dlblocks"):
        REGISTRY.add(dataclasses.replace(first, name="swish"))
    assert f"{name}2" not in names("activation")


def test_a_missing_package_gives_the_pip_command(name: str) -> None:
    REGISTRY.add(
        Block(kind="activation", name=name, target="no_such_package:X", package="no-such-package>=1")
    )
    with pytest.raises(MissingPackageError, match="pip install 'no-such-package>=1'"):
        build("activation", name)


def test_registries_are_independent() -> None:
    own = Registry({"activation": "dlblocks.activations"})
    own.add(Block(kind="activation", name="only_here", target="torch.nn:ReLU"))
    assert own.has("activation", "only_here")
    assert not REGISTRY.has("activation", "only_here")
    with pytest.raises(UnknownNameError):
        REGISTRY.get("activation", "only_here")


def test_nearest_is_best_first() -> None:
    assert nearest("glorot_unifrom", names("initializer"))[0] == "glorot_uniform"
    assert nearest("zzzz", ["elu"]) == []


PLUGIN = """
import dlblocks
from dlblocks.records import Block
BLOCKS = [Block(kind="activation", name="from_plugin", target="torch.nn:ReLU", owner="plugin")]
"""


def distribution(folder: Path, name: str, entry: str, module: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dlblocks.blocks]\n{name} = {entry}\n")
    (folder / f"{name}.py").write_text(module)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_entry_points_add_blocks_without_torch(tmp_path: Path) -> None:
    distribution(tmp_path, "plugin", "plugin:BLOCKS", PLUGIN)
    done = python(
        """
        import sys, dlblocks
        assert "from_plugin" in dlblocks.names("activation")
        assert dlblocks.compose("activation=from_plugin")["activation"] == {"name": "from_plugin"}
        assert "torch" not in sys.modules
        print(dlblocks.activation("from_plugin"))
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "ReLU()", done.stderr


def test_an_entry_point_without_owner_does_not_pass_for_dlblocks(tmp_path: Path) -> None:
    module = PLUGIN.replace("from_plugin", "elu").replace(', owner="plugin"', "")
    distribution(tmp_path, "thief", "thief:BLOCKS", module)
    code = "import dlblocks; dlblocks.names('activation'); print(dlblocks.activation('elu'))"
    done = python(code, tmp_path)
    assert done.stdout.strip() == "ELU(alpha=1.0)"
    assert "claimed twice: by dlblocks and by thief:BLOCKS" in done.stderr


def test_all_names_are_listed_without_torch(tmp_path: Path) -> None:
    done = python(
        """
        import sys
        from dlblocks.registry import CATALOGUES, REGISTRY, names
        for kind in CATALOGUES:
            for name in names(kind):
                REGISTRY.get(kind, name).describe()
        heavy = {"torch", "lightning", "numpy", "hydra", "omegaconf"} & set(sys.modules)
        print("heavy:", *heavy)
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "heavy:", done.stderr


def test_a_broken_entry_point_is_left_out_with_a_warning(tmp_path: Path) -> None:
    distribution(tmp_path, "broken", "broken", "raise RuntimeError('no way')")
    distribution(tmp_path, "thief", "thief:BLOCKS", PLUGIN.replace("from_plugin", "elu"))
    distribution(tmp_path, "fine", "fine:BLOCKS", PLUGIN)
    done = python("import dlblocks; print(dlblocks.names('activation', 'from*'))", tmp_path)
    assert done.stdout.strip() == "['from_plugin']"
    assert "broken" in done.stderr
    assert "RuntimeError: no way" in done.stderr
    assert "claimed twice: by dlblocks and by plugin" in done.stderr
