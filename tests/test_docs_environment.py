"""docs/environment.md names every variable that the kit reads, and no other."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "environment.md"
BY_QUEUE = "EMAIL_QUEUE_CONCURRENCY"
"""Stands for all of its kind, whose names are made of those of queues."""
MADE = {("saqkit/topology_environment.py", "variable")}
"""Reads of a name that is not written in the source."""


def _is_environ(node: ast.expr) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "environ") or (
        isinstance(node, ast.Name) and node.id == "environ"
    )


def _keys(node: ast.AST) -> Iterator[ast.expr]:
    """What an expression looks up in the environment."""
    match node:
        case ast.Call(func=ast.Attribute(value=place, attr="get" | "pop" | "setdefault"), args=[key, *_]):
            if _is_environ(place):
                yield key
        case ast.Call(func=ast.Attribute(attr="getenv") | ast.Name(id="getenv"), args=[key, *_]):
            yield key
        case ast.Subscript(value=place, slice=key, ctx=ast.Load()) if _is_environ(place):
            yield key
        case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[place]) if _is_environ(place):
            yield key
        case ast.keyword(arg="envvar", value=key):
            yield key


def reads(source: str) -> tuple[set[str], set[str]]:
    """The variables that a module reads, and the names of those that it makes up while it runs."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    known, made = set[str](), set[str]()
    for key in (key for node in ast.walk(tree) for key in _keys(node)):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            known.add(key.value)
        elif isinstance(key, ast.Name) and isinstance(constants.get(key.id), str):
            known.add(str(constants[key.id]))
        else:
            made.add(ast.unparse(key))
    return known, made


def modules() -> dict[str, str]:
    paths = sorted(ROOT.joinpath("saqkit").rglob("*.py"))
    assert paths
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def documented() -> list[str]:
    return re.findall(r"^\| `([A-Z][A-Z0-9_]*)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('import os\nos.environ.get("A")\nos.environ["B"]\nos.getenv("C", "")', ({"A", "B", "C"}, set())),
        ('V = "A"\ndef f(environ):\n    return environ.get(V) or "B" in environ', ({"A", "B"}, set())),
        ('import os\nos.environ["A"] = "1"\n{**os.environ}\n{}.get("B")', (set(), set())),
        ('@click.option("--x", envvar="A")\ndef f(): ...', ({"A"}, set())),
        ("import os\ndef f(name):\n    return os.environ.get(name)", (set(), {"name"})),
    ],
)
def test_a_read_is_seen(source: str, expected: tuple[set[str], set[str]]) -> None:
    assert reads(source) == expected


def test_every_variable_that_is_read_is_documented_and_no_other() -> None:
    found, made = set[str](), set[tuple[str, str]]()
    for path, source in modules().items():
        known, dynamic = reads(source)
        found |= known
        made |= {(path, name) for name in dynamic}
    assert made == MADE, "a read whose variable is not written out: write it out, or say here what it reads"
    names = documented()
    assert len(names) == len(set(names)), "a variable is documented twice"
    assert sorted(found | {BY_QUEUE}) == sorted(names)


def test_every_variable_of_ours_that_is_spoken_of_is_documented() -> None:
    spoken = {name for source in modules().values() for name in re.findall(r"\bSAQKIT_[A-Z_]+[A-Z]\b", source)}
    assert spoken - set(documented()) == set()


@pytest.fixture(scope="module")
def set_by_the_user() -> Iterator[set[str]]:
    """Every variable but those of the test run itself, set before a test begins."""
    names = set(documented()) - {"CI", "PYTHONPATH"}
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, "the user's")
        yield names


def test_no_test_sees_what_the_user_has_set(set_by_the_user: set[str]) -> None:
    assert BY_QUEUE in set_by_the_user
    assert [name for name in sorted(set_by_the_user) if name in os.environ] == []
