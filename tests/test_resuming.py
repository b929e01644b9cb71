from __future__ import annotations

from pathlib import Path

import pytest

from ray_sink.errors import ConfigError
from ray_sink.resuming import ResumeFile
from ray_sink.verification import PieceVerdict, Place, Problem, Trouble

DEST = "s3://bucket/runs"


def verdict(first: int, *troubles: Trouble) -> PieceVerdict:
    problems = tuple(Problem(f"ä/{trouble}", f"ä/{trouble}.npy", trouble, "it is") for trouble in troubles)
    return PieceVerdict(Place("_ray_sink/run/manifest-1-a.parquet", first, 10), 20, 30, problems)


def filled(path: Path, *verdicts: PieceVerdict) -> ResumeFile:
    made = ResumeFile(path, DEST)
    for each in verdicts:
        made.note(each)
    made.close()
    return made


def known(path: Path, *verdicts: PieceVerdict) -> list[bool]:
    file = ResumeFile(path, DEST)
    found = [file.find(each.place) == each for each in verdicts]
    file.close()
    return found


def test_verdicts_come_back_as_they_were(tmp_path: Path) -> None:
    bad, good = verdict(0, Trouble.MISSING, Trouble.DIFFERS), verdict(10)
    filled(tmp_path / "noted", bad, good)
    assert known(tmp_path / "noted", bad, good, verdict(20)) == [True, True, False]
    file = ResumeFile(tmp_path / "noted", DEST)
    assert file.outputs == 20
    file.close()


def test_what_was_half_written_is_cut_off_and_the_rest_goes_on(tmp_path: Path) -> None:
    path, bad, good = tmp_path / "noted", verdict(0, Trouble.MISSING), verdict(10)
    filled(path, bad, good)
    whole = path.read_bytes()
    for length in range(len(whole.splitlines(keepends=True)[0]) + 1, len(whole)):
        path.write_bytes(whole[:length])
        first, second = known(path, bad, good)
        assert not second
        filled(path, good)
        assert known(path, bad, good) == [first, True]


def test_what_could_not_be_read_is_not_remembered_and_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    made = filled(path, verdict(0), verdict(10, Trouble.UNREADABLE, Trouble.MISSING))
    made.finish()
    assert known(path, verdict(0), verdict(10, Trouble.UNREADABLE, Trouble.MISSING)) == [True, False]
    filled(path, verdict(10)).finish()
    assert not path.exists()


@pytest.mark.parametrize("content", ["once upon a time", '{"kind": "else"}\n', "[1]\n", "\n", "\x00" * 100])
def test_anything_else_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "thesis"
    path.write_text(content)
    with pytest.raises(ConfigError, match="thesis"):
        ResumeFile(path, DEST)
    assert path.read_text() == content


def test_another_destinations_file_is_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path / "noted", verdict(0))
    with pytest.raises(ConfigError, match="s3://bucket/runs"):
        ResumeFile(tmp_path / "noted", "s3://bucket/other")


def test_two_at_a_time_are_one_too_many(tmp_path: Path) -> None:
    first = ResumeFile(tmp_path / "noted", DEST)
    with pytest.raises(ConfigError, match="another verify"):
        ResumeFile(tmp_path / "noted", DEST)
    first.close()
    filled(tmp_path / "noted")


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "noted").touch()
    filled(tmp_path / "noted", verdict(0))
    assert known(tmp_path / "noted", verdict(0)) == [True]
