from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_sink.describing import summaries
from tests.cli.conftest import call, run
from tests.cli.runs import bytes_of, staged_run, value_of
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in


@pytest.fixture
def dest(staging: Path, tmp_path: Path) -> Path:
    """A sealed run of twelve outputs in a folder."""
    folder = tmp_path / "dest"
    staged_run(staging, str(folder), 12)
    assert call("upload", "--staging", staging).code == 0
    return folder


def test_an_output_is_shown_with_its_file_and_what_is_in_it(dest: Path) -> None:
    answer = run("show", "runs/sample_0003", dest, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.json["outputs"]
    assert (row["key"], row["state"], row["verification"], row["problem"]) == (
        *("runs/sample_0003", "uploaded", "verified"),
        None,
    )
    assert row["bytes"] == len(bytes_of("_3"))
    assert row["files"][0]["uri"] == f"{dest}/runs/sample_0003.npy"
    shape = list(value_of(3).shape)
    one = {"name": None, "dtype": "float32", "shape": shape, "min": 3.0, "max": 3.0, "mean": 3.0, "nans": 0}
    assert row["tensors"] == [one]
    text = call("show", "runs/sample_0003", dest).out
    assert "float32 64 x 4  min 3  max 3  mean 3  no NaN" in text


def test_a_prefix_shows_as_many_as_asked_and_says_that_there_are_more(dest: Path) -> None:
    answer = call("show", "runs/sample_00", dest, "--limit", 11, "--no-values", "--json").json
    assert ([row["key"] for row in answer["outputs"]][::10], answer["more"]) == (
        ["runs/sample_0000", "runs/sample_0010"],
        True,
    )
    assert all(row["tensors"] is None and row["problem"] is None for row in answer["outputs"])
    assert call("show", "runs/sample_001", dest, "--json").json["more"] is False
    assert "and more" in call("show", "runs/", dest, "--limit", 2).out


def test_staged_and_uploaded_outputs_are_found_by_the_journal(staging: Path, tmp_path: Path) -> None:
    staged_run(staging, str(tmp_path / "dest"), 3, finished=False)
    (row,) = call("show", "runs/sample_0002", "--staging", staging, "--json").json["outputs"]
    assert (row["state"], row["tensors"][0]["mean"]) == ("staged", 2.0)
    assert call("upload", "--staging", staging).code == 0
    (row,) = call("show", "runs/sample_0002", "--staging", staging, "--json").json["outputs"]
    assert (row["state"], row["tensors"][0]["mean"]) == ("uploaded", 2.0)
    assert row["files"][0]["uri"] == f"{tmp_path}/dest/runs/sample_0002.npy"


def test_what_is_gone_or_changed_is_a_problem_and_a_no(dest: Path) -> None:
    (dest / "runs/sample_0001.npy").unlink()
    (dest / "runs/sample_0002.npy").write_bytes(b"other")
    answer = call("show", "runs/sample_000", dest, "--json")
    assert answer.code == 1
    problems = {row["key"][-1]: row["problem"] for row in answer.json["outputs"] if row["problem"]}
    assert "no such file" in problems["1"]
    assert "not what its receipt says" in problems["2"]
    assert len(problems) == 2
    assert "problem:" in call("show", "runs/sample_0002", dest).out


def test_no_such_output_is_a_no(dest: Path, staging: Path) -> None:
    for where in ([dest], ["--staging", staging]):
        answer = call("show", "runs/other", *where)
        assert answer.code == 1
        assert "no output whose key begins with 'runs/other'" in answer.out
    assert call("show", "runs/sample_0001").code == 2
    assert call("show", "runs/sample_0001", dest, "--staging", staging).code == 2


def test_an_output_in_a_bucket_is_shown(staging: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    staged_run(staging, s3_bucket.url, 2)
    assert call("upload", "--staging", staging).code == 0
    (row,) = call("show", "runs/sample_0001", s3_bucket.url, "--json").json["outputs"]
    assert row["tensors"][0]["max"] == 1.0


def test_summaries_leave_nans_out_and_take_every_dtype() -> None:
    nan, inf = float("nan"), float("inf")
    (one,) = summaries(torch.tensor([[1.0, nan], [5.0, nan]]))
    assert (one.min, one.max, one.mean, one.nans, one.shape) == (1.0, 5.0, 3.0, 2, (2, 2))
    (infinite,) = summaries(torch.tensor([inf, -inf, 1.0]))
    assert (infinite.min, infinite.max, infinite.nans) == (-inf, inf, 0)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.float64, torch.int8, torch.uint16):
        (small,) = summaries(torch.tensor([1, 2, 3]).to(dtype))
        assert (small.dtype, small.min, small.max, small.mean) == (str(dtype)[6:], 1.0, 3.0, 2.0)
    (truth,) = summaries(torch.tensor([True, False]))
    assert (truth.dtype, truth.mean) == ("bool", 0.5)
    for empty in (torch.tensor([]), torch.tensor(nan)):
        (none,) = summaries(empty)
        assert (none.min, none.max, none.mean, none.nans) == (None, None, None, int(empty.numel()))
    (half,) = summaries(torch.tensor([complex(1, nan), 2j]))
    assert (half.min, half.nans) == (None, 1)
    named = summaries({"p": torch.zeros(2), "u": torch.ones(1)}) + summaries([torch.zeros(1)])
    assert [summary.name for summary in named] == ["p", "u", "0"]
    assert summaries(torch.from_numpy(np.full(10**6, 0.1, dtype=np.float32)))[0].mean == pytest.approx(0.1, rel=1e-6)
