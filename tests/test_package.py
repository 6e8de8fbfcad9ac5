"""The built wheel and the editable install."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            ROOT,
        ],
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_all_modules_conf_types_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    conf = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"dlblocks/{name}" for name in conf} <= names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dlblocks").rglob("*.py")}
    assert modules <= names
    assert "dlblocks/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)


CODE = """
import dlblocks, dlblocks.conf, pathlib, sys
print(pathlib.Path(dlblocks.conf.__file__).parent)
recipe = dlblocks.compose("activation=elu", "experiment=convnet_pairs")
assert recipe["model"]["name"] == "convnet", recipe
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_either_install_serves_conf(wheel: Path, tmp_path: Path, editable: bool) -> None:
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    # The dependencies are those of this environment; dlblocks itself is installed anew, before them on the path.
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    source = ["--no-build-isolation", "-e", ROOT] if editable else [wheel]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    if editable:
        requirements = [str(path) for path in Path(sys.prefix).glob("lib/python*/site-packages")]
        Path(site, "dependencies.pth").write_text("\n".join(requirements))
    subprocess.run([*pip, *source], check=True)
    if not editable:
        requirements = [str(path) for path in Path(sys.prefix).glob("lib/python*/site-packages")]
        Path(site, "dependencies.pth").write_text("\n".join(requirements))
    shown = subprocess.run([python, "-c", CODE], capture_output=True, text=True, check=True, cwd=tmp_path)
    conf = Path(shown.stdout.strip())
    assert conf == (ROOT / "conf" if editable else Path(site) / "dlblocks" / "conf")
