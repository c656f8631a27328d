"""Which jobs lead to which: fan-out and follow-up edges, and where events begin."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

MOSTLY = 0.5
"""A job type whose jobs lead to another one less often than this does not lead to it: those are events of their own."""


@dataclass
class Edges:
    """`fan_out` and `follow_up` from type to type, `batch_size` of each fan-out, `root` and `event` of every job.

    `jobs` has a row per job, its first attempt, indexed by job.
    """

    jobs: pd.DataFrame
    fan_out: dict[str, str] = field(default_factory=dict)
    follow_up: dict[str, list[str]] = field(default_factory=dict)
    batch_size: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def targets(self, job_type: str) -> list[str]:
        """The types that follow `job_type`."""
        return [self.fan_out[job_type]] if job_type in self.fan_out else self.follow_up.get(job_type, [])


def edges_of(frame: pd.DataFrame) -> Edges:
    """Find the edges of an attempts table; the edge of more jobs goes first where two exclude each other."""
    jobs = frame.sort_values(["taken_at", "attempt"], kind="stable").drop_duplicates("job").set_index("job")
    found = Edges(jobs)
    children = jobs[jobs["parent"].isin(jobs.index)]
    if len(children):
        above = jobs.loc[children["parent"]]
        pairs = pd.DataFrame({"above": above["job_type"].to_numpy(), "below": children["job_type"].to_numpy(),
                              "parent": children["parent"].to_numpy()})  # fmt: skip
        done = frame[frame["outcome"] == "done"].drop_duplicates("job")["job_type"].value_counts()
        for (above_type, below_type), part in sorted(pairs.groupby(["above", "below"]), key=lambda item: -len(item[1])):
            _add(found, str(above_type), str(below_type), part, float(done.get(above_type, 0)))
    _roots(found)
    for name, target in found.fan_out.items():
        below = jobs[(jobs["job_type"] == target) & (jobs["parent"] != "")]
        found.batch_size[name] = max(1, int(below["users"].max()))
    return found


def _add(found: Edges, above: str, below: str, pairs: pd.DataFrame, done: float) -> None:
    per_parent = pairs["parent"].value_counts()
    parents = found.jobs[found.jobs["job_type"] == above]
    wide = int(per_parent.max()) > 1 or bool((parents["users"] == 0).all())
    reason = ""
    if above == below or _leads(found, below, above):
        reason = "edges may not form a cycle"
    elif above in found.fan_out or (wide and above in found.follow_up):
        reason = f"a fan-out leads to one type, and {above} leads to {found.targets(above)[0]} already"
    elif wide and any(above in found.targets(other) for other in found.jobs["job_type"].unique()):
        reason = "what a job leads to cannot fan out again"
    elif below in found.fan_out:
        reason = f"{below} fans out, and what a job leads to cannot fan out again"
    elif not wide and len(per_parent) < MOSTLY * done:
        reason = f"only {len(per_parent)} of {done:.0f} lead to one"
    if reason:
        found.notes.append(f"{len(pairs)} jobs {below} that {above} enqueued arrive by themselves: {reason}")
    elif wide:
        found.fan_out[above] = below
    else:
        found.follow_up.setdefault(above, []).append(below)
        if len(per_parent) < 0.95 * done:
            found.notes.append(f"{len(per_parent)} of {done:.0f} {above} led to {below}: here all of them do")


def _leads(found: Edges, start: str, end: str) -> bool:
    return start == end or any(_leads(found, target, end) for target in found.targets(start))


def _roots(found: Edges) -> None:
    """Give every job the job from which its chain began, over the edges that are kept, and that job's event."""
    types = {str(job): str(job_type) for job, job_type in found.jobs["job_type"].items()}
    parents = {str(job): str(parent) for job, parent in found.jobs["parent"].items()}
    roots: dict[str, str] = {}

    def parent_of(job: str) -> str | None:
        parent = parents[job]
        kept = parent in types and parent != job and types[job] in found.targets(types[parent])
        return parent if kept else None

    for job in map(str, found.jobs.index):
        chain = [job]
        while chain[-1] not in roots and (parent := parent_of(chain[-1])) is not None:
            chain.append(parent)
        root = roots.get(chain[-1], chain[-1])
        roots.update(dict.fromkeys(chain, root))
    found.jobs["root"] = [roots[job] for job in found.jobs.index]
    cut = (found.jobs["parent"] != "") & (found.jobs["root"] == found.jobs.index)
    own = cut | (found.jobs["event"] == "")
    found.jobs["event"] = np.where(own, found.jobs.index, found.jobs["event"])
    found.jobs["event_at"] = np.where(own, found.jobs["queued_at"], found.jobs["event_at"])
