from __future__ import annotations

import threading
from pathlib import Path

from ray_sink.filesystem import PosixFilesystem
from ray_sink.heart import Heart
from ray_sink.ownership import Claim, FolderPlace, Owner
from tests.waiting import until


class Hanging(FolderPlace):
    """Answers nothing until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(PosixFilesystem(), root)
        self.asked = threading.Event()
        self.let_go = threading.Event()

    def names(self) -> list[str]:
        self.asked.set()
        self.let_go.wait(60)
        return super().names()


def test_a_beat_that_hangs_holds_nobody_back(tmp_path: Path) -> None:
    place = Hanging(tmp_path)
    fenced: list[str] = []
    heart = Heart(Claim([place], 1, Owner("run", "host", 1, "a")), 0.1, fenced.append, last_beat_s=0.1)
    assert place.asked.wait(10)
    heart.stop()
    assert not place.let_go.is_set()
    place.let_go.set()
    until(lambda: not any(thread.name == "ray_sink-heart" for thread in threading.enumerate()))
    assert fenced == []
