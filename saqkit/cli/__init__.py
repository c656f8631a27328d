"""The command line `saqkit`: the only part of the kit that knows both engines, the real one and the model.

Exit status: 0 done, 2 bad input or a part that is missing (one line on standard error says which), 128 + n ended by
signal n (130: Ctrl-C). `worker` ends with the status of the first process that ended badly; `check` with 1 if a
connection fails; `health` with that of a monitoring plugin: 0 healthy, 1 degraded, 2 unhealthy, 3 it cannot tell.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what `arguments` (default: the command line) ask for; returns the exit status."""
    try:
        status = _carry_out(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads our output has seen enough; what is left must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _carry_out(arguments: list[str]) -> int:
    # Imported here, so that a Ctrl-C while modules load is caught as well.
    import click

    from saqkit.cli.commands import commands
    from saqkit.cli.options import explain
    from saqkit.errors import SaqkitError

    try:
        with commands.make_context("saqkit", arguments) as context:
            commands.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return 130
    except click.ClickException as error:
        return _refuse(explain(error))
    except SaqkitError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _refuse(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    return 0


def _refuse(reason: str) -> int:
    print(f"saqkit: {' '.join(reason.split())}", file=sys.stderr)
    return 2
