"""The pages in docs/: their code runs, their links lead somewhere, and the reference is what the code says."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from ray_sink import errors
from tests.servers import S3Bucket

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]

_ONE_AFTER_THE_OTHER = """
import runpy, sys

import ray

ray.init("local", num_cpus=4, object_store_memory=2**28, include_dashboard=False, log_to_driver=False)
for page in sys.argv[1:]:
    print("page", page, flush=True)
    runpy.run_path(page, run_name="__main__")
print("all of it ran")
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_pages_code_runs_as_it_stands(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    (tmp_path / "nvme").mkdir()
    for page in WITH_CODE:
        script = "".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
        for place in re.findall(r"/mnt/shared/runs/[\w-]+", script):
            (tmp_path / "shared" / Path(place).relative_to("/mnt/shared")).mkdir(parents=True, exist_ok=True)
        script = script.replace("s3://bucket", s3_bucket.url).replace("/mnt/shared", str(tmp_path / "shared"))
        script = script.replace("/mnt/nvme", str(tmp_path / "nvme"))
        # a file: Ray looks for the source of what it runs
        (tmp_path / f"{page.stem}.py").write_text(script)
    (tmp_path / "all.py").write_text(_ONE_AFTER_THE_OTHER)
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as short:
        done = subprocess.run(
            [sys.executable, "all.py", *(f"{page.stem}.py" for page in WITH_CODE)],
            capture_output=True,
            text=True,
            timeout=800,
            cwd=tmp_path,
            env=os.environ | s3_bucket.server.environment() | {"RAY_TMPDIR": short},
        )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout.endswith("all of it ran\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.stem))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        if heading:
            there = {_anchor(line) for line in found.read_text().splitlines() if line.startswith("#")}
            assert heading in there, target


def _anchor(line: str) -> str:
    return re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {page.name for page in PAGES} - {"README.md"}


def test_troubleshooting_has_every_error_once_and_no_other() -> None:
    classes = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    named = re.findall(r"^### `(\w+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(classes - {"SinkError"})


def test_the_reference_is_what_the_code_says() -> None:
    spec = spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text() == reference.render(), "run: python docs/reference.py"
