"""The group of commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

import click

from ray_sink import __version__
from ray_sink.cli.diagnosing import doctor
from ray_sink.cli.listing import ls
from ray_sink.cli.showing import show
from ray_sink.cli.sweeping import sweep
from ray_sink.cli.uploading import upload
from ray_sink.cli.verifying import verify
from ray_sink.cli.watching import status
from ray_sink.errors import ConfigError, InvalidKeyError, SinkError

OK, NO, USAGE, INTERRUPTED = 0, 1, 2, 130


class _No(click.ClickException):
    exit_code = NO


class _Misused(click.ClickException):
    exit_code = USAGE


class _Interrupted(click.ClickException):
    exit_code = INTERRUPTED


class _Commands(click.Group):
    """Says every error of ours, and of the operating system's, in one sentence."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and end the process."""
        try:
            return super().main(*args, **extra)
        except SystemExit as error:
            if error.code != INTERRUPTED:
                raise
            # whoever wanted to tidy up has: a thread that waits for a store is not waited for
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted("interrupted") from error
        except (SinkError, OSError) as error:
            if _is_of_interrupt(error):
                raise _Interrupted("interrupted") from error
            if isinstance(error, BrokenPipeError):
                raise  # whoever read our output has enough; click ends quietly
            misused = isinstance(error, ConfigError | InvalidKeyError)
            raise (_Misused if misused else _No)(_sentence(error)) from error


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Whether it was raised on the way out of a Ctrl-C, by what that cut in two."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _sentence(error: Exception) -> str:
    return "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, package_name="ray-sink")
def main() -> None:
    """Look after the runs of ray_sink, without a cluster.

    \b
    Exit codes of every command:
      0  all is well
      1  the answer is no: something is missing, failed, or cannot hold
      2  the command was used wrongly; nothing was touched
    130  interrupted (Ctrl-C): there is no answer

    Errors are one sentence on standard error. With --json, standard output is one JSON document.
    """  # noqa: D301 - click wants the character


for _command in (status, ls, show, verify, upload, sweep, doctor):
    main.add_command(_command)
