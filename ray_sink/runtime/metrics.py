"""A run's measures as Ray metrics, ``sink_…``: what `ray_sink.measures` counts, handed on by the driver.

In the driver alone: nothing is added to the way of an output, and the last numbers are not lost with an actor.
"""

from __future__ import annotations

from typing import Final, TypeVar

from ray.util.metrics import Counter, Gauge, Histogram

from ray_sink.measures import BOUNDS_S, RunMeasures, Timings

MetricT = TypeVar("MetricT", Counter, Gauge, Histogram)

_BOUNDARIES: Final = list(BOUNDS_S[::2])
_STAGES: Final = ("encode", "stage", "upload")


class Metrics:
    """The metrics of one run. Tags: ``reason`` and ``stage``, of which there are a few, and ``run``."""

    def __init__(self, run_id: str) -> None:
        run = {"run": run_id}

        def counter(name: str, what: str, *tags: str) -> Counter:
            return _tagged(Counter(name, what, ("run", *tags)), run)

        def gauge(name: str, what: str) -> Gauge:
            return _tagged(Gauge(name, what, ("run",)), run)

        self._waited = counter("sink_producers_waited_seconds", "Seconds producers waited, by reason.", "reason")
        self._counters = {
            "outputs": counter("sink_outputs", "Outputs that got a receipt."),
            "written_bytes": counter("sink_staged_bytes", "Bytes of tensors that were staged."),
            "uploaded_bytes": counter("sink_uploaded_bytes", "Bytes that were uploaded."),
            "upload_retries": counter("sink_upload_retries", "Tries to upload that failed and came again."),
        }
        self._gauges = {
            "in_flight_bytes": gauge("sink_in_flight_bytes", "Bytes of the object store that producers hold."),
            "staged_bytes": gauge("sink_waiting_bytes", "Bytes of staged outputs that wait for their upload."),
            "failed": gauge("sink_failures", "Outputs that failed."),
        }
        self._concurrency = gauge("sink_upload_concurrency", "Objects in flight that all uploaders may have.")
        self._stages = {
            name: _tagged(Histogram(f"sink_{name}_seconds", f"Seconds to {name} a file.", _BOUNDARIES, ("run",)), run)
            for name in _STAGES
        }
        self._said: dict[str, float] = {}
        self._timed = dict.fromkeys(_STAGES, Timings())

    def hand_on(self, measures: RunMeasures) -> None:
        """Bring the metrics up to `measures`. What a coordinator that was started again does not know is not undone."""
        for reason, seconds in measures.producers.waited_s.items():
            self._raise(self._waited, f"waited {reason}", seconds, {"reason": reason})
        for name, counter in self._counters.items():
            self._raise(counter, name, getattr(measures, name), {})
        for name, gauge in self._gauges.items():
            gauge.set(getattr(measures, name))
        self._concurrency.set(sum(uploader.concurrency for uploader in measures.uploaders))
        stages = measures.stages()
        for name, histogram in self._stages.items():
            self._timed[name] = _observed(histogram, self._timed[name], stages[name])

    def _raise(self, counter: Counter, name: str, total: float, tags: dict[str, str]) -> None:
        gained = total - self._said.get(name, 0.0)
        if gained > 0:
            counter.inc(gained, tags)
            self._said[name] = total


def _observed(histogram: Histogram, before: Timings, now: Timings) -> Timings:
    """Observe what is new, each at the upper bound of its bucket; Ray's histograms take one value at a time."""
    counts = list(before.counts)
    for bucket, (old, new) in enumerate(zip(before.counts, now.counts, strict=True)):
        value = BOUNDS_S[bucket] if bucket < len(BOUNDS_S) else now.longest_s
        for _ in range(new - old):
            histogram.observe(min(value, now.longest_s) or BOUNDS_S[0])
        counts[bucket] = max(old, new)
    return Timings(tuple(counts), now.total_s, now.longest_s)


def _tagged(metric: MetricT, tags: dict[str, str]) -> MetricT:
    metric.set_default_tags(tags)
    return metric
