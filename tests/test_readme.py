from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest

from ray_sink.config import Limits, UploadOptions, WriterOptions
from tests.servers import S3Bucket

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()

_USERS_OWN = """
import ray.data, torch

ds = ray.data.from_items([{"case_id": f"case_{n:04d}", "seed": n} for n in range(100)])

class Model:
    def __call__(self, batch):
        fields = torch.stack([torch.full((16, 16), float(seed)) for seed in batch["seed"]])
        return {"case_id": batch["case_id"], "field": fields}
"""

_AFTERWARDS = """
assert torch.equal(field, torch.full((16, 16), 42.0)) and torch.equal(again, field)
assert (len(manifest), todo, dataset.count()) == (100, 100, 100)
assert set(ray_sink.open("s3://bucket/runs/43").load("runs/case_0007")) == {"field"}
assert ray_sink.open("s3://bucket/runs/44").load("cases/1")["u"].shape == (3, 64, 64)
assert len(list(Path("out/fields").iterdir())) == 11
assert ray_sink.load("s3://bucket/fields/fields/0010.pt").shape == (64, 64)
print("all of it ran")
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_every_snippet_runs_as_it_stands(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    script = "".join([_USERS_OWN, *re.findall(r"```python\n(.*?)```", README, re.DOTALL), _AFTERWARDS])
    for there, here in (("s3://bucket", s3_bucket.url), ("/mnt/shared", str(tmp_path)), ("num_gpus=1", "num_gpus=0")):
        assert there in script
        script = script.replace(there, here)
    for run in ("42", "43", "44"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    # a file: Ray looks for the source of what it runs
    (tmp_path / "readme.py").write_text(script)
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as short:
        done = subprocess.run(
            [sys.executable, "readme.py"],
            capture_output=True,
            text=True,
            timeout=400,
            cwd=tmp_path,
            env=os.environ | s3_bucket.server.environment() | {"RAY_TMPDIR": short},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all of it ran\n")


@pytest.mark.parametrize("group", [Limits, WriterOptions, UploadOptions])
def test_the_tables_of_options_have_every_field_and_no_other(group: type) -> None:
    table = README.split(f"| `{group.__name__}` | default |")[1].split("\n\n")[0]
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert named == [field.name for field in fields(group)]


def test_the_files_that_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target
