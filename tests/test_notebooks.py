"""What nbval does not look at: a notebook was executed from top to bottom, and stores nothing that it should not."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

README = Path(__file__).parent.parent / "README.md"
NOTEBOOKS = sorted(Path(__file__).parent.parent.joinpath("notebooks").glob("*.ipynb"))

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])(?:/(?:home|mnt|opt|private|root|tmp|usr|Users|var|work)/|[A-Za-z]:\\\w)")
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")


def test_the_notebooks_of_the_readme_are_there() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [path.stem for path in NOTEBOOKS]
    assert len(listed) >= 5


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def shown(cell: NotebookNode) -> str:
    """All text that a code cell shows, in every text format, without pictures."""
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts += [data for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


def test_is_a_valid_notebook(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)


def test_was_executed_from_top_to_bottom(notebook: NotebookNode) -> None:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert counts, "no code at all"


def test_stores_no_error_and_nothing_from_stderr(notebook: NotebookNode) -> None:
    bad = [
        (cell.execution_count, output.get("ename") or output.get("text"))
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert bad == []


def test_shows_no_absolute_path_and_no_memory_address(notebook: NotebookNode) -> None:
    texts = [cell.source for cell in notebook.cells] + [shown(cell) for cell in code_cells(notebook)]
    assert [found[0] for text in texts for found in ABSOLUTE_PATH.finditer(text)] == []
    assert [found[0] for text in texts for found in ADDRESS.finditer(text)] == []


def test_records_no_times_so_that_a_second_execution_gives_the_same_file(notebook: NotebookNode) -> None:
    assert [cell.execution_count for cell in code_cells(notebook) if "execution" in cell.metadata] == []


def test_has_no_cell_that_nbval_would_pass_unseen(notebook: NotebookNode) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells if cell.source.rstrip().endswith(";")] == []
    assert [cell.execution_count for cell in cells if "raises-exception" in cell.metadata.get("tags", [])] == []


def test_names_its_tier_and_a_measured_one_has_verdicts(notebook: NotebookNode) -> None:
    tier = notebook.metadata.get("saqkit", {}).get("tier")
    assert tier in {"measured", "model"}, 'metadata lacks "saqkit": {"tier": "measured" or "model"}'
    verdicts = [cell for cell in code_cells(notebook) if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert all(shown(cell).strip() for cell in verdicts), "a verdict cell shows nothing"
    assert verdicts or tier == "model", "nothing in this notebook is compared"
