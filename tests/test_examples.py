"""Every example as its README says; what each promises is looked at from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import ray_sink

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def start(name: str, folder: Path, *arguments: str) -> str:
    """Run an example in a folder of its own; returns what it printed."""
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as short:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name / "main.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=400,
            cwd=folder,
            env=os.environ | {"RAY_TMPDIR": short},
        )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return done.stdout


def test_fields_of_a_rollout_are_computed_once(tmp_path: Path) -> None:
    size = ("--size", "64")
    for left, made in ((4, 24), (0, 0)):
        printed = start("fields", tmp_path, *size)
        assert f"{left} of 4 rollouts are to be computed" in printed
        assert f"{made} fields computed" in printed
    assert len(ray_sink.open(str(tmp_path / "runs/fields"))) == 24


def test_embeddings_find_the_paragraph_that_is_asked_for(tmp_path: Path) -> None:
    (texts := tmp_path / "texts").mkdir()
    says = {
        "storage": "compress a file and write it to disk, then close the file again",
        "sea": "the ship sails far out",
    }
    for name, text in says.items():
        filler = "\n\n".join(f"{name} paragraph number {n} says {text.split()[n % 5]} and more" for n in range(40))
        (texts / f"{name}.txt").write_text(f"{filler}\n\n{text}\n")
    printed = start("embeddings", tmp_path, "--root", str(texts), "--suffix", ".txt")
    assert "2 of 2 documents embedded" in printed
    assert "storage: compress a file and write it to disk" in printed.split("Nearest to")[1].splitlines()[1]


def test_own_actors_simulate_each_case_once(tmp_path: Path) -> None:
    size = ("--size", "64", "--steps", "5")
    printed = start("manual_actor", tmp_path, *size)
    assert printed.count("safe: ") == 3
    assert "3 of 3 cases" in printed
    assert "0 of 3 cases" in start("manual_actor", tmp_path, *size)
    assert len(ray_sink.open(str(tmp_path / "runs/manual_actor"))) == 15


@pytest.mark.parametrize("name", ["resume", "ray_job"])
def test_what_was_killed_is_finished_by_the_same_again_and_computed_once(tmp_path: Path, name: str) -> None:
    printed = start(name, tmp_path)
    assert "40 outputs are there, each once" in printed
    again = int(printed.split("each once; ")[1].split()[0])
    assert again < 20, "what was committed was computed again"
    counts = ray_sink.open(str(tmp_path / "runs" / name)).seal.rows
    assert counts.rows_skipped > 0
    assert (counts.rows_in, counts.rows_in - counts.rows_skipped) == (40, counts.rows_out)
