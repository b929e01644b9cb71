from __future__ import annotations

import subprocess
import sys
import time

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
