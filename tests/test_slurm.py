"""The sbatch script, by Slurm itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import ray_sink
from ray_sink.config import Limits
from tests.executables import environment
from tests.manifests import CONFIGS, PROJECT
from tests.slurm import Slurm, slurm
from tests.waiting import until

SCRIPT = CONFIGS / "slurm" / "run.sbatch"
OUTPUTS = 300


def options() -> dict[str, str]:
    """What the script tells sbatch."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE)
    return dict(found)


def test_the_notice_is_long_enough_for_what_the_script_then_does() -> None:
    (notice_s,) = re.findall(r"^B:TERM@(\d+)$", options()["signal"])
    (others_s,) = re.findall(r"srun --wait=(\d+) ray symmetric-run", SCRIPT.read_text())
    assert int(notice_s) >= Limits().drain_s + int(others_s) + 20


def test_one_job_of_a_name_runs_at_a_time_and_comes_back_after_a_failure() -> None:
    assert options()["dependency"] == "singleton"
    assert {"requeue", "exclusive"} <= options().keys()
    assert options()["ntasks-per-node"] == "1"
    assert options()["open-mode"] == "append", "the log of the try before stays"


def filled_in(folder: Path) -> Path:
    """The script as a user would fill it in here."""
    mine = {
        "DEST": str(folder / "bucket"),
        "STAGING": str(folder / "staging"),
        "ENVIRONMENT": str(environment(folder / "venv")),
        "SCRIPT": f"({PROJECT}/examples/ray_job/job.py --outputs {OUTPUTS} --actors 1 --log {folder}/computed)",
    }
    text = SCRIPT.read_text()
    for name, value in mine.items():
        text, times = re.subn(rf"^{name}=.*change-me.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert times == 1
    (folder / "run.sbatch").write_text(text)
    (folder / "bucket").mkdir()
    return folder / "run.sbatch"


def submit(cluster: Slurm, script: Path) -> str:
    """Its number. What a command line says comes before what the script says: there is one node, without GPUs."""
    here = ("--nodes=1", "--gpus-per-node=0", "--job-name=fields", f"--output={script.parent}/log")
    settings = {"PYTHONPATH": str(PROJECT), "RAY_AUTH_MODE": "disabled"}
    return cluster.run("sbatch", "--parsable", f"--chdir={script.parent}", *here, str(script), env=settings)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_job_that_is_told_to_go_is_queued_again_and_goes_on_where_it_was(tmp_path: Path) -> None:
    script = filled_in(tmp_path)
    computed, log = tmp_path / "computed", tmp_path / "log"
    with slurm() as cluster:
        job = submit(cluster, script)
        second = submit(cluster, script)

        def until_it(condition: Callable[[], bool], deadline_s: float) -> None:
            try:
                until(condition, deadline_s=deadline_s)
            except TimeoutError as error:
                error.add_note(log.read_text(errors="replace")[-5000:] if log.exists() else "no log")
                raise

        until_it(lambda: computed.exists() and len(computed.read_text().split()) >= OUTPUTS // 3, 600)
        assert cluster.state(second) == "PENDING", "one at a time"
        cluster.run("scancel", "--signal=TERM", "--batch", job)
        until_it(lambda: cluster.state(job) == "PENDING", 300)
        assert not list((tmp_path / "bucket").rglob("_SUCCESS"))
        first = len(computed.read_text().split())
        until_it(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), 600)
        assert cluster.state(job) == "COMPLETED", log.read_text()[-5000:]
        assert len(ray_sink.open(str(tmp_path / "bucket" / "fields"))) == OUTPUTS
        assert len(computed.read_text().split()) - OUTPUTS < first, "what was accepted was computed again"
        assert not Path(f"/tmp/r{job}").exists(), "its own files stayed"
        cluster.run("scancel", second)
