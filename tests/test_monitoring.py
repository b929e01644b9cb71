"""The alert rules and what is scraped for them, by Prometheus' own tool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ray_sink.config import Limits
from tests import manifests
from tests.manifests import KUBERAY, PROJECT

RULES = KUBERAY / "monitoring" / "alerts.yaml"
LABELS = '{namespace="ray-sink",run="r"}'
WAITED = '{namespace="ray-sink",run="r",reason="credit"}'
# Of Ray itself, not of the sink.
FROM_RAY = {"ray_node_gpus_available"}


def rules() -> dict[str, Any]:
    (document,) = manifests.of_kind(manifests.load("monitoring/alerts.yaml"), "PrometheusRule")
    return dict(document["spec"])


def promtool(folder: Path, *arguments: str, **files: object) -> str:
    """Run Prometheus' tool on files that are written for it; returns what it said, of a failure too."""
    if shutil.which("promtool") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have promtool")
        pytest.skip("promtool is not installed; to get it: apt-get install --no-install-recommends prometheus")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))  # JSON is YAML, too
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, cwd=folder)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"\nexit code {done.returncode}")


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    assert "SUCCESS: 6 rules found" in promtool(tmp_path, "check", "rules", "rules.json", rules=rules())


def test_prometheus_would_say_if_it_did_not(tmp_path: Path) -> None:
    broken = rules()
    broken["groups"][0]["rules"][0]["expresion"] = "up"
    assert "exit code" in promtool(tmp_path, "check", "rules", "rules.json", rules=broken)


# By alert: what is measured, a sample a minute; a minute at which it does not fire yet, and one at which it does.
CASES = {
    "RaySinkOutputsFail": ({f"ray_sink_failures{LABELS}": "0x9 3x20"}, 9, 11),
    "RaySinkUploadsStand": (
        {f"ray_sink_waiting_bytes{LABELS}": "5000x60", f"ray_sink_uploaded_bytes_total{LABELS}": "0+100x20 2000x40"},
        25,
        32,
    ),
    "RaySinkStoreRefuses": (
        {
            f"ray_sink_upload_retries_total{LABELS}": "0+1x20 21+20x40",
            f"ray_sink_upload_seconds_count{LABELS}": "0+100x60",
        },
        20,
        45,
    ),
    "RaySinkStagingFills": (
        {f"ray_sink_waiting_bytes{LABELS}": f"{Limits().staging_bytes // 2}x10 {Limits().staging_bytes}x30"},
        14,
        17,
    ),
    "RaySinkModelsWait": (
        {
            f"ray_sink_producers_waited_seconds_total{WAITED}": "0+10x20 200+40x40",
            'ray_node_gpus_available{namespace="ray-sink",GpuIndex="0",ip="a"}': "1x60",
            'ray_node_gpus_available{namespace="ray-sink",GpuIndex="0",ip="b"}': "1x60",
            'ray_node_gpus_available{namespace="ray-sink",GpuIndex="1",ip="b"}': "1x60",
            'ray_node_gpus_available{namespace="ray-sink",GpuIndex="2",ip="b"}': "1x60",
        },
        20,
        45,
    ),
    "RaySinkRunStands": (
        {f"ray_sink_waiting_bytes{LABELS}": "0x90", f"ray_sink_outputs_total{LABELS}": "0+10x10 100x80"},
        40,
        55,
    ),
}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_comes_when_it_should_and_not_before(tmp_path: Path, alert: str) -> None:
    measured, before, after = CASES[alert]
    (rule,) = (rule for rule in rules()["groups"][0]["rules"] if rule["alert"] == alert)
    fires = {"exp_labels": {**rule["labels"], "namespace": "ray-sink", "run": "r"}}
    expected = {"alertname": alert, "exp_alerts": [fires]}
    tests = {
        "rule_files": ["plain.json"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in measured.items()],
                "alert_rule_test": [
                    {"eval_time": f"{before}m", "alertname": alert, "exp_alerts": []},
                    {"eval_time": f"{after}m", **expected},
                ],
            }
        ],
    }
    plain = rules()  # without texts: what is said depends on numbers that a test would only repeat
    for each in plain["groups"][0]["rules"]:
        del each["annotations"]
    said = promtool(tmp_path, "test", "rules", "tests.json", plain=plain, tests=tests)
    assert "SUCCESS" in said, said


def test_every_alert_has_a_case_and_says_what_to_do() -> None:
    found = rules()["groups"][0]["rules"]
    assert [rule["alert"] for rule in found] == list(CASES)
    page = (PROJECT / "docs" / "kubernetes.md").read_text()
    for rule in found:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["alert"] in page


def test_the_alerts_ask_for_metrics_that_the_sink_has() -> None:
    source = (PROJECT / "ray_sink" / "runtime" / "metrics.py").read_text()
    counters = set(re.findall(r'counter\(\s*"(sink_\w+)"', source))
    gauges = set(re.findall(r'gauge\(\s*"(sink_\w+)"', source)) | set(re.findall(r'gauge\("(sink_\w+)"', source))
    stages = re.findall(r"_STAGES: Final = \((.*)\)", source)[0].replace('"', "").split(", ")
    known = {f"ray_{name}_total" for name in counters} | {f"ray_{name}" for name in gauges}
    known |= {f"ray_sink_{stage}_seconds_count" for stage in stages}
    asked = {name for rule in rules()["groups"][0]["rules"] for name in re.findall(r"ray_\w+", rule["expr"])}
    assert asked - FROM_RAY <= known
    assert {"ray_sink_failures", "ray_sink_upload_retries_total"} <= asked


def test_the_monitor_finds_every_ray_pod_at_the_port_that_the_operator_gives_it(tmp_path: Path) -> None:
    (monitor,) = manifests.of_kind(manifests.load("monitoring/monitor.yaml"), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    for name in ("full", "cluster"):
        for pod in manifests.pods(manifests.load(name)):
            wanted = monitor["spec"]["selector"]["matchLabels"].items()
            assert (wanted <= pod.labels.items()) == (pod.name not in ("submitter", "redis")), pod.name
    # the operator turns these into Prometheus' own, whose names have underscores
    relabel = [{re.sub("([A-Z])", r"_\1", key).lower(): v for key, v in r.items()} for r in endpoint["relabelings"]]
    config = {
        "scrape_configs": [{"job_name": "x", "scrape_interval": endpoint["interval"], "relabel_configs": relabel}]
    }
    assert "SUCCESS" in promtool(tmp_path, "check", "config", "config.json", config=config)


def test_both_are_given_the_label_that_a_prometheus_looks_for() -> None:
    for document in manifests.built(KUBERAY / "monitoring"):
        assert document["metadata"]["labels"] == {"release": "change-me"}
