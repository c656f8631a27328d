"""All commands, in the order in which `saqkit --help` lists them."""

from __future__ import annotations

import click

import saqkit
from saqkit.cli.announcing import announce
from saqkit.cli.batches import batch, batches
from saqkit.cli.capacity import calibrate, compare, demo, measure, predict, probe
from saqkit.cli.checking import check
from saqkit.cli.dead_letters import dlq
from saqkit.cli.describing import show, systems
from saqkit.cli.inferring import infer
from saqkit.cli.limiting import limit, prioritise
from saqkit.cli.operating import broker, users
from saqkit.cli.options import Commands
from saqkit.cli.planning import plan, what_if
from saqkit.cli.publishing import events, publish
from saqkit.cli.school import school
from saqkit.cli.shopping import checkout, orders
from saqkit.cli.steering import cancel, clean, clear, concurrency, pause, promote, recording, resume, retry_failed
from saqkit.cli.watching import health, jobs, stats, workers
from saqkit.cli.working import worker


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(saqkit.__version__, prog_name="saqkit")
def commands() -> None:
    """Describe a background-job system once: run it for real, predict it, compare the two.

    TOPOLOGY is a shipped name (`saqkit systems` lists them) or the path of a TOML file.
    """


for _command in (demo, systems, show, measure, probe, calibrate, predict, compare, plan, what_if, infer,
                 worker, broker, users, announce, publish, events, checkout, orders, school, check, stats, health,
                 workers, jobs, batches, batch, pause, resume, concurrency, limit, clear, cancel, promote, prioritise,
                 retry_failed, clean, recording, dlq):  # fmt: skip
    commands.add_command(_command)
