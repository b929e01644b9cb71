"""All questions, or those that are named, as one table.

python -m benchmarks [B1 …] [--json FILE]

Where all are asked, those that start Ray anew for each job take fewer turns, so that it is done in 20 minutes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.measuring import Figure, as_json, machine, table

QUESTIONS: Final = {
    "B1": "writer",
    "B2": "handover",
    "B3": "stall",
    "B4": "upload",
    "B5": "processor",
    "B6": "end_to_end",
    "B7": "memory",
    "B8": "length",
}
BY_NAME: Final = {"gpu": "gpu_overlap", "scale": "scale", "width": "width"}
KNOWN: Final = QUESTIONS | BY_NAME
TURNS_AMONG_ALL: Final = {"B3": 3, "B6": 1}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(KNOWN)}; B1 to B8 without")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args(argv)
    unknown = set(given.questions) - set(KNOWN)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(KNOWN)}")
    figures: list[Figure] = []
    for question in given.questions or QUESTIONS:
        began_s = time.monotonic()
        answer: Callable[..., Iterator[Figure]] = importlib.import_module(f"benchmarks.{KNOWN[question]}").answer
        fewer = question in TURNS_AMONG_ALL and not given.questions
        for figure in answer(rounds=TURNS_AMONG_ALL[question]) if fewer else answer():
            figures.append(figure)
            print(table([figure]).splitlines()[-1], flush=True)
        print(f"{question} took {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    print("\n" + table(figures))
    print("\n" + ", ".join(f"{name} {what}" for name, what in machine().items()))
    if given.json is not None:
        given.json.write_text(as_json(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
