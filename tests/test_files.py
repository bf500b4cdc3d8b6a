import errno
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from platform import node

import pytest

from liftmap.errors import OutputError
from liftmap.files import atomic_path, held


def test_the_new_file_takes_the_olds_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    for text in ("old", "new"):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"No space left.*free space"),
        atomic_path(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(OutputError, match="can't be written"), atomic_path(tmp_path / "f" / "a"):
        pass


def test_what_a_killed_process_left_is_swept_away_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".a.parquet.{node()}.{ended.pid}.tmp"
    others = [
        tmp_path / f".b.{node()}.{os.getppid()}.tmp",  # of a process that goes on
        tmp_path / f".a.parquet.elsewhere.{ended.pid}.tmp",  # of another machine
        tmp_path / f"kept.{node()}.{ended.pid}.tmp",  # not ours
    ]
    for path in (left, *others):
        path.write_text("x")
    with atomic_path(tmp_path / "c") as temporary:
        temporary.write_text("y")
    assert {p.name for p in tmp_path.iterdir()} == {"c", *(p.name for p in others)}


def test_a_folder_is_held_by_one_run_until_that_ends(tmp_path: Path) -> None:
    holding = "import sys\nfrom pathlib import Path\nfrom liftmap.files import held\n"
    holding += "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    words = [sys.executable, "-c", holding, str(tmp_path / "new" / "folder")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with (
            pytest.raises(OutputError, match=r"folder is being written by another run"),
            held(tmp_path / "new" / "folder"),
        ):
            pass
        other.kill()
    with held(tmp_path / "new" / "folder"):
        assert not list((tmp_path / "new" / "folder").iterdir())


def test_a_patient_run_waits_for_its_turn(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with held(tmp_path):
            waiting = pool.submit(lambda: held(tmp_path, patience=30.0).__enter__())
            with (
                pytest.raises(OutputError, match="written by another run"),
                held(tmp_path, patience=0.1),
            ):
                pass
            assert not waiting.done()
        waiting.result(timeout=30)


def test_a_file_system_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path):
        (tmp_path / "a").write_text("x")


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(OutputError, match="f can't be made"), held(tmp_path / "f"):
        pass
