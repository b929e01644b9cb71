"""Row 36 over a whole run: the store is away, staging fills up, producers wait; then all of it drains."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest
import torch

from ray_sink import Limits, SaveFormat, Sink, Ticket, UploadOptions
from tests import credentials
from tests.faults.s3_jobs import Objects
from tests.faults.s3_proxy import Proxy
from tests.servers import S3Bucket
from tests.waiting import until

MiB = 2**20
OUTPUTS = 20
VALUES = 25_600  # 200 KiB of doubles: five outputs have room in 1 MiB
AT_ONCE = 3

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


class Scale:
    """Weighs what is staged, over and over, by looking at the folder.

    Attributes:
        most_bytes: the most that there ever was.
    """

    def __init__(self, staging: Path) -> None:
        self.most_bytes = self.now_bytes = 0
        self._staging = staging

    @contextmanager
    def weighing(self) -> Iterator[None]:
        over = threading.Event()

        def weigh() -> None:
            while not over.wait(0.02):
                before, after = self._sizes(), self._sizes()
                # who is in both was there in between, together with all the others
                self.now_bytes = sum(size for file, size in before.items() if file in after)
                self.most_bytes = max(self.most_bytes, self.now_bytes)

        thread = threading.Thread(target=weigh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _sizes(self) -> dict[int, int]:
        """Sizes by inode: a file that gets its final name stays the same."""
        found: dict[int, int] = {}
        for folder in (self._staging / "out", *self._staging.glob("_ray_sink/*/tmp/*")):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # published, or freed
                        found[entry.inode()] = os.stat(entry.path).st_size
        return found


def value(number: int) -> torch.Tensor:
    return torch.full((VALUES,), float(number), dtype=torch.float64)


@pytest.mark.row(36)
@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_while_the_store_is_away_staging_fills_producers_wait_and_then_all_drains(
    ray_cluster: None, s3_bucket: S3Bucket, tmp_path: Path, kind: Literal["refusing", "silent"]
) -> None:
    credentials.offer(s3_bucket.server)
    scale = Scale(tmp_path)
    tickets: list[Ticket] = []
    with Proxy(s3_bucket.server) as proxy, scale.weighing():
        options = {"endpoint_url": proxy.endpoint, "region": s3_bucket.server.region}
        sink = Sink(
            f"{s3_bucket.url}/runs",
            staging=tmp_path,
            save_format=SaveFormat.NUMPY_NPY,
            upload=UploadOptions(credentials=credentials.FUNCTION, storage_options=options),
            limits=Limits(staging_bytes=MiB, inflight_outputs=AT_ONCE, takeover_s=60),
        )
        with sink, sink.handle() as handle:
            handle.write("first", value(-1)).result(60)
            until(lambda: sink.status().uploaded == 1, deadline_s=60)
            proxy.partition(kind)

            def produce() -> None:
                for number in range(OUTPUTS):
                    tickets.append(handle.write(f"out/{number:02d}", value(number)))  # noqa: PERF401 - seen one by one

            producer = threading.Thread(target=produce, daemon=True)
            producer.start()
            until(lambda: sink.status().staged == 5 and len(tickets) == 5 + AT_ONCE, deadline_s=60)
            producer.join(3)
            assert producer.is_alive(), "its next write does not return"
            assert len(tickets) == 5 + AT_ONCE
            assert [ticket.done() for ticket in tickets].count(True) == 5  # one batch may overtake another
            assert scale.now_bytes > 0.9 * MiB
            assert proxy.partitioned > 0 or kind == "refusing"
            proxy.heal()
            producer.join(200)
            assert not producer.is_alive()
        assert scale.most_bytes <= MiB
    assert len(sink.manifest) == OUTPUTS + 1
    bucket = Objects(s3_bucket)
    assert len([name for name in bucket.names() if name.endswith(".npy")]) == OUTPUTS + 1
    assert list(tmp_path.rglob("*.npy")) == [], "all was freed"


@pytest.mark.row(36)
def test_headers_of_small_outputs_have_their_room_too(ray_cluster: None, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    """As files they are many times as large as in memory."""
    credentials.offer(s3_bucket.server)
    scale = Scale(tmp_path)
    with Proxy(s3_bucket.server) as proxy, scale.weighing():
        sink = Sink(
            f"{s3_bucket.url}/runs",
            staging=tmp_path,
            upload=UploadOptions(
                credentials=credentials.FUNCTION,
                storage_options={"endpoint_url": proxy.endpoint, "region": s3_bucket.server.region},
            ),
            limits=Limits(staging_bytes=MiB, inflight_outputs=128, takeover_s=60),
        )
        with sink, sink.handle() as handle:
            handle.write("first", torch.ones(1)).result(60)
            until(lambda: sink.status().uploaded == 1, deadline_s=60)
            proxy.partition("refusing")

            def produce() -> None:
                for batch in range(20):
                    handle.write_batch([f"out/{batch}-{number}" for number in range(64)], torch.zeros(64, 1))

            producer = threading.Thread(target=produce, daemon=True)
            producer.start()
            until(lambda: scale.now_bytes > MiB / 2, deadline_s=60)
            producer.join(5)
            assert producer.is_alive(), "staging is full, and its next write does not return"
            proxy.heal()
            producer.join(200)
            assert not producer.is_alive()
        assert scale.most_bytes <= MiB
    assert len(sink.manifest) == 20 * 64 + 1


@pytest.mark.row(36)
@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_whoever_leaves_by_an_exception_while_staging_is_full_does_not_wait_for_the_store(
    ray_cluster: None, s3_bucket: S3Bucket, tmp_path: Path, kind: Literal["refusing", "silent"]
) -> None:
    credentials.offer(s3_bucket.server)
    with Proxy(s3_bucket.server) as proxy:

        def sink() -> Sink:
            return Sink(
                f"{s3_bucket.url}/runs",
                staging=tmp_path,
                run_id="left",
                save_format=SaveFormat.NUMPY_NPY,
                upload=UploadOptions(
                    credentials=credentials.FUNCTION,
                    storage_options={"endpoint_url": proxy.endpoint, "region": s3_bucket.server.region},
                ),
                limits=Limits(staging_bytes=MiB, inflight_outputs=AT_ONCE, drain_s=3, takeover_s=5),
            )

        def leave() -> None:
            with sink() as first, first.handle() as handle:
                handle.write("first", value(-1)).result(60)
                until(lambda: first.status().uploaded == 1, deadline_s=60)
                proxy.partition(kind)
                for number in range(5 + AT_ONCE):
                    handle.write(f"out/{number:02d}", value(number))
                until(lambda: first.status().staged == 5, deadline_s=60)
                left_s.append(time.monotonic())
                raise ZeroDivisionError

        left_s: list[float] = []
        with pytest.raises(ZeroDivisionError) as left:
            leave()
        assert time.monotonic() - left_s[0] < 60, "one request to a silent store takes longer"
        assert f"{AT_ONCE} output(s) had no receipt after limits.drain_s = 3 s" in "".join(left.value.__notes__)
        proxy.heal()
        with sink() as second, second.handle() as handle:
            handle.write_batch([f"out/{n:02d}" for n in range(5 + AT_ONCE)], [value(n) for n in range(5 + AT_ONCE)])
        assert sorted(second.manifest) == ["first", *(f"out/{number:02d}" for number in range(5 + AT_ONCE))]
