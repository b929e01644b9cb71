from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features import Features
from photographs import KEY, SIZE, Tile, read, tiles
from report import Run, conclusion
from verification import Comparison, Verdict, verdict

from tests.servers import S3Bucket

PROJECT = Path(__file__).parent.parent
MAIN = PROJECT / "examples" / "quickstart" / "main.py"
TILES = 8


def demo(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run the demo as a user does; returns what it printed and the numbers of its table."""
    numbers = folder / "numbers.json"
    command = [sys.executable, str(MAIN), "--tiles", str(TILES), "--json", str(numbers), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=folder, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(numbers.read_text())


def assert_whole(run: dict[str, Any]) -> None:
    assert run["verdict"] == {"same": TILES, "lost": [], "different": [], "doubled": []}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(840)
def test_the_demo_loses_nothing_while_a_writer_is_killed_and_computes_nothing_twice(
    tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_bucket.server.environment().items():
        monkeypatch.setenv(name, value)
    place = ("--dest", f"{s3_bucket.url}/demo", "--staging", str(tmp_path / "staging"))
    printed, first = demo(tmp_path, *place)
    direct, sink = first["runs"]
    for run in (direct, sink):
        assert_whole(run)
        assert run["calls"] == TILES / 2
        assert run["computed_s"] > 0
        assert 0 <= run["waited_s"] <= run["wall_s"]
    assert direct["killed_pid"] is None
    assert not Path(f"/proc/{sink['killed_pid']}").exists()
    assert TILES / 2 <= sink["killed_at"] <= TILES
    assert f"verified byte for byte             │                          {TILES}" in printed
    assert "→ (72, 256, 256) torch.float16" in " ".join(printed.split())

    printed, second = demo(tmp_path, *place)
    for run in second["runs"]:
        assert_whole(run)
    assert f"{TILES} outputs were there from an earlier try" in printed
    assert second["runs"][1]["calls"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--dest", "s3://bucket/x"], "--dest needs --staging"), (["--tiles", "1"], "there are tiles for 2 to")],
)
def test_wrong_arguments_are_told_before_anything_starts(arguments: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, str(MAIN), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr


def test_tiles_have_a_key_each_and_come_from_every_photograph() -> None:
    found = tiles(300)
    assert len({tile.key for tile in found}) == 300
    assert len({tile.photo for tile in found[:13]}) == 13
    assert found[0].key == KEY.format(**asdict(found[0]))
    for tile in found[:13]:
        assert read(asdict(tile))["pixels"].shape == (SIZE, SIZE, 3)


def test_features_do_not_depend_on_the_batch() -> None:
    model = Features()
    pixels = np.stack([read(asdict(tile))["pixels"] for tile in tiles(3)])
    together = model.compute(pixels)
    assert together.shape == (3, 72, SIZE, SIZE)
    assert together.isfinite().all()
    for number in range(3):
        assert torch.equal(model.compute(pixels[number : number + 1])[0], together[number])


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [read(asdict(tile)) for tile in tiles(4)]


@pytest.fixture
def place(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder with every output as it should be."""
    features = Features().compute(np.stack([row["pixels"] for row in rows]))
    for tile, value in zip(tiles(4), features, strict=True):
        file = tmp_path / f"{tile.key}.pt"
        file.parent.mkdir(exist_ok=True)
        torch.save(value.clone(), file)
    (tmp_path / "_ray_sink").mkdir()
    (tmp_path / "_ray_sink" / "_SUCCESS").touch()
    return tmp_path


def compared(place: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = Comparison([str(place)])({name: np.array([row[name] for row in rows]) for name in rows[0]})
    return [{name: found[name][number] for name in found} for number in range(len(rows))]


def test_outputs_as_they_should_be_are_found_good(place: Path, rows: list[dict[str, Any]]) -> None:
    found = verdict(compared(place, rows), 0, str(place), [tile.key for tile in tiles(4)])
    assert found == Verdict(same=4)
    assert found.good


def test_lost_torn_changed_and_doubled_outputs_are_each_found(place: Path, rows: list[dict[str, Any]]) -> None:
    lost, torn, changed, _ = (place / f"{tile.key}.pt" for tile in tiles(4))
    value = torch.load(changed)
    value[0, 0, 0] = torch.nextafter(value[0, 0, 0], torch.tensor(9, dtype=value.dtype))
    torch.save(value, changed)
    torn.write_bytes(torn.read_bytes()[:-1000])
    lost.rename(lost.with_suffix(".pt.1"))
    keys = [tile.key for tile in tiles(4)]
    found = verdict(compared(place, rows), 0, str(place), [*keys, keys[0]])
    assert found.same == 1
    assert found.lost == [keys[0]]
    assert found.different == [keys[1], keys[2]]
    assert found.doubled == [f"{keys[0]}.pt.1", keys[0]]
    assert not found.good


def test_waiting_is_what_lies_between_the_calls_of_each_actor() -> None:
    run = Run("", "")
    calls = [("a", 1.0, 2.0), ("a", 2.5, 3.0), ("a", 2.5, 3.0), ("b", 1.5, 4.0)]  # a batch's rows have one call
    run.clock([{"actor": actor, "began": began, "ended": ended} for actor, began, ended in calls], 0.0, 6.0)
    assert (run.computed_s, run.waited_s, run.calls) == (4.0, 0.5, 3)
    assert (run.wall_s, run.overhead_s) == (6.0, 3.0)


@pytest.mark.parametrize(
    ("sink_waited", "sink_wall", "said"),
    [
        (1.0, 8.0, "waited 4.0 s less, and the run took 2.0 s less"),
        (6.0, 11.0, "1.0 s longer with the sink, and the run took 1.0 s more"),
    ],
)
def test_the_conclusion_says_it_whichever_way_it_went(sink_waited: float, sink_wall: float, said: str) -> None:
    direct = Run("direct", "", waited_s=5.0, wall_s=10.0)
    assert said in conclusion(direct, Run("sink", "", waited_s=sink_waited, wall_s=sink_wall))


def test_a_tile_is_named_by_its_corner() -> None:
    assert Tile("moon", 64, 0).key == "moon/0064-0000"
