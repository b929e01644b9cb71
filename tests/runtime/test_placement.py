"""Where writers and uploaders go, as a choice among nodes."""

from __future__ import annotations

from collections import Counter

import pytest

from ray_sink import UploadOptions, WriterOptions
from ray_sink.runtime.placement import Nodes, for_uploader, node_for_writer


def cluster(*workers: str, draining: str = "") -> Nodes:
    return Nodes(frozenset({"head", *workers}), frozenset(draining.split()), "head", {})


@pytest.mark.parametrize(
    ("producers", "nodes", "chosen"),
    [
        ("a", cluster("a", "b"), "a"),
        ("head", cluster(), "head"),
        ("head", cluster("a", "b"), "b"),
        ("a", cluster("a", "b", "c", draining="a"), "b"),
        ("a", cluster("a", "b", "c", draining="a b"), "c"),
        ("gone", cluster("a", "b"), "b"),
        ("a", cluster("a", draining="a"), None),
    ],
)
def test_a_writer_goes_beside_its_producers_or_to_the_node_with_the_fewest(
    producers: str, nodes: Nodes, chosen: str | None
) -> None:
    there = Counter({"a": 2, "c": 1})
    assert node_for_writer(producers, WriterOptions(), nodes, there) == chosen


def test_writers_that_ask_for_resources_or_labels_go_where_ray_finds_those() -> None:
    nodes = cluster("a", "b")
    assert node_for_writer("a", WriterOptions(resources={"writer": 1}), nodes, Counter()) is None
    assert node_for_writer("a", WriterOptions(label_selector={"role": "writer"}), nodes, Counter()) is None


@pytest.mark.parametrize("nodes", [cluster("a"), cluster()])
def test_uploaders_go_where_their_label_is_and_nowhere_else(nodes: Nodes) -> None:
    options = UploadOptions(label_selector={"role": "writer"})
    assert for_uploader(options, nodes) == {"num_cpus": 0, "label_selector": {"role": "writer"}}


def test_uploaders_without_a_label_keep_off_the_head_unless_it_is_alone() -> None:
    assert for_uploader(UploadOptions(), cluster("a"))["label_selector"] == {"ray.io/node-id": "!head"}
    assert for_uploader(UploadOptions(), cluster()) == {"num_cpus": 0}
