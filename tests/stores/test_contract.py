"""What every store keeps to, whatever is behind it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ray_sink.checksum import checksum_of
from ray_sink.errors import ObjectExistsError, ObjectMissingError, StagedFileChangedError
from ray_sink.records import Verification
from tests.stores.conftest import Place, no_multipart, staged

METADATA = {"sinkkey": "Fälle/case 1%20+数", "sinkrun": "run-1"}
ODD_NAMES = [
    "a b/c d.pt",
    "plus+and&amp=x;y.pt",
    "percent%20and%.pt",
    "ünï/数据.pt",
    "hash#1.pt",
    "question?x=1.pt",
    "quote'\"s.pt",
    "br[0]{1}~^|`@$!,.pt",
    "star*.pt",
    "..dots..pt",
    "colon:1.pt",
]


def put(place: Place, folder: Path, path: str, data: bytes, *, replace: bool = False) -> Verification:
    local, file = staged(folder, path, data)
    return place.store.put_file(local, file, metadata=METADATA, replace=replace, on_multipart=no_multipart)


def test_the_probe_tells_what_the_store_keeps_its_word_on_and_leaves_nothing(place: Place) -> None:
    found = place.store.probe()
    assert place.names() == []
    strong = place.name in ("s3-obstore", "s3-fsspec")
    assert found.create_only == (strong or place.name == "folder")
    assert found.verification == (Verification.VERIFIED if found.create_only else Verification.SIZE_CHECKED)
    assert found.metadata == place.is_s3
    assert found.multipart == place.is_s3
    assert place.store.probe() == found


def test_what_is_put_is_there_with_its_size_and_metadata(place: Place, tmp_path: Path) -> None:
    verification = put(place, tmp_path, "deep/down/a.pt", b"contents")
    assert verification is place.store.probe().verification
    assert place.read("deep/down/a.pt") == b"contents"
    assert place.names() == ["deep/down/a.pt"]
    info = place.store.head("deep/down/a.pt")
    assert info is not None
    assert (info.path, info.bytes) == ("deep/down/a.pt", 8)
    assert info.checksum in (None, checksum_of([b"contents"]))
    if place.is_s3:
        assert METADATA.items() <= dict(info.metadata).items()
    else:
        assert info.metadata == {}
    assert place.store.get_bytes("deep/down/a.pt") == b"contents"
    assert place.store.read_checksum("deep/down/a.pt") == checksum_of([b"contents"])


def test_an_empty_file_is_an_object_like_any_other(place: Place, tmp_path: Path) -> None:
    put(place, tmp_path, "empty.pt", b"")
    assert place.read("empty.pt") == b""
    info = place.store.head("empty.pt")
    assert info is not None
    assert info.bytes == 0
    assert place.store.get_bytes("empty.pt") == b""
    assert place.store.read_checksum("empty.pt") == checksum_of([])


def test_odd_names_are_names(place: Place, tmp_path: Path) -> None:
    for name in ODD_NAMES:
        put(place, tmp_path, name, name.encode())
    assert place.names() == sorted(ODD_NAMES)
    assert sorted(found.path for found in place.store.list()) == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        assert place.read(name) == name.encode()
        assert place.store.get_bytes(name) == name.encode()
        info = place.store.head(name)
        assert info is not None
        assert info.path == name
        place.store.delete(name)
        assert place.store.head(name) is None
    assert place.names() == []


def test_a_create_only_put_refuses_an_existing_name_and_changes_nothing(place: Place, tmp_path: Path) -> None:
    put(place, tmp_path, "a.pt", b"first")
    with pytest.raises(ObjectExistsError):
        put(place, tmp_path, "a.pt", b"second")
    assert place.read("a.pt") == b"first"
    assert place.names() == ["a.pt"]


def test_a_replacing_put_replaces(place: Place, tmp_path: Path) -> None:
    put(place, tmp_path, "a.pt", b"first")
    put(place, tmp_path, "a.pt", b"the second", replace=True)
    assert place.read("a.pt") == b"the second"
    assert place.names() == ["a.pt"]


def test_small_objects_are_create_only_too(place: Place) -> None:
    place.store.put_bytes("_ray_sink/run/_SUCCESS", b"one", replace=False)
    with pytest.raises(ObjectExistsError):
        place.store.put_bytes("_ray_sink/run/_SUCCESS", b"two", replace=False)
    assert place.store.get_bytes("_ray_sink/run/_SUCCESS") == b"one"
    place.store.put_bytes("_ray_sink/run/_SUCCESS", b"three", replace=True)
    assert place.names() == ["_ray_sink/run/_SUCCESS"]
    assert place.read("_ray_sink/run/_SUCCESS") == b"three"


def test_of_many_create_only_puts_at_once_one_wins(place: Place) -> None:
    settles = place.store.probe().create_only
    won: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            place.store.put_bytes("_ray_sink/race", b"%d" % number, replace=False)
        except ObjectExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 or not settles, "a store that says itself that it cannot may let several win"
    assert place.read("_ray_sink/race") in [b"%d" % number for number in won]


def test_a_file_that_changed_after_its_receipt_is_not_uploaded(place: Place, tmp_path: Path) -> None:
    local, file = staged(tmp_path, "a.pt", b"first")
    for changed in (b"other", b"longer than before", b"", b"firsT"):
        local.write_bytes(changed)
        with pytest.raises(StagedFileChangedError, match="receipt says"):
            place.store.put_file(local, file, metadata={}, replace=True, on_multipart=no_multipart)
    assert place.names() == []


def test_a_staged_file_that_is_missing_is_told_apart_from_everything_else(place: Place, tmp_path: Path) -> None:
    local, file = staged(tmp_path, "a.pt", b"first")
    local.unlink()
    with pytest.raises(FileNotFoundError):
        place.store.put_file(local, file, metadata={}, replace=False, on_multipart=no_multipart)
    assert place.names() == []


def test_nothing_there_is_no_error_to_look_at_and_one_to_read(place: Place) -> None:
    assert place.store.head("no/such.pt") is None
    assert list(place.store.list("no/")) == []
    place.store.delete("no/such.pt")
    with pytest.raises(ObjectMissingError):
        place.store.get_bytes("no/such.pt")
    with pytest.raises(ObjectMissingError):
        place.store.read_checksum("no/such.pt")


def test_a_listing_goes_by_the_beginning_of_the_path_not_by_folders(place: Place) -> None:
    for path in ("a/b1.pt", "a/b2/c.pt", "a/x.pt", "ab.pt", "b.pt"):
        place.store.put_bytes(path, b"1", replace=False)
    assert sorted(found.path for found in place.store.list("a/b")) == ["a/b1.pt", "a/b2/c.pt"]
    assert sorted(found.path for found in place.store.list("a")) == ["a/b1.pt", "a/b2/c.pt", "a/x.pt", "ab.pt"]
    assert len(list(place.store.list())) == 5
    assert all(found.bytes == 1 for found in place.store.list())


def test_a_listing_has_no_end_at_a_thousand(place: Place) -> None:
    paths = {f"n/{number:04}" for number in range(1100)}
    queue = list(paths)

    def work() -> None:
        while queue:
            try:
                path = queue.pop()
            except IndexError:
                return
            place.store.put_bytes(path, b"", replace=True)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {found.path for found in place.store.list("n/")} == paths


def test_no_reader_sees_part_of_a_replacement(place: Place, tmp_path: Path) -> None:
    versions = [bytes([letter]) * 3_000_000 for letter in b"abc"]
    put(place, tmp_path, "a.pt", versions[0])
    done = threading.Event()
    torn: list[int] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        while not done.is_set() or reads == 0:
            try:
                data = place.store.get_bytes("a.pt")
            except ObjectMissingError:
                data = b""
            reads += 1
            if data not in versions:
                torn.append(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    for version in versions * 3:
        put(place, tmp_path, "a.pt", version, replace=True)
    done.set()
    reader.join()
    assert torn == [] or place.name in ("weak", "fsspec-local"), "which promise nothing while they replace"
    assert place.read("a.pt") == versions[-1]


@pytest.mark.parametrize("only_probes", [False, True])
def test_a_sweep_removes_what_probes_left_that_were_killed_and_nothing_else(place: Place, only_probes: bool) -> None:
    place.store.probe()
    kept = ["probe-0123456789abcdef", "_ray_sink/run-1/probe-0123456789abcdef", "_ray_sink/probes"]
    for name in [*kept, "_ray_sink/probe-0123456789abcdef", "_ray_sink/probe-fedcba9876543210"]:
        place.store.put_bytes(name, b"contents", replace=True)
    if only_probes:
        place.store.sweep_probes()
    else:
        place.store.sweep()
    assert sorted(place.names()) == sorted(kept)
