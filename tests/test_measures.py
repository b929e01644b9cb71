from __future__ import annotations

import pickle
import random
import threading

import pytest

from ray_sink.measures import (
    BOUNDS_S,
    Gathered,
    ProducerMeasures,
    RunMeasures,
    Timings,
    UploaderMeasures,
    WriterMeasures,
)
from ray_sink.meters import Histogram


def timings(*took_s: float) -> Timings:
    histogram = Histogram()
    for seconds in took_s:
        histogram.add(seconds)
    return histogram.timings()


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_right_to_a_fifth_of_a_decade(seed: int) -> None:
    choose = random.Random(seed)
    times = sorted(choose.lognormvariate(-4, 2) for _ in range(choose.randint(1, 2000)))
    told = timings(*times)
    for percent in (1, 50, 90, 99, 100):
        exact = times[max(0, -(-len(times) * percent // 100) - 1)]
        found = told.percentile_s(percent)
        assert found is not None
        assert max(exact, BOUNDS_S[0]) * 0.999 <= max(found, BOUNDS_S[0]) <= max(exact, BOUNDS_S[0]) * 10**0.2 * 1.001
    assert told.percentile_s(100) == told.longest_s == times[-1]
    assert told.total_s == pytest.approx(sum(times))


def test_nothing_has_no_percentile_and_hours_have_their_own_bucket() -> None:
    assert Timings().percentile_s(50) is None
    long = timings(5000.0, 0.001)
    assert long.percentile_s(99) == 5000.0
    assert long.percentile_s(50) == 0.001
    assert (long + timings(7000.0)).longest_s == 7000.0
    assert (long + timings(7000.0)).count == 3


def test_threads_lose_no_count() -> None:
    histogram = Histogram()

    def work() -> None:
        for _ in range(5000):
            histogram.add(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.timings().count == 20_000


def test_messages_may_be_lost_come_twice_or_late() -> None:
    gathered = Gathered()
    said = [ProducerMeasures("p", n, 10 * n, 0.1 * n, 0.0, 0.0, 0.0) for n in (1, 2, 4)]
    for index in (0, 2, 2, 1):
        gathered.producer(said[index])
    gathered.producer(ProducerMeasures("q", 1, 5, 0.0, 0.5, 2.0, 0.0))
    writers = [WriterMeasures("w", n, 3 * n, 7 * n, encode=timings(*[0.1] * n)) for n in (1, 2, 3)]
    for index in (0, 2, 1):
        gathered.writer(writers[index])
    for files, retries in ((1, 0), (2, 1), (1, 1)):
        gathered.uploader(UploaderMeasures("u", files, 100 * files, retries))
    gathered.holds(in_flight_bytes=50, staged_bytes=9)
    gathered.holds(in_flight_bytes=20, staged_bytes=11)
    run = gathered.run(RunMeasures(decided=9, in_flight_bytes=10, staged_bytes=3))
    assert run.producers == ProducerMeasures("", 5, 45, 0.4, 0.5, 2.0, 0.0)
    assert (run.producer_count, run.outputs, run.written_bytes) == (2, 9, 21)
    assert (run.uploaded_bytes, run.upload_retries, run.decided) == (200, 1, 9)
    assert (run.peak_in_flight_bytes, run.peak_staged_bytes, run.staged_bytes) == (50, 11, 3)
    assert run.stages()["encode"].count == 3
    assert list(run.stages()) == ["encode", "stage", "decide", "publish", "upload"]


def test_what_a_writer_says_with_every_batch_stays_small() -> None:
    full = timings(*[bound * 0.99 for bound in BOUNDS_S for _ in range(70_000 // len(BOUNDS_S))])
    said = WriterMeasures("some-host-12345", 10**6, 10**8, 10**12, full, full, full, full)
    assert len(pickle.dumps(said)) < 2000
