"""Does the suite go red? Breaks a copy of the code in one place at a time and runs the tests that must see it.

    python -m tests.faults.mutants [NAME …]

A mutant that nobody sees, and one whose place in the code is not there any more, end this with status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROJECT: Final = Path(__file__).parents[2]
_TESTS_FAILED: Final = 1  # pytest's exit status; others say that the tests did not run

MODEL: Final = ("tests/model",)
POWER: Final = ("tests/faults/test_power.py",)
DISK: Final = ("tests/faults/test_disk_errors.py",)
REPLIES: Final = ("tests/faults/test_store_replies.py",)
MULTIPART: Final = ("tests/faults/test_store_multipart.py",)
DATASINK: Final = ("tests/runtime/test_datasink.py",)
ROLLOUTS: Final = ("tests/runtime/test_rollouts.py",)
NODES: Final = "tests/cluster/test_nodes.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One breaking of the code.

    Attributes:
        name: what is broken.
        file: below ``ray_sink/``.
        old: text that is there once.
        new: what takes its place.
        tests: the tests that must go red.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS: Final = (
    Mutant(
        "a staged file is not fsynced",
        "staging.py",
        "            write(append)\n            file.sync()\n",
        "            write(append)\n",
        POWER,
    ),
    Mutant(
        "the temps' folder is not fsynced before the decision",
        "staging.py",
        "            self.fs.sync_dir(self.terms.folder(term))\n        except OSError",
        "            pass\n        except OSError",
        POWER,
    ),
    Mutant(
        "the folders of final names are not fsynced",
        "staging.py",
        "            self._sync({(self.root / temp.file.path).parent for temp in named})\n",
        "",
        POWER,
    ),
    Mutant(
        "an fsync that failed is tried again on the same file",
        "staging.py",
        "            write(append)\n            file.sync()\n",
        "            write(append)\n            try:\n                file.sync()\n"
        "            except OSError:\n                file.sync()\n",
        DISK,
    ),
    Mutant(
        "a temp that is given back is not fsynced",
        "staging.py",
        "                file.write(data)\n                file.sync()\n",
        "                file.write(data)\n",
        MODEL,
    ),
    Mutant(
        "a decision is answered before it is durable",
        "journal.py",
        "        self._file.sync()\n        self._broken",
        "        self._broken",
        POWER,
    ),
    Mutant(
        "a decision is answered without a record",
        "ledger.py",
        '            self._write({"is": "decided", "batch": rows, "conflicts": tally})\n',
        '            record = {"is": "decided", "batch": rows, "conflicts": tally}\n'
        "            self._book.apply(record, 10**6 + len(self._book.entries))\n",
        MODEL,
    ),
    Mutant(
        "a file is published before the decision",
        "publishing.py",
        "            decisions = self._decide(proposals)\n",
        "            self._staging.publish(proposals)\n            decisions = self._decide(proposals)\n",
        ("tests/test_writer.py",),
    ),
    Mutant("nothing is rolled forward", "ledger.py", "        ledger._roll_forward_older()\n", "", MODEL),
    Mutant(
        "an older life's proposal is accepted",
        "deciding.py",
        'if any(not temp.temp.startswith(f"{self._term}/") for temp in proposal.files)',
        "if False",
        ("tests/test_ledger.py", "tests/test_deciding.py"),
    ),
    Mutant(
        "older lives' temps are left where their writers find them",
        "terms.py",
        "        self._take(self.tmp, term)\n",
        "",
        MODEL,
    ),
    Mutant(
        "a run is sealed by an owner who was fenced",
        "terms.py",
        "        return not self._fs.has_dir(self.folder(term))\n",
        "        return False\n",
        ("tests/test_ledger.py", "tests/test_staging.py"),
    ),
    Mutant(
        "a failed upload counts as uploaded",
        "ledger.py",
        "            if outcome.error is not None:\n                self._failures",
        "            if False:\n                self._failures",
        ("tests/test_ledger.py",),
    ),
    Mutant(
        "after a lost reply nobody looks",
        "uploader.py",
        "            if number > 1 and (proof := look()) is not None:\n                return proof\n",
        "",
        REPLIES,
    ),
    Mutant(
        "412 is a success whatever is there",
        "uploader.py",
        "            except ObjectExistsError as error:\n"
        "                if (proof := look()) is not None:\n                    return proof\n",
        "            except ObjectExistsError as error:\n                return Verification.VERIFIED\n",
        ("tests/test_uploader.py",),
    ),
    Mutant(
        "an object of the same size is ours",
        "uploader.py",
        "            ours = all(theirs.get(name) == metadata[name] for name in (RUN, ATTEMPT, CHECKSUM))\n",
        "            ours = True\n",
        ("tests/test_uploader.py",),
    ),
    Mutant(
        "a staged file that changed is uploaded",
        "stores/staged.py",
        "    if running.text != file.checksum:\n",
        "    if False:\n",
        ("tests/faults/test_damage.py",),
    ),
    Mutant(
        "no checksum goes with an S3 put",
        "stores/s3_objects.py",
        '            arguments["ChecksumCRC64NVME"] = to_base64(checksum)\n',
        "            pass\n",
        REPLIES,
    ),
    Mutant(
        "an engine retries by itself",
        "stores/s3_objects.py",
        '"retries": {"total_max_attempts": 1}',
        '"retries": {"total_max_attempts": 3}',
        REPLIES,
    ),
    Mutant(
        "the other engine retries by itself",
        "stores/obstore_objects.py",
        '            retry_config={"max_retries": 0},\n            **config,\n',
        "            **config,\n",
        REPLIES,
    ),
    Mutant(
        "200 with an error inside completes an upload",
        "stores/multipart.py",
        '        if "ETag" not in answer or (checksum and told and told != to_base64(file.checksum)):\n',
        "        if False:\n",
        MULTIPART,
    ),
    Mutant(
        "an upload in parts that failed is left there",
        "stores/multipart.py",
        "            try:\n                self.abort(upload)\n            except StoreError as second:",
        "            try:\n                pass\n            except StoreError as second:",
        MULTIPART,
    ),
    Mutant(
        "an abort that a part raced is not made again",
        "stores/multipart.py",
        '                if may_list and not self._ask(upload, "list_parts", MaxParts=1).get("Parts"):\n'
        "                    return\n",
        "                return\n",
        MULTIPART,
    ),
    Mutant(
        "a live owner is taken over",
        "ownership.py",
        '        if _top(place) > top or place.get(f"beat-{top:06d}") != seen:\n',
        "        if _top(place) > top:\n",
        ("tests/test_ownership.py",),
    ),
    Mutant(
        "a fenced owner goes on",
        "ownership.py",
        "            self.check(place)\n            place.put(f",
        "            place.put(f",
        ("tests/test_ownership.py",),
    ),
    Mutant(
        "a torn record in the middle of a journal is skipped",
        "journal.py",
        "            if end is None and _explained_by_crash(data, at, seq):\n",
        "            if end is None:\n",
        ("tests/test_journal.py", "tests/faults/test_damage.py"),
    ),
    Mutant(
        "a dataset whose write failed counts as written",
        "runtime/datasink.py",
        'self._ended(RowCounts(), f"failed: {gist(error)}")',
        "self._ended(RowCounts(), None)",
        DATASINK,
    ),
    Mutant(
        "blocks that Ray Data dropped are not missed",
        "runtime/execution.py",
        "if dropped else None",
        "if False else None",
        DATASINK,
    ),
    Mutant(
        "a source is closed before its outputs have receipts",
        "runtime/model.py",
        '            require_unique(names, "a batch", source=self.spec.source)\n',
        "            self.spec.handle.close_sources(names)\n",
        ROLLOUTS,
    ),
    Mutant(
        "a source is closed though one of its outputs failed",
        "runtime/model.py",
        "if served.names and not failures:",
        "if served.names:",
        ROLLOUTS,
    ),
    Mutant(
        "rows that share a source are not told apart",
        "runtime/sources.py",
        "max((len(hashes) - len(np.unique(hashes)) for hashes in found), default=0)",
        "0",
        ROLLOUTS,
    ),
    Mutant(
        "what a model still holds is copied after it may have been called again",
        "runtime/model.py",
        "copy = not ours.issuperset(saved.names)",
        "copy = False",
        ("tests/runtime/test_given_away.py",),
    ),
    Mutant(
        "who else shows an array's memory is not looked at",
        "runtime/holders.py",
        "        if _count_base(value) > _AS_BASE or not _is_array(value.base):\n            return False\n",
        "",
        ("tests/test_holders.py",),
    ),
    Mutant(
        "a writer publishes what it staged, whatever was decided while it was cut off",
        "publishing.py",
        "self._settle([d.winner for _, d in pairs if d.winner is not None and d.receipt is None])",
        "self._settle(proposals)",
        (f"{NODES}::test_a_link_is_cut_and_the_zombie_comes_back",),
    ),
    Mutant(
        "an uploader replaces what came there while it was cut off",
        "uploader.py",
        "replace=task.replace or torn,",
        "replace=True,",
        (f"{NODES}::test_a_node_with_a_disk_of_its_own_is_cut_off_and_comes_back",),
    ),
)


def main(names: Sequence[str]) -> int:
    wanted = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    unseen: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rs-mutants-") as folder:
        tree = Path(folder) / "tree"
        for part in ("ray_sink", "tests", "examples", "pyproject.toml"):
            source = _PROJECT / part
            ignored = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, tree / part, ignore=ignored)
            else:
                shutil.copy(source, tree / part)
        for mutant in wanted:
            began_s = time.monotonic()
            verdict = _verdict(tree, mutant)
            print(f"{verdict:8} {time.monotonic() - began_s:6.1f} s  {mutant.name}", flush=True)
            if verdict != "seen":
                unseen.append(mutant.name)
    print(f"{len(wanted) - len(unseen)} of {len(wanted)} seen")
    return 1 if unseen or not wanted else 0


def _verdict(tree: Path, mutant: Mutant) -> str:
    file = tree / "ray_sink" / mutant.file
    whole = file.read_text() if file.is_file() else ""
    if not mutant.old or whole.count(mutant.old) != 1:
        return "no place"
    file.write_text(whole.replace(mutant.old, mutant.new))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests],
            cwd=tree,
            env={**os.environ, "FAULTS": "all", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    finally:
        file.write_text(whole)
    if done.returncode == _TESTS_FAILED:
        return "seen"
    if done.returncode == 0:
        return "UNSEEN"
    print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return "broken"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
