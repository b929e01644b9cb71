"""The Writer under both publish policies, with a real staging folder and a ledger that is a dict."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pytest
import torch
from torch import Tensor

from ray_sink.budget import ByteBudget
from ray_sink.checksum import checksum_of
from ray_sink.config import DictMode, SaveFormat
from ray_sink.errors import (
    ConfigError,
    InvalidKeyError,
    PathConflict,
    RunFencedError,
    SinkError,
    StagingError,
    UnsupportedValueError,
)
from ray_sink.filesystem import PosixFilesystem
from ray_sink.formats import Format, resolve, values
from ray_sink.formats.base import Value
from ray_sink.formats.loading import load
from ray_sink.patience import Patience, is_silence
from ray_sink.publishing import FileSlot
from ray_sink.records import Decision, FileRecord, Proposal, Receipt, State, TempFile, receipt_of
from ray_sink.staging import Staging
from ray_sink.terms import term_name
from ray_sink.writer import DecidedPublishing, Landed, Output, ReplacePublishing, Writer, check_output
from tests.waiting import until

TERM = term_name(1, 1)


class Named:
    """Somebody's own format: text; `fault` is called before anything is written."""

    name = "named"
    suffix = ".txt"

    def __init__(self, fault: Callable[[Tensor], None] | None = None) -> None:
        self.fault = fault or (lambda tensor: None)

    def check(self, value: Value) -> None:
        values.check_value(value)

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        for _, tensor in values.tensors_of(value):
            self.fault(tensor)
            file.write(f"{tensor.tolist()}\n".encode())
        return ["as text"]

    def decode(self, file: BinaryIO) -> Value:
        return torch.tensor([float(number) for number in file.read().decode().strip("[]\n").split(",")])


@dataclass
class Book:
    """First come, first served, and a way to say something else."""

    staging: Staging
    winners: dict[str, Proposal] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)
    located: list[str] = field(default_factory=list)
    answers: dict[str, Decision] = field(default_factory=dict)
    temps_at_decision: list[list[str]] = field(default_factory=list)
    refuse: SinkError | None = None
    refuse_published: SinkError | None = None

    def decide(self, proposals: Sequence[Proposal]) -> list[Decision]:
        self.temps_at_decision.append(self.staging.temps())
        if self.refuse:
            raise self.refuse
        decisions = []
        for proposal in proposals:
            winner = self.winners.setdefault(proposal.key, proposal)
            decision = Decision(proposal.key, winner=winner, receipt=self.receipts.get(proposal.key))
            decisions.append(self.answers.get(proposal.key, decision))
        return decisions

    def published(self, attempts: Sequence[tuple[str, str]]) -> list[FileRecord]:
        if self.refuse_published:
            raise self.refuse_published
        self.told += attempts
        return []

    def locate(self, keys: Sequence[str]) -> list[Receipt | SinkError]:
        self.located += keys
        return [self.receipts.get(key) or RunFencedError("not known here") for key in keys]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    (tmp_path / "staging").mkdir()
    made = Staging(PosixFilesystem(), tmp_path / "staging", "run")
    made.terms.begin(TERM)
    return made


@pytest.fixture
def book(staging: Staging) -> Book:
    return Book(staging)


def a_writer(
    book: Book,
    *,
    file_format: Format | SaveFormat = SaveFormat.PYTORCH_PT,
    dict_mode: DictMode = DictMode.SINGLE,
    threads: int = 2,
    temp_dir: Path | None = None,
    temp_bytes: int = 2**30,
    wait_s: float = 10,
) -> Writer[TempFile, Receipt]:
    publishing = DecidedPublishing(
        book.staging,
        TERM,
        decide=book.decide,
        published=book.published,
        locate=book.locate,
        patience=Patience(wait_s),
        temp_dir=temp_dir,
        temp_bytes=temp_bytes,
    )
    return Writer(resolve(file_format), dict_mode, publishing, threads=threads)


def good(result: Receipt | SinkError) -> Receipt:
    assert isinstance(result, Receipt), result
    return result


