"""The demonstration's table, picture and self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from saqkit.spec import trace
from saqkit.spec.showing import describe

if TYPE_CHECKING:
    from saqkit.cli.demonstration import DemoResult
    from sim import Comparison

PAGE = Path(__file__).with_name("demo_report.html")
INCHES = (8.0, 6.4)
DPI = 150
HEAD = ("", "measured", "predicted", "90 % interval", "error", "inside")


def table_of(comparison: Comparison, measures: Sequence[str] = trace.MEASURES) -> str:
    """The comparison as lines of text, a row per measure."""
    rows = [HEAD, *_rows(comparison, measures)]
    first, *others = (max(len(row[n]) for row in rows) for n in range(len(HEAD)))
    return "\n".join(
        "   ".join(
            [f"   {row[0]:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))]
        )
        for row in rows
    )


def picture_of(comparison: Comparison) -> bytes:
    """A PNG: users done and jobs waiting over time, the measured line over the predicted band."""
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for ax in (upper, lower):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#DDDDDD", linewidth=0.6)
    comparison.plot((upper, lower))
    settings = comparison.prediction.combinations[0].settings
    slots = settings["concurrency"]
    shown = f"{min(slots.values())} to {max(slots.values())}" if isinstance(slots, dict) else slots
    upper.set_title(
        f"{settings['topology']}: {settings['users']:,} users on {settings['workers']} worker processes "
        f"× {shown} slots, batches of {settings['batch_size']}",
        loc="left",
        fontsize=11,
    )
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=DPI)
    return target.getvalue()


def report_of(demo: DemoResult, picture: bytes, caveats: Iterable[str]) -> str:
    """The page; it holds its picture and style, and asks no other address for anything."""
    cell, facts = demo.prediction.combinations[0], demo.run.facts
    makespan = demo.comparison.to_dict()["makespan_s"]
    users, workers = cell.settings["users"], cell.settings["workers"]
    verdict = (
        f"{users:,} users on {workers} worker processes took {makespan['measured']:.2f} s. Predicted were "
        f"{makespan['predicted']:.2f} s, with 90 % of runs within {makespan['lo']:.2f} and {makespan['hi']:.2f} s: "
        f"an error of {makespan['error']:+.1%}, {'inside' if makespan['inside'] else 'outside'} the interval."
    )
    story = [
        f"A small real run: {demo.calibration!r}",
        f"Fitted to it alone: {demo.profile!r}",
        f"Predicted and written down at {demo.predicted_at:%H:%M:%S.%f} UTC; bottleneck: {cell.bottlenecks[0]}",
        f"The real run, with other draws, was started at {demo.began_at:%H:%M:%S.%f} UTC: {demo.run!r}",
    ]
    host = {
        name: facts[name] for name in ("host", "cores", "platform", "python", "broker", "date") if name in facts
    } | {f"version of {name}": version for name, version in facts.get("versions", {}).items()}
    host |= {"CPU used by others during the run": f"{facts.get('other_load', 0.0):.1%}"}
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(demo.topology.title or demo.topology.name),
        verdict=html.escape(verdict),
        picture=base64.b64encode(picture).decode("ascii"),
        table=_html_table(HEAD, _rows(demo.comparison, trace.MEASURES)),
        story=_items(story),
        overrides=_items(demo.overrides.values()) or "<li>nothing</li>",
        caveats=_items([*caveats, *(note for note in demo.profile.diagnostics if "was disturbed" not in note)]),
        topology=html.escape(describe(demo.topology)),
        host=_html_table(("", ""), [(name, str(value)) for name, value in host.items()]),
        seconds=f"{demo.seconds:.0f}",
    )


def _rows(comparison: Comparison, measures: Sequence[str]) -> list[tuple[str, ...]]:
    found = comparison.to_dict()
    rows: list[tuple[str, ...]] = []
    for name in measures:
        row = found[name]
        error = "" if row["error"] is None else f"{row['error']:+.1%}"
        interval = f"[{_number(row['lo'])}, {_number(row['hi'])}]"
        inside = "yes" if row["inside"] else "no"
        rows.append((name, _number(row["measured"]), _number(row["predicted"]), interval, error, inside))
    return rows


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{html.escape(text)}</li>" for text in texts)


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if any(head) else ''}<tbody>{body}</tbody></table>"
