"""What all files in cluster_configs have in common, and those that are no manifests of Kubernetes'."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests import kuberay
from tests.manifests import CONFIGS, FILES, KUBERAY, PROJECT

ALL = sorted(path for path in CONFIGS.rglob("*") if path.is_file())
SCRIPTS = [*CONFIGS.rglob("*.sbatch"), PROJECT / ".ci" / "run"]
RAY_UP = CONFIGS / "ray_up" / "aws.yaml"
DOCKERFILE = KUBERAY / "Dockerfile"


def tool(name: str) -> str:
    """A linter that the project's environment has, beside its Python or in the PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is one of the dev dependencies"
    return found


def in_place(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", [path for path in ALL if path.suffix in (".yaml", ".sbatch")], ids=in_place)
def test_what_is_yours_to_fill_in_is_listed_on_top_and_stands_in_one_place(path: Path) -> None:
    lines = path.read_text().splitlines()
    top = next(n for n, line in enumerate(lines) if line and (not line.startswith("#") or line.startswith("#SBATCH")))
    marked = [line for line in lines[top:] if "change-me" in line]
    starts = [n for n, line in enumerate(lines[:top]) if line.startswith("# Every place that is yours to fill in")]
    listed = []
    if starts:
        for line in lines[starts[0] + 1 : top]:
            if line == "#":
                break
            listed += re.findall(r"^#   (\S+) ", line)
    assert [word in line for word, line in zip(listed, marked, strict=True)] == [True] * len(marked), (listed, marked)


def test_no_secret_stands_in_any_file() -> None:
    for path in ALL:
        assert not re.search(r"AKIA[0-9A-Z]{12}|-----BEGIN|ghp_|xox[bp]-", path.read_text()), path
    for path in FILES:
        for document in kuberay.documents(path):
            assert document["kind"] != "Secret"
            for name, value in named_values(document):
                assert not re.search("SECRET|PASSWORD|TOKEN|ACCESS_KEY", name, re.IGNORECASE), (path, name, value)


def named_values(node: Any) -> list[tuple[str, str]]:
    """Environment variables that a document gives a value to, wherever they stand."""
    found = []
    if isinstance(node, dict):
        if isinstance(node.get("name"), str) and isinstance(node.get("value"), str):
            found.append((node["name"], node["value"]))
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            found += named_values(child)
    return found


def test_a_secret_would_be_seen() -> None:
    inside = {"spec": {"containers": [{"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]}]}}
    assert named_values(inside) == [("AWS_SECRET_ACCESS_KEY", "x")]


def test_the_readme_and_the_pages_name_every_file() -> None:
    readme = (CONFIGS / "README.md").read_text()
    links = [(CONFIGS / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", readme)]
    assert [link for link in links if not link.exists()] == []
    for path in ALL:
        assert path == CONFIGS / "README.md" or any(path.is_relative_to(link) for link in links), path


def test_ray_takes_the_ray_up_file() -> None:
    config = yaml.safe_load(RAY_UP.read_text())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == [], "all that nodes need is in the image"
    assert prepared["available_node_types"]["head"]["resources"] == {"CPU": 0}
    broken = {**config, "cluster_nam": "x"}
    with pytest.raises(Exception, match="cluster_nam"):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.name))
def test_shellcheck_has_nothing_to_say(path: Path) -> None:
    done = subprocess.run([tool("shellcheck"), "-s", "bash", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "content"), [("shellcheck", "#!/bin/bash\nrm $1\n"), ("hadolint", "FROM debian\nRUN cd /tmp\n")]
)
def test_the_linters_do_look(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "file").write_text(content)
    done = subprocess.run([tool(name), str(tmp_path / "file")], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_dockerfiles_install_steps_run_in_an_environment_that_has_nothing(tmp_path: Path) -> None:
    (copied,) = re.findall(r"^COPY --chown=\S+ \. (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    steps = re.findall(r"^RUN (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert steps
    context = tmp_path / "context"
    ignored = shutil.ignore_patterns(*(PROJECT / ".dockerignore").read_text().split())
    shutil.copytree(PROJECT, context, ignore=ignored)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}",
    }
    for step in [*steps, "ray-sink --help", "ray job --help", "python -c 'import skimage'"]:
        command = step.replace(copied, str(context))
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=1500, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    version = subprocess.run(
        [str(tmp_path / "venv/bin/python"), "-c", "import ray; print(ray.__version__)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert f"rayproject/ray:{version.stdout.strip()}-" in DOCKERFILE.read_text()
