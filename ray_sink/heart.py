"""The thread that shows that a run's owner lives."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ray_sink.errors import RunFencedError, SinkError
from ray_sink.events import BeatMissed, emit
from ray_sink.ownership import Claim

_BEATS = 8
"""Beats in the time after which a silent owner may be taken over."""


class Heart:
    """Moves a claim's counters on until `stop`, and says when somebody has taken over.

    Args:
        claim: whose counters.
        takeover_s: how long they must stand still for another to take over, seconds.
        fence: told of a newer owner.
        note: what to say about the run with each beat; see `ray_sink.ownership.Sighting.note`.
        last_beat_s: how long `stop` waits for a beat that is under way, seconds.

    Attributes:
        fenced: the newer owner's doing, once there is one; the thread has ended then.
    """

    def __init__(
        self,
        claim: Claim,
        takeover_s: float,
        fence: Callable[[str], object],
        *,
        note: Callable[[], str] = str,
        last_beat_s: float = 10.0,
    ) -> None:
        self._claim = claim
        self._every_s = takeover_s / _BEATS
        self._fence = fence
        self._note = note
        self._last_beat_s = last_beat_s
        self._stop = threading.Event()
        self.fenced: RunFencedError | None = None
        self._thread = threading.Thread(target=self._run, name="ray_sink-heart", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a beat that hangs is not waited for, and does no harm whenever it comes."""
        self._stop.set()
        self._thread.join(self._last_beat_s)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._claim.beat(self._note())
            except RunFencedError as error:
                self.fenced = error
                self._fence(str(error))
                return
            except (SinkError, OSError) as error:
                # one missed beat is no harm; a store that stays away lets others take over, and the fence holds
                emit(BeatMissed(self._claim.epoch, str(error)))
