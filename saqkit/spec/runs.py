"""A measured run: what was described, what happened, and on what host."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from saqkit.errors import RunError
from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Run:
    """A drained real run.

    `attempts` and `steps` are the tables of `saqkit.spec.trace`. `probe` is what the host's probe found beside the run
    (see `saqkit.probe`), `workers` one dict per worker process (`worker`, `host`, `pid`, `ready_at`, `stopped_at`,
    `cpu_s` of the process, `loop_cpu_s` of its event loop, `jobs`, `clock_offset_s`), `facts` versions, host and date,
    `disturbed` the reasons why the run should not be trusted (empty: none seen). A Run can be predicted again from its
    file alone.
    """

    topology: Topology
    deployment: Deployment
    workload: Workload
    seed: int
    attempts: pd.DataFrame
    steps: pd.DataFrame
    probe: dict[str, Any] = field(default_factory=dict)
    workers: tuple[dict[str, Any], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    disturbed: tuple[str, ...] = ()
    name: str = "run"

    def measures(self) -> dict[str, float]:
        """The measures of the run by name, see `saqkit.spec.trace.measures`."""
        return trace.measures(self.attempts)

    def summary(self) -> pd.DataFrame:
        """A row per measure, column `measured`; seconds, users per second, or counts as the name says."""
        return pd.DataFrame({"measured": self.measures()}).rename_axis("measure")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw users done and jobs waiting over time; returns the Axes."""
        from saqkit.spec.pictures import drain_curve

        return drain_curve(self.attempts, ax=ax, label=self.name)

    def save(self, path: str | Path) -> Path:
        """Write the run to one Parquet file: the attempts are its table, all else is in its metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        steps = pa.BufferOutputStream()
        table = pa.Table.from_pandas(self.steps, preserve_index=False)
        with pa.ipc.new_stream(steps, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        document = {
            "format": FORMAT,
            "name": self.name,
            "topology": self.topology.to_dict(),
            "deployment": self.deployment.to_dict(),
            "workload": self.workload.to_dict(),
            "seed": self.seed,
            "probe": self.probe,
            "workers": list(self.workers),
            "facts": self.facts,
            "disturbed": list(self.disturbed),
        }
        attempts = pa.Table.from_pandas(self.attempts, preserve_index=False)
        metadata = {
            **(attempts.schema.metadata or {}),
            b"saqkit": json.dumps(document, sort_keys=True).encode(),
            b"saqkit.steps": steps.getvalue().to_pybytes(),
        }
        path = Path(path)
        try:
            pq.write_table(attempts.replace_schema_metadata(metadata), path, compression="zstd")
        except OSError as error:
            raise RunError(f"{path}: the run cannot be written: {error}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run that `save` wrote; `RunError` if the file is not one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: not a run that can be read: {str(error).splitlines()[0]}") from error
        metadata = table.schema.metadata or {}
        if b"saqkit" not in metadata:
            raise RunError(f"{path}: a Parquet file, but not a run that saqkit wrote")
        try:
            document = json.loads(metadata[b"saqkit"])
        except ValueError as error:
            raise RunError(f"{path}: the description inside is damaged: {error}") from error
        if document.get("format") != FORMAT:
            raise RunError(f"{path}: format {document.get('format')}, this saqkit reads format {FORMAT}")
        attempts = table.to_pandas()
        trace.check(attempts, str(path))
        return cls(
            topology=Topology.parse(document["topology"], str(path)),
            deployment=Deployment.parse(document["deployment"], str(path)),
            workload=Workload.parse(document["workload"], str(path)),
            seed=document["seed"],
            attempts=trace.attempts_frame(attempts.to_dict("list")),
            steps=trace.steps_frame(pa.ipc.open_stream(metadata[b"saqkit.steps"]).read_pandas().to_dict("list")),
            probe=document["probe"],
            workers=tuple(document["workers"]),
            facts=document["facts"],
            disturbed=tuple(document["disturbed"]),
            name=document["name"],
        )

    def __repr__(self) -> str:
        m = self.measures()
        return (
            f"Run({self.topology.name}: {m['users_done']:g} users done, {m['users_failed']:g} failed, "
            f"{m['attempts']:g} attempts, {m['makespan_s']:.2f} s"
            + (f", disturbed: {'; '.join(self.disturbed)}" if self.disturbed else "")
            + ")"
        )

    def _repr_html_(self) -> str:
        return f"<p><code>{self!r}</code></p>" + self.summary().round(3).to_html()
