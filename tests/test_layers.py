"""Imports run downwards only, names are not shadowed, and no file tells where it was written."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("saqkit", "sim")
    for path in sorted(ROOT.joinpath(package).rglob("*.py"))
}

FLOORS = {
    "saqkit.errors": 1,
    "saqkit.spec": 2,
    "saqkit.broker": 2,
    "saqkit.queue": 3,
    "saqkit.bus": 4,
    "saqkit.app": 4,
    "saqkit.recorder": 5,
    "saqkit.worker": 5,
    "saqkit.measuring": 6,
    "saqkit.cli": 7,
    "saqkit.testing": 8,
}
HEAVY = {"matplotlib", "pandas", "redis", "saq", "simpy", "sqlalchemy"}


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every module that a source file names in an import, wherever it stands, functions included.

    `from package import name` names `package.name` where that is a module of ours, else `package`.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                parts = module.split(".") if is_package else module.split(".")[:-1]
                base = parts[: len(parts) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    full = f"{source}.{alias.name}"
                    yield full if full in MODULES or full in FLOORS else source
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                    yield importlib.util.resolve_name(node.args[0].value, module)


def within(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def floor(module: str) -> int | None:
    return next((level for place, level in FLOORS.items() if within(module, place)), None)


def forbidden(module: str, imported: str) -> bool:
    """Whether this arrow of the house points the wrong way."""
    if within(module, "saqkit.spec"):
        if within(imported, "saqkit"):
            return not within(imported, "saqkit.spec", "saqkit.errors")
        return within(imported, "redis", "saq", "simpy", "sim", "sqlalchemy")
    if within(module, "sim"):
        if within(imported, "saqkit"):
            return not within(imported, "saqkit.spec", "saqkit.errors")
        return within(imported, "redis", "saq")
    if within(imported, "sim"):
        return not module.startswith("saqkit.cli")
    here, there = floor(module), floor(imported)
    return here is not None and there is not None and there > here


def wrong_arrows(module: str, source: str, is_package: bool = False) -> list[str]:
    return [name for name in imports(ast.parse(source), module, is_package) if forbidden(module, name)]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards_only(module: str) -> None:
    path = MODULES[module]
    assert wrong_arrows(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("saqkit.spec.trace", "import redis.asyncio", ["redis.asyncio"]),
        ("saqkit.spec.trace", "from saqkit.queue import Queue", ["saqkit.queue"]),
        ("saqkit.spec.trace", "from ..errors import SaqkitError", []),
        ("saqkit.queue.queue", "def f():\n    import sim", ["sim"]),
        ("saqkit.queue.queue", "import simpy, saq", []),
        ("saqkit.queue.queue", "from saqkit import worker", ["saqkit.worker"]),
        ("saqkit.cli", "import sim", []),
        ("saqkit.measuring", "from importlib import import_module\nimport_module('sim.engine')", ["sim.engine"]),
        ("sim.engine.model", "from saqkit import spec\nfrom saqkit.errors import RunError", []),
        ("sim.engine.model", "import saqkit", ["saqkit"]),
        ("sim.engine.model", "from saqkit import measure", ["saqkit"]),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str, wrong: list[str]) -> None:
    assert wrong_arrows(module, source) == wrong


def test_no_file_is_a_drawer_for_leftovers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "tools"}
    assert [module for module in MODULES if drawers.intersection(part.strip("_") for part in module.split("."))] == []


@pytest.mark.parametrize("package", ["saqkit", "sim"])
def test_no_submodule_bears_the_name_of_a_public_attribute(package: str) -> None:
    face = importlib.import_module(package)
    shadows = [
        name
        for name in face.__all__
        if f"{package}.{name}" in MODULES and not isinstance(getattr(face, name), ModuleType)
    ]
    assert shadows == []


@pytest.mark.parametrize("package", ["saqkit", "sim"])
def test_all_is_what_is_exported(package: str) -> None:
    face = importlib.import_module(package)
    modules = {name for name in [*dir(face), *face.__all__] if f"{package}.{name}" in MODULES}
    exported = {name for name in dir(face) if not name.startswith("_")} - modules
    assert exported == {name for name in face.__all__ if not name.startswith("_")} - modules
    assert [name for name in face.__all__ if not hasattr(face, name)] == []


def test_every_all_is_sorted() -> None:
    unsorted = []
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                    assert isinstance(node.value, ast.List | ast.Tuple), f"{module}: __all__ is not a plain list"
                    names = [ast.literal_eval(name) for name in node.value.elts]
                    unsorted += [module] if names != sorted(set(names)) else []
    assert unsorted == []


@pytest.mark.parametrize("package", ["saqkit", "sim"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert package in loaded
    assert loaded & HEAVY == set()


def test_tests_use_no_private_name_of_the_packages() -> None:
    private = [
        f"{path.name}: {node.module}.{alias.name}"
        for path in sorted(ROOT.joinpath("tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and within(node.module, "saqkit", "sim")
        for alias in node.names
        if re.search(r"(^|\.)_[^_]", f"{node.module}.{alias.name}")
    ]
    assert private == []


def files_of_the_project() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listing.returncode:
        reason = "not a git work tree: the files of the project are unknown"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    paths = [ROOT / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_tells_where_it_was_written_or_fetched() -> None:
    homes = {re.escape(str(place)) for place in (ROOT, Path.home()) if place != Path("/")} | {"/root", "/work"}
    path = re.compile(rf"(?<![\w.])(?:{'|'.join(sorted(homes))})/")
    registry = re.compile(r"pypi[.]org|pythonh[o]sted[.]org|registry[.]npm|deb[.]debian[.]org|repo[.]anaconda[.]com")
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in files_of_the_project()
        if b"\0" not in (content := file.read_bytes())
        for pattern in (path, registry)
        for match in pattern.finditer(content.decode(errors="replace"))
    ]
    assert found == []


def test_public_names_stay_what_they_are_when_every_module_is_imported() -> None:
    modules = sorted(name for name in MODULES if not name.endswith("__main__"))
    code = f"""
import importlib, saqkit, sim
for module in {modules!r}:
    importlib.import_module(module)
for package in (saqkit, sim):
    print(*(f"{{package.__name__}}.{{name}}" for name in package.__all__ if not callable(getattr(package, name))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "a module has taken the place of a function or class"
