from __future__ import annotations

import pytest

from ray_sink.config import UploadOptions
from ray_sink.runtime import placement

OTHERS = placement.Nodes(frozenset({"head", "a"}), "head", {})
ALONE = placement.Nodes(frozenset({"head"}), "head", {})


@pytest.mark.parametrize("cluster", [OTHERS, ALONE])
def test_uploaders_go_where_their_label_is_and_nowhere_else(cluster: placement.Nodes) -> None:
    options = UploadOptions(label_selector={"role": "writer"})
    assert placement.for_uploader(options, cluster) == {"num_cpus": 0, "label_selector": {"role": "writer"}}


def test_uploaders_without_a_label_keep_off_the_head_unless_it_is_alone() -> None:
    assert placement.for_uploader(UploadOptions(), OTHERS)["label_selector"] == {"ray.io/node-id": "!head"}
    assert placement.for_uploader(UploadOptions(), ALONE) == {"num_cpus": 0}
