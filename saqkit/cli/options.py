"""How the command line is read: kinds of values, the options that commands share, and what is said of a wrong one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.spec.deployment import Deployment
    from saqkit.spec.topology import Topology
    from saqkit.spec.workload import Workload

    ParamType = click.ParamType[Any]
else:  # releases of click before 8.4 are allowed, in which it cannot be subscripted
    ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])
Slots = int | dict[str, int]

PARTS = ("deployment", "workload")
"""What `--set` reaches besides the topology, by a prefix."""


class Commands(click.Group):
    """A group that shows its help when nothing is asked for, and knows what was probably meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(f'there is no command "{args[0]}" ({_meant(args[0], self.commands)})', ctx)
        return super().resolve_command(ctx, args)


class Count(ParamType):
    """A whole number of at least `least`."""

    name = "N"

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else _whole(str(value), self.least)


class Counts(ParamType):
    """Whole numbers of at least 1, with commas between them."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        return value if isinstance(value, list) else [_whole(text) for text in str(value).split(",")]


class SlotsOfQueues(ParamType):
    """Slots of each worker process: `5` for every queue, or `email=5,sync=2` for some; `many`: a list of the former."""

    name = "C"

    def __init__(self, many: bool = False) -> None:
        self.many = many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if "=" in value:
            pairs = [part.partition("=") for part in value.split(",")]
            named = {queue.strip(): _whole(number) for queue, _, number in pairs}
            return [named] if self.many else named
        return [_whole(text) for text in value.split(",")] if self.many else _whole(value)


class Amount(ParamType):
    """A number that is not negative."""

    name = "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise click.BadParameter(f'"{value}" is not a number of at least 0')
        return number


class OneOf(click.Choice[str]):
    """One of some words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            raise click.BadParameter(f'there is no "{value}" ({_meant(str(value), self.choices)})')
        return str(value)


def _whole(text: str, least: int = 1) -> int:
    try:
        number = int(text)
    except ValueError:
        hint = (
            f"write {text.replace(',', '')}" if text.replace(",", "").isdigit() else f"a whole number from {least} on"
        )
        raise click.BadParameter(f'"{text}" is not a whole number ({hint})') from None
    if number < least:
        raise click.BadParameter(f"{number} is too small (a whole number from {least} on)")
    return number


def _meant(word: str, known: Iterable[str]) -> str:
    names = list(known)
    if near := difflib.get_close_matches(word, names, n=1, cutoff=0.5):
        return f'did you mean "{near[0]}"?'
    return f"known: {', '.join(names)}"


