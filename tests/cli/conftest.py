"""The command as a process in which ray cannot be imported, and as a call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ray_sink.cli import main

_NO_RAY = "import sys; sys.modules['ray'] = None; from ray_sink.cli import main; main(prog_name='ray-sink')"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object) -> Answer:
    """The command in a process of its own, where ``import ray`` raises."""
    with started(*arguments) as process:
        out, err = process.communicate(timeout=120)
    return Answer(process.returncode, out, err)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The same, while it runs; SIGKILLed on leaving. It hears SIGINT, which a shell's background jobs do not."""

    def hear() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-c", _NO_RAY, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def call(*arguments: object) -> Answer:
    """The command in this process."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Answer(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder
