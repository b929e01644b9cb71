"""``python -m tests.model.replay [FILE]`` runs a schedule that a test has printed again, and shows each operation."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.model.schedule import Schedule


def main() -> None:
    text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else sys.stdin.read()
    made = Schedule.replay(text)
    print(made.world.script.told())
    print("-- every promise was kept")


if __name__ == "__main__":
    main()