def explain(error: click.ClickException) -> str:
    """What was wrong on the command line, where, and what would be right, in one line."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "saqkit"
    see, where = f"see `{path} --help`", "".join(f"{word}: " for word in [path.removeprefix("saqkit").strip()] if word)
    match error:
        case click.NoSuchOption():
            known = [name for param in context.command.get_params(context) for name in param.opts] if context else []
            return f'{where}there is no option "{error.option_name}" ({_meant(error.option_name, known)})'
        case click.BadOptionUsage():
            return f"{where}{error.option_name} needs a value, but none is given ({see})"
        case click.MissingParameter():
            name = _named(error.param)
            return f"{where}{name} is missing ({see})"
        case click.BadParameter():
            return f"{where}{_named(error.param)}: {error.message}"
        case _:
            text = error.format_message().rstrip(".")
            return f"{where}{text[:1].lower()}{text[1:]}" + ("" if text.endswith(")") else f" ({see})")


def _named(param: click.Parameter | None) -> str:
    if param is None:
        return "a value"
    return param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name


def chain(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, listed in this order."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="JSON on standard output, and nothing else there.")
assignments = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE",
    help="Override a field by its path: queues.notifications.rate_limit=none, deployment.cores=4, workload.faults=[].",
)  # fmt: skip
seed = click.option("--seed", type=Count(0), default=0, show_default=True, help="Of arrivals, draws and jitter.")
profile = click.option("--profile", required=True, metavar="P", help="What `saqkit calibrate` wrote, or `nominal`.")
replications = click.option("--replications", type=Count(), metavar="R", help="Simulated runs (default: enough).")
engine = click.option(
    "--engine", type=OneOf(["auto", "simpy", "fast"]), default="auto", show_default=True,
    help="Which simulates; both give the same result, the fast one sooner where it can.",
)  # fmt: skip
redis = click.option(
    "--redis", metavar="URL", show_default=False,
    help="The broker (default: $REDIS_URL, else $REDIS_HOST, else the embedded one).",
)  # fmt: skip
topology = click.option(
    "--topology", default="school-events", envvar="SAQKIT_TOPOLOGY", show_default=True, metavar="TOPOLOGY",
    help="A shipped name or a TOML file; $SAQKIT_TOPOLOGY is the default if set.",
)  # fmt: skip
files = chain(
    click.option(
        "--workload",
        "workload_file",
        metavar="FILE",
        help="Arrivals and faults (TOML), or a trace (CSV), instead of --users.",
    ),
    click.option("--deployment", "deployment_file", metavar="FILE", help="Hosts, cores, groups of workers (TOML)."),
    assignments,
    seed,
)


@dataclass(frozen=True)
class Described:
    """What is to be run or predicted; `workloads` are one per number of users."""

    topology: Topology
    deployment: Deployment
    workloads: list[Workload]


def described(
    name: str,
    given: Sequence[str],
    *,
    users: Sequence[int] | None = None,
    workload_file: str | None = None,
    deployment_file: str | None = None,
    batch_sizes: Sequence[int] | None = None,
) -> Described:
    """Topology, deployment and workloads with what `--set` changes in them."""
    from saqkit.spec.deployment import Deployment
    from saqkit.spec.overriding import override
    from saqkit.spec.workload import Workload

    if (users is None) == (workload_file is None):
        raise UsageError("--users or --workload: give one of them, e.g. --users 1000")
    sets = _sorted(given)
    topology = overridden(name, sets[""])
    if batch_sizes and not any(job.fan_out for job in topology.job_types.values()):
        raise UsageError(f"--batch-size: topology {topology.name} has no fan-out whose batches could have a size")
    deployment = Deployment.from_toml(deployment_file) if deployment_file else Deployment()
    if workload_file:
        workloads = [Workload.from_file(workload_file)]
    else:
        workloads = [Workload.burst(number) for number in users or ()]
    return Described(
        topology,
        override(deployment, sets["deployment"], "--set deployment"),
        [override(workload, sets["workload"], "--set workload") for workload in workloads],
    )


def topology_of(name: str, given: Sequence[str], *, served: bool = False) -> Topology:
    """The topology with what `--set` changes in it, for commands that have neither deployment nor workload.

    `served`: first of all with what the environment says of a topology that is served or announced for.
    """
    sets = _sorted(given)
    for part in PARTS:
        for key, _ in sets[part]:
            raise UsageError(f"--set {part}.{key}: this command has no {part} (set fields of the topology)")
    return overridden(name, sets[""], served)


def overridden(name: str, given: Iterable[tuple[str, Any]], served: bool = False) -> Topology:
    """The topology of a name or file with some fields replaced."""
    from saqkit.spec.overriding import override
    from saqkit.spec.topology import load
    from saqkit.topology_environment import with_environment

    pairs = list(given)
    topology = with_environment(load(name)) if served else load(name)
    return override(topology, pairs, "--set") if pairs else topology


def _sorted(given: Sequence[str]) -> dict[str, list[tuple[str, Any]]]:
    from saqkit.spec.overriding import parse_assignment

    sets: dict[str, list[tuple[str, Any]]] = {"": [], **{part: [] for part in PARTS}}
    for text in given:
        path, value = parse_assignment(text)
        part, dot, rest = path.partition(".")
        sets[part if dot and part in PARTS else ""].append((rest if dot and part in PARTS else path, value))
    return sets


def writable_file(path: str | None, option: str = "--out") -> Path | None:
    """The file to be written, once it is certain that it can be."""
    if path is None:
        return None
    target = Path(path)
    folder = target.absolute().parent
    if target.is_dir():
        raise UsageError(f"{option} {path}: is a folder (name a file in it)")
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: the folder {folder} does not exist (make it first)")
    if not os.access(target if target.exists() else folder, os.W_OK):
        raise UsageError(f"{option} {path}: cannot be written there (choose another folder)")
    return target
