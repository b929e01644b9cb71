"""What was tried, promised and seen, and the promises held against it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_sink.errors import SinkError
from ray_sink.records import FileRecord, Receipt, State
from tests.model.script import Script, Violation


@dataclass(frozen=True)
class Attempt:
    """One try at one key: its files' contents by path."""

    key: str
    name: str
    contents: dict[str, bytes]


@dataclass
class Record:
    """Everything that the outside world knows."""

    script: Script
    attempts: dict[str, Attempt] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    refused: dict[str, SinkError] = field(default_factory=dict)
    legit: dict[str, set[bytes]] = field(default_factory=dict)

    def attempted(self, attempt: Attempt) -> None:
        self.attempts[attempt.name] = attempt
        for path, data in attempt.contents.items():
            self.legit.setdefault(path, set()).add(data)

    def accepted(self) -> list[str]:
        """Every key that was ever accepted."""
        return sorted({attempt.key for attempt in self.attempts.values()})

    # -- while it runs -----------------------------------------------------------------------------------------------

    def seen(self, path: str, data: bytes) -> None:
        """A reader looks under a final name."""
        if path.startswith("_ray_sink/"):
            return
        if data not in self.legit.get(path, ()):
            raise Violation(f"I2: {path} shows {data[:40]!r}…, {len(data)} bytes that no attempt wrote")

    def stored(self, path: str, data: bytes, existed: bool) -> None:
        """An object appeared."""
        if existed and not path.startswith("_ray_sink/"):
            raise Violation(f"I1: object {path} was overwritten")
        if existed and path.endswith("_SUCCESS"):
            raise Violation("I5: _SUCCESS was written twice")
        self.seen(path, data)

    def acknowledge(self, receipt: Receipt, by: str) -> None:
        """A ticket resolved."""
        self.script.note(f"{by} acknowledges {receipt.key} = {receipt.attempt} ({receipt.state})")
        before = self.receipts.setdefault(receipt.key, receipt)
        if same(before) != same(receipt):
            raise Violation(f"P3: {receipt.key} has two receipts:\n  {before}\n  {receipt}")
        attempt = self.attempts[receipt.attempt]
        if {file.path for file in receipt.files} != set(attempt.contents):
            raise Violation(f"P3: {receipt.key} has a receipt for other files: {receipt}")
        if receipt.state is State.UPLOADED:
            self.receipts[receipt.key] = receipt

    # -- at the end --------------------------------------------------------------------------------------------------

    def check(self, rows: list[Receipt], contents: dict[str, bytes], failures: dict[str, str]) -> None:
        """Hold a sealed manifest and the destination's contents (without our own folder) against the promises."""
        by_key = {row.key: row for row in rows}
        if len(by_key) != len(rows):
            raise Violation("P3: a key has two rows in the manifest")
        for key, receipt in self.receipts.items():
            if key not in by_key:
                raise Violation(f"I1: {key} was acknowledged as {receipt.attempt} and is not in the manifest")
            if same(by_key[key]) != same(receipt):
                raise Violation(f"I1: {key} was acknowledged as\n  {receipt}\nand committed as\n  {by_key[key]}")
        for key in self.accepted():
            if key not in by_key and key not in failures:
                raise Violation(f"I1: {key} was accepted, and is neither committed nor reported")
        named: set[str] = set()
        for row in rows:
            for path, data in self.attempts[row.attempt].contents.items():
                if contents.get(path) != data:
                    raise Violation(f"I3: the manifest says {row.attempt} for {path}, there is {contents.get(path)!r}")
                if path in named:
                    raise Violation(f"I1: {path} belongs to two rows")
                named.add(path)
        if named != set(contents):
            raise Violation(f"I3: the manifest does not know {sorted(set(contents) - named)}")


def same(receipt: Receipt) -> tuple[str, str, tuple[tuple[str, int, str], ...]]:
    """What must be alike in all receipts of a key, however far it has come."""
    return receipt.key, receipt.attempt, tuple(_file(file) for file in receipt.files)


def _file(file: FileRecord) -> tuple[str, int, str]:
    return file.path, file.bytes, file.checksum
