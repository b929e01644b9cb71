"""What a run measures, read back from where a user would look: Prometheus."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
import ray
import torch

from ray_sink.measures import RunMeasures, WriterMeasures
from ray_sink.runtime.metrics import Metrics
from tests import servers
from tests.runtime.conftest import Run
from tests.test_measures import timings
from tests.waiting import until


@pytest.fixture
def prometheus(ray_cluster: None) -> Iterator[str]:
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    with servers.prometheus(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}") as url:
        yield url


def ask(url: str, query: str) -> dict[str, float]:
    """A query's answer: numbers by all labels that are ours."""
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
        found = json.load(answer)["data"]["result"]
    ours = ("reason", "le")
    return {" ".join(one["metric"][n] for n in ours if n in one["metric"]): float(one["value"][1]) for one in found}


def test_every_metric_of_a_run_is_read_back_from_prometheus(folder_run: Run, prometheus: str) -> None:
    outputs, size = 12, 4 * 32 * 32
    with folder_run.sink() as sink:
        mine = f'{{run="{sink.run_id}"}}'

        def value(name: str) -> float | None:
            return ask(prometheus, f"sum(ray_{name}{mine})").get("")

        with sink.handle() as handle:
            for ticket in handle.write_batch([f"k{n}" for n in range(outputs)], torch.zeros(outputs, 32, 32)):
                ticket.result(60)
        try:
            until(lambda: value("sink_upload_seconds_count") == outputs, deadline_s=90)
        except TimeoutError as error:
            names = ("sink_upload_seconds_count", "sink_encode_seconds_count", "sink_outputs_total", "sink_failures")
            error.add_note(f"Prometheus has { ({name: value(name) for name in names}) }")
            raise
        assert value("sink_outputs_total") == outputs
        assert value("sink_staged_bytes_total") == outputs * size
        uploaded = value("sink_uploaded_bytes_total")
        assert uploaded is not None
        assert uploaded > outputs * size  # files have headers
        assert value("sink_encode_seconds_count") == value("sink_stage_seconds_count") == outputs
        assert value("sink_upload_concurrency") == folder_run.upload.concurrency
        assert value("sink_failures") == value("sink_waiting_bytes") == 0
        held = value("sink_in_flight_bytes")
        assert held is not None
        assert held >= 0
        waited = ask(prometheus, f"ray_sink_producers_waited_seconds_total{mine}")
        assert set(waited) <= {"copy", "device", "credit", "receipt"}
        assert waited["copy"] > 0
        assert waited["receipt"] > 0


def test_retries_and_failures_are_handed_on_and_totals_never_fall(prometheus: str) -> None:
    mine = '{run="totals"}'
    metrics = Metrics("totals")
    many = RunMeasures(writers=(WriterMeasures("w", 1, 7, 70, timings(*[0.01] * 5)),), failed=3)
    metrics.hand_on(many)
    metrics.hand_on(RunMeasures())  # of a coordinator that was started again
    metrics.hand_on(many)
    until(lambda: ask(prometheus, f"ray_sink_failures{mine}") == {"": 3.0}, deadline_s=90)
    assert ask(prometheus, f"ray_sink_outputs_total{mine}") == {"": 7.0}
    assert ask(prometheus, f"ray_sink_encode_seconds_count{mine}") == {"": 5.0}
    buckets = ask(prometheus, f"ray_sink_encode_seconds_bucket{mine}")
    assert {float(bound) >= 0.01: count for bound, count in buckets.items()} == {False: 0.0, True: 5.0}
    assert len(buckets) > 10
