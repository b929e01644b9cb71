from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import ray_sink
from tests.cli.conftest import call, run

HEAVY = ("ray", "torch", "numpy", "pyarrow", "obstore", "s3fs", "fsspec", "botocore", "rich", "asyncio")


def test_help_names_every_command_and_the_exit_codes() -> None:
    answer = run("--help")
    assert answer.code == 0
    assert all(name in answer.out for name in ("ls", "verify", "upload", "doctor", "Exit codes"))
    assert call("--version").out.strip().endswith(ray_sink.__version__)
    for name in ("status", "ls", "show", "verify", "upload", "sweep", "doctor"):
        assert "JSON: {" in call(name, "--help").out


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    code = f"import ray_sink.cli, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_is_a_command_too() -> None:
    began = time.process_time()
    done = subprocess.run([sys.executable, "-m", "ray_sink.cli", "ls"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "DEST" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "command",
    [
        *(
            "ls {}",
            "verify {}",
            "verify {} --quick",
            "status {}",
            "show key {}",
            "ls --staging {}",
            "status --staging {}",
        ),
        *("show key --staging {}", "sweep --staging {}", "upload --staging {}"),
    ],
)
def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path: Path, command: str) -> None:
    nowhere = tmp_path / "nowhere"
    answer = call(*command.format(nowhere).split())
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("Error: there is no ")
    assert str(nowhere) in answer.err
    assert not nowhere.exists()


_CUT = """
import click
from ray_sink.cli import main
from ray_sink.errors import RunError

def cut():
    try:
        raise KeyboardInterrupt
    finally:
        raise RunError("the journal takes no more records")

main.add_command(click.Command("cut", callback=cut))
main(["cut"])
"""


def test_what_a_ctrl_c_has_cut_in_two_is_no_answer() -> None:
    done = subprocess.run([sys.executable, "-c", _CUT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Error: interrupted\n")
