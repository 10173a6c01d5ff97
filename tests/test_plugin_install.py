"""A plugin in an environment of its own: installed it is one of the passes, uninstalled it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "plugins" / "bottleneck-opt-cp"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of a fresh environment that sees what is installed here, and this copy of the tool."""
    venv.create(tmp_path / "fresh", with_pip=False)
    made = tmp_path / "fresh" / "bin" / "python"
    packages = Path(run(made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "here.pth").write_text("\n".join(here), encoding="utf-8")
    return made


def run(python: Path, *arguments: str | Path) -> str:
    """What a command prints."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, env=surroundings, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(python: Path) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads(run(python, "-m", "bottleneck_opt", "passes", "--json"))}


@pytest.mark.skipif(sys.platform == "win32", reason="the environment's Python lies elsewhere on Windows")
def test_installing_a_plugin_adds_its_pass_and_uninstalling_takes_it_away(python: Path, tmp_path: Path) -> None:
    source = shutil.copytree(PLUGIN, tmp_path / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", source)
    after = listed(python)
    assert after["cp"] == {
        "name": "cp",
        "summary": after["cp"]["summary"],
        "origin": "bottleneck-opt-cp",
        "version": "0.1.0",
        "defined": "bottleneck_opt_cp.cp:Cp",
        "default": False,
        "options": [
            {"name": "ranks", "type": "int", "default": "4"},
            {"name": "iterations", "type": "int", "default": "10"},
        ],
        "error": "",
    }
    assert {"reduce", "expand"} <= set(after)
    run(python, "-m", "pip", "uninstall", "-q", "-y", "bottleneck-opt-cp")
    assert listed(python) == {name: each for name, each in after.items() if name != "cp"}


def test_the_core_imports_no_plugin() -> None:
    names = [path.name.replace("-", "_") for path in (ROOT / "plugins").iterdir() if path.is_dir() and "-" in path.name]
    assert len(names) == 3
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "bottleneck_opt").rglob("*.py")]
    assert [name for name in names if any(name in source for source in sources)] == []


@pytest.mark.parametrize("name", ["cp", "lightning", "nonlinear"])
def test_every_plugin_is_a_distribution_with_readme_and_licence(name: str) -> None:
    folder = ROOT / "plugins" / f"bottleneck-opt-{name}"
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    assert f'name = "bottleneck-opt-{name}"' in project
    assert 'license = "Apache-2.0"' in project
    assert "[LICENSE](../../LICENSE)" in (folder / "README.md").read_text(encoding="utf-8")
    assert list((folder / "tests").glob("test_*.py"))