def bad(result: object, kind: type[SinkError] = SinkError) -> SinkError:
    assert isinstance(result, kind), result
    return result


def final_files(root: Path) -> list[str]:
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "_ray_sink" not in path.parts
    )


def test_a_batch_gets_receipts_in_order_and_files_under_their_names(book: Book, tmp_path: Path) -> None:
    outputs = [Output(f"runs/{n}", torch.full((4,), float(n)), f"a{n}", source=f"d/{n}") for n in range(10)]
    with a_writer(book) as writer:
        receipts = [good(result) for result in writer.write_batch(outputs)]
    for n, receipt in enumerate(receipts):
        path = tmp_path / "staging" / f"runs/{n}.pt"
        data = path.read_bytes()
        assert (receipt.key, receipt.attempt, receipt.state) == (f"runs/{n}", f"a{n}", State.STAGED)
        assert [(file.path, file.uri) for file in receipt.files] == [(f"runs/{n}.pt", str(path))]
        assert receipt.files[0].checksum == checksum_of([data])
        assert receipt.bytes == len(data)
        back = load(path)
        assert isinstance(back, Tensor)
        assert back.tolist() == [n] * 4
        assert book.winners[receipt.key].source == f"d/{n}"
    assert book.told == [(f"runs/{n}", f"a{n}") for n in range(10)]
    assert book.staging.temps() == []


def test_when_the_ledger_is_asked_every_file_is_complete_and_none_has_its_name(book: Book, tmp_path: Path) -> None:
    seen: list[list[str]] = []
    decide = book.decide

    def looking(proposals: Sequence[Proposal]) -> list[Decision]:
        seen.append(final_files(tmp_path / "staging"))
        return decide(proposals)

    book.decide = looking  # type: ignore[method-assign]
    writer = a_writer(book, dict_mode=DictMode.SPLIT)
    good(writer.write_batch([Output("k", {"u": torch.zeros(1), "v": torch.zeros(1)}, "a1")])[0])
    assert seen == [[]]
    assert book.temps_at_decision == [[f"tmp/{TERM}/a1.0", f"tmp/{TERM}/a1.1"]]
    assert final_files(tmp_path / "staging") == ["k_u.pt", "k_v.pt"]


