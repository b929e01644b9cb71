"""Each promise broken in the code, by one line, and a schedule that sees it: red with the line, green without."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass

import pytest

from ray_sink import ledger
from ray_sink.deciding import Round
from ray_sink.errors import JournalCorruptError
from ray_sink.journal import Journal
from ray_sink.ledger import Ledger
from ray_sink.publishing import DecidedPublishing
from ray_sink.staging import Staging
from ray_sink.terms import Terms
from ray_sink.uploader import Uploader
from tests.model import actors
from tests.model.schedule import Schedule
from tests.model.script import Violation
from tests.model.test_replay import FOUND


@dataclass(frozen=True, slots=True)
class Breaking:
    """A function of the library, what is changed in its source, and the schedule that must see it."""

    owner: object
    name: str
    old: str
    new: str
    schedule: str

    def do(self, patch: pytest.MonkeyPatch) -> None:
        whole = inspect.getattr_static(self.owner, self.name)
        function = getattr(whole, "__func__", whole)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, "the code has changed: say anew how it is broken"
        made: dict[str, object] = {}
        exec(f"from __future__ import annotations\n{source.replace(self.old, self.new)}", function.__globals__, made)
        patch.setattr(self.owner, self.name, made[self.name])


ANOTHER_SAYS_YES = FOUND["another's sync says yes between a sync that failed and what its writer does about that"]
WRITE_AND_CUT = """
folder
write(life=0, batch=[('d/e', (), 0)], until=None)
cut_power(seed=0)
"""
DECIDED_AND_CUT = """
folder
write(life=0, batch=[('d/e', ('b', 'c'), 0)], until='size')
cut_power(seed=0)
"""
HALF_PUBLISHED = """
folder
write(life=0, batch=[('d/e', ('b', 'c'), 0)], until='rename')
kill(work=0)
take_over(until=None)
"""
TWO_ATTEMPTS = """
folder
write(life=0, batch=[('a', (), 0)], until=None)
write(life=0, batch=[('a', (), 1)], until=None)
"""
DECIDED_BEHIND_THE_FENCE = """
folder
write(life=0, batch=[('a', (), 0)], until='ledger')
take_over(until=None)
write(life=0, batch=[('a', (), 1)], until=None)
go_on(work=0, until=None)
"""
STAGED_FOR_THE_LEDGER_BEFORE = """
folder
write(life=0, batch=[('a', (), 0)], until='ledger')
kill_ledger(life=0)
restart_ledger(driver=0, kill=False, until=None)
go_on(work=0, until=None)
"""
TWO_LEDGERS_BEGIN = """
folder
take_over(until='ledger')
go_on(work=0, until=16)
take_over(until=None)
go_on(work=0, until=None)
write(life=0, batch=[('a', (), 0)], until=None)
write(life=1, batch=[('a', (), 1)], until=None)
"""
RENAME_FAILS = """
folder
write(life=0, batch=[('a', (), 0)], until='rename')
disk_error(kind='rename', after=False, times=6)
go_on(work=0, until=None)
"""
TAKEN_OVER_BEFORE_SUCCESS = """
store
write(life=0, batch=[('a', (), 0), ('d/e', (), 0)], until=None)
upload(life=0, index=0, until=None)
upload(life=0, index=1, until=None)
close(driver=0, until='put')
take_over(until=None)
write(life=0, batch=[('d/f', (), 0)], until=None)
go_on(work=0, until=None)
"""
SEALED_BY_TWO = """
store
write(life=0, batch=[('a', (), 0), ('d/e', (), 0)], until=None)
upload(life=0, index=0, until=None)
upload(life=0, index=1, until=None)
close(driver=0, until='put')
go_on(work=0, until='put')
take_over(until=None)
close(driver=0, until=None)
go_on(work=0, until=None)
"""
ANSWER_LOST = """
store
write(life=0, batch=[('a', (), 0), ('d/e', (), 0)], until=None)
store_fault(kind='put answered 412')
upload(life=0, index=0, until=None)
store_fault(kind='put answered 412')
upload(life=0, index=1, until=None)
"""
SOMEBODY_ELSES = """
store
write(life=0, batch=[('a', (), 0), ('d/e', (), 0)], until=None)
put_foreign(path='a.bin', sink=True)
put_foreign(path='d/e.bin', sink=True)
upload(life=0, index=0, until=None)
upload(life=0, index=1, until=None)
"""
UPLOADS_FAIL = """
store
write(life=0, batch=[('a', (), 0), ('d/e', (), 0)], until=None)
store_away(requests=7)
upload(life=0, index=0, until=None)
store_away(requests=7)
upload(life=0, index=1, until=None)
"""

BREAKINGS = {
    "no fsync of the file": Breaking(Staging, "_filled", "file.sync()", "pass", WRITE_AND_CUT),
    "no fsync of the temps' folder": Breaking(
        Staging, "sync_temps", "self.fs.sync_dir(self.terms.folder(term))", "pass", DECIDED_AND_CUT
    ),
    "no fsync of the final folders": Breaking(Staging, "_sync", "sorted(folders)", "()", WRITE_AND_CUT),
    "published before it is decided": Breaking(
        DecidedPublishing, "publish", "decisions = self._decide(", "self._staging.publish(proposals)\n        "
        "decisions = self._decide(", TWO_ATTEMPTS,
    ),
    "decided before the journal is synced": Breaking(Journal, "append", "self._file.sync()", "pass", WRITE_AND_CUT),
    "acknowledged before it is published": Breaking(
        DecidedPublishing, "_settle", "vanished = self._publish(list(left.values()), outcomes)", "vanished = []",
        WRITE_AND_CUT,
    ),
    "a receipt before it is published": Breaking(
        Ledger, "_receipt", "if entry.published:", "if True:", DECIDED_BEHIND_THE_FENCE
    ),
    "no roll-forward": Breaking(
        Ledger, "_roll_forward_older",
        "self._staging.roll_forward(self.term, (entry.proposal for entry in self._book.entries.pending()))", "[]",
        HALF_PUBLISHED,
    ),
    "no fence": Breaking(Terms, "begin", "self._take(self.tmp, term)", "pass", HALF_PUBLISHED),
    "a zombie adopts what a newer life published": Breaking(
        Staging, "_adopt", "size is not None and self._name_anew(source, target)", "size is not None",
        DECIDED_BEHIND_THE_FENCE,
    ),
    "a name that another gave is taken for durable": Breaking(
        Staging, "_adopt", "size is not None and self._name_anew(source, target)",
        "size is not None and self.fs.has_dir(source.parent)", ANOTHER_SAYS_YES,
    ),
    "what was staged for an older ledger is decided": Breaking(
        Round, "judge", 'any(not temp.temp.startswith(f"{self._term}/") for temp in proposal.files)', "False",
        STAGED_FOR_THE_LEDGER_BEFORE,
    ),
    "a ledger begins beside a newer one": Breaking(
        ledger, "begin_life", "max(fs.list(staging.journal_dir)) > term", "False", TWO_LEDGERS_BEGIN
    ),
    "winners are dropped": Breaking(
        DecidedPublishing, "publish", "if d.winner is None or d.winner.attempt != p.attempt", "", RENAME_FAILS
    ),
    "the last attempt wins": Breaking(Round, "judge", "if winner is not None:", "if False:", TWO_ATTEMPTS),
    "sealing is not journaled": Breaking(
        Ledger, "begin_sealing", 'self._write({"is": "sealing"})', "pass", TAKEN_OVER_BEFORE_SUCCESS
    ),
    "_SUCCESS is replaced": Breaking(
        actors, "seal", "made.to_json(), replace=False", "made.to_json(), replace=True",
        SEALED_BY_TWO,
    ),
    "an unknown upload is not looked at": Breaking(
        Uploader, "_put", "except ObjectExistsError as error:", "except ZeroDivisionError as error:", ANSWER_LOST
    ),
    "412 is taken for a success": Breaking(
        Uploader, "_put", "except ObjectExistsError as error:",
        "except ObjectExistsError as error:\n            return Verification.VERIFIED",
        SOMEBODY_ELSES,
    ),
    "another run's object is taken for ours": Breaking(
        Uploader, "_prove", "ours = all(theirs.get(name) == metadata[name] for name in (RUN, ATTEMPT, CHECKSUM))",
        "ours = True", SOMEBODY_ELSES,
    ),
    "a failed upload is freed": Breaking(
        Ledger, "uploaded", "return [temp.file for entry in (again | done).values() for temp in entry.proposal.files]",
        "return [t.file for o in outcomes for t in self._book.entries.get(o.key).proposal.files]", UPLOADS_FAIL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKINGS)
def test_the_model_sees_what_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking = BREAKINGS[name]
    with monkeypatch.context() as patch:
        breaking.do(patch)
        with pytest.raises((Violation, JournalCorruptError)):  # the book itself sees a key that is decided twice
            Schedule.replay(breaking.schedule)
    Schedule.replay(breaking.schedule)
