"""Writes into the page of each of the five systems what stands elsewhere: its diagram, and what is not reproduced.

`python docs/systems_pages.py` (`make systems`) writes what is between the marker comments anew: a Mermaid flowchart of
the topology that ships, and the rows of `systems.toml` of which something is missing.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from saqkit.spec.topology import JobType, Priority, Provider, Queue, Topology, load, shipped

DOCS = Path(__file__).parent
MARKER = "<!-- {which} of the {what}, which `make systems` writes -->"


def pages() -> dict[str, Path]:
    """The page of each system that ships."""
    return {name: DOCS / f"{name.replace('-', '_')}.md" for name in shipped()}


def written(text: str, name: str) -> str:
    """A page's `text` with the diagram and the missing rows of system `name` between their markers."""
    text = _between(text, "diagram", f"```mermaid\n{diagram(load(name))}\n```")
    return _between(text, "list", missing(name))


def _between(text: str, what: str, made: str) -> str:
    begin, end = (MARKER.format(which=which, what=what) for which in ("beginning", "end"))
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{made}\n{end}{after}"


def missing(name: str) -> str:
    """The rows of a system of which something is missing, or all, a line each."""
    [system] = [
        one
        for one in tomllib.loads((DOCS / "systems.toml").read_text(encoding="utf-8"))["system"]
        if one["name"] == name
    ]
    said = {"partly": "works, but for: {missing}", "later": "not built yet"}
    lines = [
        f"- {row['id']}, {row['what']}: {said[row['is']].format(**row)}"
        for row in system["row"]
        if row.get("is") in said
    ]
    return "\n".join(lines) or "Nothing: every row stands."


def diagram(topology: Topology) -> str:
    """The flowchart: what comes in, the job types in the boxes of their queues, and whom they call.

    Full arrows are fan-outs (with the batch) and calls, dotted ones what follows a job that is done.
    """
    return "\n".join(["flowchart LR", *(f"  {line}" for line in _lines(topology))])


def _lines(topology: Topology) -> Iterator[str]:
    for name, queue in topology.queues.items():
        yield f'subgraph {_id("queue", name)} ["{_queue(name, queue)}"]'
        yield from (
            f'  {_id("job", one)}["{_job(one, job)}"]' for one, job in topology.job_types.items() if job.queue == name
        )
        yield "end"
    for n, (starts, label) in enumerate(_comes_in(topology).items()):
        yield f'in_{n}(["{"<br/>".join(label)}"])'
        yield f"in_{n} --> {' & '.join(_id('job', name) for name in starts)}"
    for name, job in topology.job_types.items():
        for key, target in job.edges():
            yield f"{_id('job', name)} {_arrow(job, key)} {_id('job', target)}"
    for name, provider in topology.providers.items():
        yield f'{_id("by", name)}[["{_provider(name, provider)}"]]'
        callers = [_id("job", one) for one, job in topology.job_types.items() if job.per_user.provider == name]
        if callers:
            yield f"{' & '.join(callers)} --> {_id('by', name)}"


def _comes_in(topology: Topology) -> dict[tuple[str, ...], list[str]]:
    """By the job types that are started: the topics that start them, and the shares of the arrivals."""
    shares: defaultdict[tuple[tuple[str, ...], str], float] = defaultdict(float)
    for topic, started in topology.topics.items():
        shares[started.starts, topic] = 0.0
    for entry in topology.entry:
        shares[topology.starts(entry), entry.topic or "a call"] += entry.share
    labels: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for (starts, what), share in shares.items():
        labels[starts].append(f"{what}: {100 * share:g} %" if share else what)
    clock = [name for schedule in topology.schedules for name in topology.starts(schedule.entry())]
    if clock:
        labels[tuple(dict.fromkeys(clock))].append("by the clock")
    return labels


def _queue(name: str, queue: Queue) -> str:
    said = f"queue {name}: {queue.concurrency} {'slot' if queue.concurrency == 1 else 'slots'} a process"
    if limit := queue.rate_limit:
        said += f", at most {limit.limit:,} {limit.unit} in {limit.period_s:g} s"
    return said + (", tenants take turns" if queue.fairness == "tenants" else "")


def _job(name: str, job: JobType) -> str:
    return name if job.priority == Priority.NORMAL else f"{name}<br/>{job.priority.name.lower()} priority"


def _arrow(job: JobType, key: str) -> str:
    if key == "fan_out.to" and job.fan_out:
        return f'-->|"{"one each" if job.fan_out.batch_size == 1 else f"batches of {job.fan_out.batch_size}"}"|'
    return f'-.->|"{"when done" if key.startswith("follow_up") else key.partition(".")[2]}"|'


def _provider(name: str, provider: Provider) -> str:
    said = f"{name}<br/>{provider.latency.mean_s:g} s"
    if rate := provider.rate:
        said += f"<br/>at most {rate.limit:,} in {rate.period_s:g} s"
    return said + ("<br/>circuit breaker" if provider.breaker else "")


def _id(kind: str, name: str) -> str:
    """A node's id; the kind before it keeps words apart that Mermaid reserves, such as `end`."""
    return f"{kind}_{re.sub(r'[^A-Za-z0-9]', '_', name)}"


if __name__ == "__main__":
    for name, page in pages().items():
        page.write_text(written(page.read_text(encoding="utf-8"), name), encoding="utf-8")
        print(page)