class Recording(PosixFilesystem):
    """Writes down what is made durable, and when."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def sync_dir(self, path: Path) -> None:
        self.steps.append(f"sync {path.name}")
        super().sync_dir(path)

    def rename(self, source: Path, target: Path) -> None:
        self.steps.append(f"rename {target.name}")
        super().rename(source, target)


def test_the_order_of_durable_steps_is_the_one_that_loses_nothing(book: Book, staging: Staging) -> None:
    """Names of temps synced once a batch, then the decision, then the final names, synced, then the ledger is told."""
    fs = Recording()
    staging.fs = fs
    decide, published = book.decide, book.published

    def deciding(proposals: Sequence[Proposal]) -> list[Decision]:
        fs.steps.append("decide")
        return decide(proposals)

    def telling(attempts: Sequence[tuple[str, str]]) -> list[FileRecord]:
        fs.steps.append("published")
        return published(attempts)

    book.decide, book.published = deciding, telling  # type: ignore[method-assign]
    with a_writer(book) as writer:
        for result in writer.write_batch([Output("a", torch.zeros(1), "a1"), Output("b", torch.zeros(1), "a2")]):
            good(result)
    assert fs.steps == [f"sync {TERM}", "decide", "rename a.pt", "rename b.pt", "sync staging", "published"]


def test_temps_that_cannot_be_made_durable_are_not_proposed(book: Book, staging: Staging) -> None:
    class Broken(Recording):
        def sync_dir(self, path: Path) -> None:
            raise OSError(5, "Input/output error")

    staging.fs = Broken()
    (result,) = a_writer(book).write_batch([Output("k", torch.zeros(1), "a1")])
    assert "'k'" in str(bad(result, StagingError))
    assert book.temps_at_decision == []
    assert staging.temps() == []


def test_one_bad_output_does_not_sink_its_batch(book: Book, tmp_path: Path) -> None:
    def fault(tensor: Tensor) -> None:
        if tensor.sum() == 3:
            raise ZeroDivisionError("three")

    with a_writer(book, file_format=Named(fault)) as writer:
        outputs = [Output("../x" if n == 5 else str(n), torch.tensor([float(n)]), f"a{n}") for n in range(7)]
        results = writer.write_batch(outputs)
    failure = bad(results[3])
    assert "'3'" in str(failure)
    assert "ZeroDivisionError: three" in str(failure)
    assert isinstance(failure.__cause__, ZeroDivisionError)
    assert bad(results[5], InvalidKeyError)
    assert [good(results[n]).key for n in (0, 1, 2, 4, 6)] == ["0", "1", "2", "4", "6"]
    assert book.staging.temps() == []
    assert len(final_files(tmp_path / "staging")) == 5


@pytest.mark.parametrize("threads", [1, 3])
def test_an_output_of_which_a_file_fails_leaves_none_of_its_files(book: Book, tmp_path: Path, threads: int) -> None:
    def fault(tensor: Tensor) -> None:
        if tensor.sum() == 1:
            raise ValueError("one")

    with a_writer(book, file_format=Named(fault), dict_mode=DictMode.SPLIT, threads=threads) as writer:
        (result,) = writer.write_batch([Output("k", [torch.tensor([float(n)]) for n in range(3)], "a")])
    assert "'k'" in str(bad(result))
    assert book.winners == {}
    assert book.staging.temps() == []
    assert final_files(tmp_path / "staging") == []


def test_ones_own_format_goes_the_whole_way_and_its_notes_reach_the_receipt(book: Book, tmp_path: Path) -> None:
    writer = a_writer(book, file_format=Named(), dict_mode=DictMode.SPLIT)
    receipt = good(writer.write_batch([Output("k", {"u": torch.arange(3.0), "v": torch.zeros(1)}, "a")])[0])
    assert receipt.notes == ("u: as text", "v: as text")
    back = load(tmp_path / "staging" / "k_u.txt", save_format=Named())
    assert isinstance(back, Tensor)
    assert back.tolist() == [0, 1, 2]


def test_bfloat16_in_numpy_formats_is_noted_in_the_receipt(book: Book) -> None:
    writer = a_writer(book, file_format=SaveFormat.NUMPY_NPZ)
    value = {"x": torch.ones(2, dtype=torch.bfloat16)}
    assert good(writer.write_batch([Output("k", value, "a")])[0]).notes == ("x: bfloat16 stored as float32",)


def test_a_later_attempt_gets_the_winners_receipt_and_its_bytes_are_dropped(book: Book, tmp_path: Path) -> None:
    writer = a_writer(book)
    first = good(writer.write_batch([Output("k", torch.zeros(1), "a1")])[0])
    book.receipts["k"] = first
    assert writer.write_batch([Output("k", torch.ones(1), "a2")]) == [first]
    assert book.told == [("k", "a1")]
    assert book.staging.temps() == []
    back = load(tmp_path / "staging" / "k.pt")
    assert isinstance(back, Tensor)
    assert back.tolist() == [0]


def test_two_attempts_of_one_key_in_a_batch_have_one_winner(book: Book) -> None:
    with a_writer(book) as writer:
        one, two = writer.write_batch([Output("k", torch.zeros(1), "a1"), Output("k", torch.ones(1), "a2")])
    assert good(one) == good(two)
    assert good(one).attempt == "a1"
    assert book.told == [("k", "a1")]
    assert book.staging.temps() == []


def test_a_winner_whose_writer_died_is_published_by_the_next_one(book: Book, tmp_path: Path) -> None:
    temp = book.staging.stage(TERM, "dead.0", "k.pt", [b"the winner's bytes"])
    book.winners["k"] = Proposal("k", "dead", (temp,))
    receipt = good(a_writer(book).write_batch([Output("k", torch.zeros(1), "a2")])[0])
    assert receipt.attempt == "dead"
    assert (tmp_path / "staging" / "k.pt").read_bytes() == b"the winner's bytes"
    assert book.told == [("k", "dead")]
    assert book.staging.temps() == []


def test_a_winner_that_was_uploaded_and_freed_meanwhile_is_asked_for(book: Book) -> None:
    temp = book.staging.stage(TERM, "gone.0", "k.pt", [b"x"])
    winner = Proposal("k", "gone", (temp,))
    book.staging.drop([winner])
    book.winners["k"] = winner
    known = receipt_of(winner, State.UPLOADED, "s3://bucket")
    locate = book.locate
    book.locate = lambda keys: (book.receipts.update({"k": known}), locate(keys))[1]  # type: ignore[method-assign]
    results = a_writer(book).write_batch([Output("k", torch.zeros(1), "a2"), Output("j", torch.zeros(1), "a3")])
    assert results[0] == known
    assert good(results[1]).key == "j"
    assert book.located == ["k"]
    # and it is said again: had another of its files got its name anew, that would have to go
    assert book.told == [("j", "a3"), ("k", "gone")]


def test_what_others_uploaded_and_freed_while_it_got_its_name_again_is_freed_again(book: Book, tmp_path: Path) -> None:
    """Another writer named the winner; ours named it anew, and then nobody would take it away any more."""
    temp = book.staging.stage(TERM, "w.0", "k.pt", [b"the winner's bytes"])
    winner = book.winners["k"] = Proposal("k", "w", (temp,))
    book.staging.publish([winner])
    told = book.published
    book.published = lambda attempts: (told(attempts), [temp.file])[1]  # type: ignore[method-assign]
    receipt = good(a_writer(book).write_batch([Output("k", torch.zeros(1), "a2")])[0])
    assert receipt.attempt == "w"
    assert book.told == [("k", "w")]
    assert not (tmp_path / "staging" / "k.pt").exists()


def test_what_is_freed_between_its_first_and_its_last_file_leaves_none_behind(book: Book, tmp_path: Path) -> None:
    """The uploader had it freed when the second of its names was to be given anew."""
    temps = tuple(book.staging.stage(TERM, f"w.{number}", f"k_{number}.pt", [b"x"]) for number in range(2))
    winner = book.winners["k"] = Proposal("k", "w", temps)
    book.staging.publish([winner])
    book.staging.free([temps[1].file])
    uploaded = receipt_of(winner, State.UPLOADED, "s3://bucket")
    book.locate = lambda keys: [uploaded for _ in keys]  # type: ignore[method-assign]
    told = book.published
    book.published = lambda attempts: (told(attempts), [temp.file for temp in temps])[1]  # type: ignore[method-assign]
    assert a_writer(book).write_batch([Output("k", torch.zeros(1), "a2")]) == [uploaded]
    assert book.told == [("k", "w")]
    assert [path.name for path in (tmp_path / "staging").glob("*.pt")] == []


def test_a_refused_key_is_an_outcome_and_its_temps_are_dropped(book: Book) -> None:
    book.answers["a_b"] = Decision("a_b", error=PathConflict("taken", keys=["x", "a_b"], path="a_b.pt"))
    results = a_writer(book).write_batch([Output("a_b", torch.zeros(1), "a1"), Output("c", torch.zeros(1), "a2")])
    failure = bad(results[0], PathConflict)
    assert isinstance(failure, PathConflict)
    assert failure.keys == ("x", "a_b")
    assert "'a_b'" in str(failure)
    assert good(results[1]).key == "c"
    assert book.staging.temps() == []


def test_a_kept_key_gets_the_receipt_of_what_is_kept(book: Book) -> None:
    kept = Receipt("k", "", State.KEPT, ())
    book.answers["k"] = Decision("k", receipt=kept)
    assert a_writer(book).write_batch([Output("k", torch.zeros(1), "a1")]) == [kept]
    assert book.staging.temps() == []
    assert book.told == []


def test_temps_stay_when_nobody_knows_whether_the_ledger_decided(book: Book, tmp_path: Path) -> None:
    """The answer may be lost after the decision: whoever removed the temps then would lose a decided output."""
    book.refuse = RunFencedError("no answer")
    results = a_writer(book).write_batch([Output("k", torch.zeros(1), "a1"), Output("j", torch.zeros(1), "a2")])
    for key, result in zip("kj", results, strict=True):
        assert f"'{key}'" in str(bad(result, RunFencedError))
    assert len(book.staging.temps()) == 2
    assert final_files(tmp_path / "staging") == []


def test_temps_stay_when_asking_breaks_in_a_way_that_nobody_foresaw(book: Book) -> None:
    book.decide = lambda proposals: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        a_writer(book).write_batch([Output("k", torch.zeros(1), "a1")])
    assert len(book.staging.temps()) == 1


def test_a_writer_that_is_fenced_publishes_nothing_and_says_so_for_each_key(book: Book, tmp_path: Path) -> None:
    book.staging.terms.begin(term_name(2, 1))
    for result in a_writer(book).write_batch([Output("k", torch.zeros(1), "a1"), Output("j", torch.zeros(1), "a2")]):
        assert "newer owner" in str(bad(result, StagingError))
    assert final_files(tmp_path / "staging") == []
    assert book.temps_at_decision == []


def test_a_ledger_that_refuses_to_be_told_fails_the_outputs_by_name(book: Book) -> None:
    book.refuse_published = RunFencedError("superseded")
    (result,) = a_writer(book).write_batch([Output("k", torch.zeros(1), "a1")])
    assert "'k'" in str(bad(result, RunFencedError))


def test_a_final_name_that_is_blocked_fails_that_output_alone(book: Book, tmp_path: Path) -> None:
    (tmp_path / "staging" / "blocked").write_text("a file where a folder is needed")
    results = a_writer(book).write_batch(
        [
            Output("a", torch.zeros(1), "a1"),
            Output("blocked/b", torch.zeros(1), "a2"),
            Output("c", torch.zeros(1), "a3"),
        ]
    )
    assert "'blocked/b'" in str(bad(results[1], StagingError))
    assert [good(results[n]).key for n in (0, 2)] == ["a", "c"]
    assert sorted(book.told) == [("a", "a1"), ("c", "a3")]
    # decided, so not dropped: whoever clears the way can still publish it
    assert len(book.staging.temps()) == 1


@pytest.mark.parametrize("attempt", ["", "../x", "a/b", ".hidden", "a b", "x" * 201, "é"])
def test_an_attempt_id_that_is_no_file_name_is_refused(book: Book, attempt: str) -> None:
    (result,) = a_writer(book).write_batch([Output("k", torch.zeros(1), attempt)])
    assert "'k'" in str(bad(result, ConfigError))


def test_one_attempt_id_used_twice_is_refused_and_does_not_harm_the_first(book: Book, tmp_path: Path) -> None:
    book.refuse = RunFencedError("the answer is lost")
    writer = a_writer(book)
    bad(writer.write_batch([Output("k", torch.zeros(1), "a1")])[0])
    (first,) = book.staging.temps()
    bad(writer.write_batch([Output("k", torch.ones(1), "a1")])[0], StagingError)
    assert book.staging.temps() == [first]


@pytest.mark.parametrize("count", [10, 1_000_000], ids=["in memory", "on disk"])
def test_local_temps_have_no_name_and_are_gone_afterwards(book: Book, tmp_path: Path, count: int) -> None:
    temp_dir = tmp_path / "local"
    seen: list[list[str]] = []

    def fault(tensor: Tensor) -> None:
        seen.append(os.listdir(temp_dir))
        if tensor.max() == 1:
            raise OSError(27, "File too large")

    with a_writer(book, file_format=Named(fault), temp_dir=temp_dir) as writer:
        results = writer.write_batch([Output("k", torch.zeros(count), "a"), Output("j", torch.ones(count), "b")])
    good(results[0])
    assert str(temp_dir) in str(bad(results[1], StagingError))
    assert seen == [[], []]
    assert os.listdir(temp_dir) == []


@pytest.mark.parametrize("appends", [True, False])
@pytest.mark.parametrize("beside", [True, False], ids=["one filesystem", "two"])
def test_a_format_that_only_appends_needs_no_local_temp_beside_the_staging_folder(
    book: Book, tmp_path: Path, appends: bool, beside: bool
) -> None:
    seekable: list[bool] = []

    @dataclass
    class Seen(Named):
        appends: bool

        def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
            seekable.append(file.seekable())
            return super().encode(value, file)

        fault = staticmethod(lambda tensor: None)

    with contextlib.ExitStack() as stack:
        temp_dir = tmp_path / "local" if beside else Path(stack.enter_context(TemporaryDirectory(dir="/dev/shm")))
        if not beside and temp_dir.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("needs /dev/shm and the temp folder to be two filesystems")
        with a_writer(book, file_format=Seen(appends), temp_dir=temp_dir) as writer:
            receipt = good(writer.write_batch([Output("k", torch.arange(3.0), "a")])[0])
    assert seekable == [not (appends and beside)]
    assert (book.staging.root / "k.txt").read_text() == "[0.0, 1.0, 2.0]\n"
    assert receipt.files[0].checksum == checksum_of([b"[0.0, 1.0, 2.0]\n"])


def test_what_is_encoded_straight_into_the_staging_folder_leaves_nothing_when_it_breaks(book: Book) -> None:
    def fault(tensor: Tensor) -> None:
        if tensor.max() == 1:
            raise ZeroDivisionError

    file_format = Named(fault)
    file_format.appends = True  # type: ignore[attr-defined]
    with a_writer(book, file_format=file_format) as writer:
        results = writer.write_batch([Output("k", torch.zeros(3), "a"), Output("j", torch.ones(3), "b")])
    good(results[0])
    assert isinstance(bad(results[1]).__cause__, ZeroDivisionError)
    assert book.staging.temps() == []


def test_a_temp_dir_that_cannot_be_made_is_told_at_once(book: Book, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/local"):
        a_writer(book, temp_dir=tmp_path / "file" / "local")


def test_local_temps_stay_within_their_budget_and_a_large_one_goes_alone(book: Book) -> None:
    opened = threading.Event()
    entered: list[int] = []

    def fault(tensor: Tensor) -> None:
        entered.append(tensor.numel())
        assert opened.wait(30)

    writer = a_writer(book, file_format=Named(fault), threads=4, temp_bytes=2**20)
    outputs = [Output(str(n), torch.zeros(n), f"a{n}") for n in (100_000, 100_001, 100_002, 1_000_000)]
    results: list[Receipt | SinkError] = []
    # the large one after the others: a batch's threads ask in any order, and whoever asks behind it waits for it
    batches = [
        threading.Thread(target=lambda part=part: results.extend(writer.write_batch(part)))
        for part in (outputs[:3], outputs[3:])
    ]
    publishing = writer._publishing
    assert isinstance(publishing, DecidedPublishing)
    with writer:
        for batch, waiting in zip(batches, (1, 2), strict=True):
            batch.start()
            # two of 0.4 MB fit into 1 MiB; the third and the one of 4 MB wait. Whoever has entered waits no more
            until(
                lambda waiting=waiting: (  # type: ignore[misc]
                    len(entered) == 2 and len(publishing._temps._budget._waiting) == waiting
                )
            )
        assert publishing._temps._budget.used_bytes < 2**20
        opened.set()
        for batch in batches:
            batch.join(30)
    assert len([good(result) for result in results]) == 4
    assert publishing._temps._budget.used_bytes == 0


def test_a_budget_is_first_come_first_served() -> None:
    budget = ByteBudget(10)
    order: list[str] = []
    begun = {name: threading.Event() for name in ("large", "small")}

    def take(name: str, count: int) -> None:
        begun[name].set()
        with budget.take(count):
            order.append(name)

    with budget.take(6):
        threads = []
        for waiting, (name, count) in enumerate([("large", 50), ("small", 1)], start=1):
            threads.append(threading.Thread(target=take, args=(name, count)))
            threads[-1].start()
            until(lambda waiting=waiting: len(budget._waiting) == waiting)  # type: ignore[misc]
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]
    assert budget.used_bytes == 0


def test_replace_publishing_overwrites_and_leaves_no_temp(tmp_path: Path) -> None:
    writer = Writer(resolve(SaveFormat.NUMPY_NPY), DictMode.SPLIT, ReplacePublishing(tmp_path))
    for fill in (0.0, 1.0):
        (landed,) = writer.write_batch([Output("r/k", {"u": torch.full((2,), fill)}, "a")])
        assert landed == Landed("r/k", (tmp_path / "r/k_u.npy",))
        back = load(tmp_path / "r/k_u.npy")
        assert isinstance(back, Tensor)
        assert back.tolist() == [fill, fill]
    assert os.listdir(tmp_path / "r") == ["k_u.npy"]


def test_replace_publishing_refuses_a_symlink_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    writer = Writer(resolve(SaveFormat.NUMPY_NPY), DictMode.SINGLE, ReplacePublishing(tmp_path / "root"))
    assert "symlink" in str(bad(writer.write_batch([Output("link/k", torch.zeros(1), "a")])[0]))
    assert os.listdir(tmp_path / "outside") == []


def test_replace_publishing_puts_a_file_in_place_of_a_symlink_and_not_through_it(tmp_path: Path) -> None:
    (tmp_path / "outside.npy").write_text("mine")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "k.npy").symlink_to(tmp_path / "outside.npy")
    writer = Writer(resolve(SaveFormat.NUMPY_NPY), DictMode.SINGLE, ReplacePublishing(tmp_path / "root"))
    assert isinstance(writer.write_batch([Output("k", torch.zeros(1), "a")])[0], Landed)
    assert (tmp_path / "outside.npy").read_text() == "mine"
    assert not (tmp_path / "root" / "k.npy").is_symlink()


def test_replace_publishing_makes_a_folder_again_that_was_cleared_away(tmp_path: Path) -> None:
    publishing = ReplacePublishing(tmp_path)
    publishing.discard([publishing.prepare(FileSlot("r/k", "a", 0, 0), lambda file: None)])
    (tmp_path / "r").rmdir()
    publishing.prepare(FileSlot("r/k", "a", 0, 0), lambda file: None)


def test_a_file_gets_the_mode_that_open_would_give(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    writer = Writer(resolve(SaveFormat.NUMPY_NPY), DictMode.SINGLE, ReplacePublishing(tmp_path))
    writer.write_batch([Output("k", torch.zeros(1), "a")])
    assert (tmp_path / "k.npy").stat().st_mode == (tmp_path / "plain").stat().st_mode


PT = resolve(SaveFormat.PYTORCH_PT)


def test_check_output_tells_the_paths() -> None:
    one, many = torch.zeros(1), {"u": torch.zeros(1), "v": torch.zeros(1)}
    assert [p.path for p in check_output("a/b", one, PT, DictMode.SPLIT)] == ["a/b.pt"]
    assert [p.path for p in check_output("a/b", many, PT, DictMode.SINGLE)] == ["a/b.pt"]
    assert [p.path for p in check_output("a/b", many, PT, DictMode.SPLIT)] == ["a/b_u.pt", "a/b_v.pt"]
    assert [p.path for p in check_output("a", (one, one), PT, DictMode.SPLIT)] == ["a_0.pt", "a_1.pt"]


@pytest.mark.parametrize("name", ["/../../x", "/..", "a//b", "\0", "back\\slash", "n" * 250, "/"])
def test_a_tensors_name_cannot_lead_out_of_the_root(name: str) -> None:
    with pytest.raises(InvalidKeyError):
        check_output("k", {name: torch.zeros(1)}, PT, DictMode.SPLIT)


@pytest.mark.parametrize("value", [None, 1, "x", [1], {"x": None}, {1: torch.zeros(1)}])
@pytest.mark.parametrize("dict_mode", DictMode)
def test_check_output_refuses_other_types(value: object, dict_mode: DictMode) -> None:
    with pytest.raises(UnsupportedValueError):
        check_output("k", value, PT, dict_mode)


@pytest.mark.parametrize("key", ["", "/abs", "../x", "a/../b", "_ray_sink/x", 3, None, "a\n"])
def test_check_output_refuses_keys(key: object) -> None:
    with pytest.raises(InvalidKeyError):
        check_output(key, torch.zeros(1), PT, DictMode.SINGLE)


def test_an_empty_value_has_no_file_to_be_in_with_split() -> None:
    with pytest.raises(UnsupportedValueError, match="empty"):
        check_output("k", {}, PT, DictMode.SPLIT)
    assert len(check_output("k", {}, PT, DictMode.SINGLE)) == 1


def test_check_output_asks_the_format_about_every_piece() -> None:
    npy = resolve(SaveFormat.NUMPY_NPY)
    value = {"u": torch.zeros(1), "v": torch.zeros(1, dtype=torch.float8_e5m2)}
    with pytest.raises(UnsupportedValueError, match="float8_e5m2"):
        check_output("k", value, npy, DictMode.SPLIT)
    with pytest.raises(UnsupportedValueError, match="SPLIT"):
        check_output("k", value, npy, DictMode.SINGLE)


def test_results_name_the_winner_that_was_adopted_not_the_loser(book: Book) -> None:
    temp = book.staging.stage(TERM, "w.0", "k.pt", [b"w"])
    book.winners["k"] = replace(Proposal("k", "w", (temp,)), notes=("theirs",))
    assert good(a_writer(book).write_batch([Output("k", torch.zeros(1), "mine")])[0]).notes == ("theirs",)


class Hanging:
    """Text that takes for ever to write one of its values."""

    name, suffix, appends = "hanging", ".txt", True

    def __init__(self) -> None:
        self.over = threading.Event()
        self.threads: dict[int, str] = {}

    def check(self, value: Value) -> None: ...

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        assert isinstance(value, torch.Tensor)
        number = int(value)
        self.threads[number] = str(threading.get_ident())
        if number == 5:
            self.over.wait(60)
        file.write(f"{number}".encode())
        return ()

    def decode(self, file: BinaryIO) -> Value:
        return torch.tensor(int(file.read()))


def test_small_files_are_written_one_after_the_other_by_a_few_threads(book: Book) -> None:
    kind = Hanging()
    kind.over.set()
    with a_writer(book, file_format=kind, threads=4) as writer:
        for result in writer.write_batch([Output(f"k{n}", torch.tensor(n), f"a{n}") for n in range(64)]):
            good(result)
    assert len(set(kind.threads.values())) <= 4
    runs = [kind.threads[number] for number in range(64)]
    assert sum(one != other for one, other in pairwise(runs)) <= 3


def test_a_small_file_that_hangs_holds_up_those_behind_it_on_its_thread_and_no_others(book: Book) -> None:
    kind = Hanging()
    with a_writer(book, file_format=kind, threads=4, wait_s=0.5) as writer:
        try:
            results = writer.write_batch([Output(f"k{n}", torch.tensor(n), f"a{n}") for n in range(16)])
        finally:
            kind.over.set()
    failed = [number for number, result in enumerate(results) if isinstance(result, SinkError)]
    assert failed == [4, 5, 6, 7]
    for number in failed:
        error = results[number]
        assert isinstance(error, StagingError)
        assert is_silence(error) or isinstance(error.__cause__, StagingError)
        assert f"k{number}" in str(error)
        assert "staging 'k5.txt'" in str(error)
    assert sorted(book.winners) == sorted(f"k{number}" for number in range(16) if number not in failed)
