"""What the command prints, where the output can't show every character or nobody reads it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import calibrated_model, save_images

NAME = "grün ▁█ :car: [red].png"
UNREAD = 5  # the exit code of `score` when an image could not be read
ENCODINGS = ("ascii", "latin-1", "cp1252")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, images whose names few encodings know, and one that can't be read."""
    folder = tmp_path_factory.mktemp("ställe ⌂")
    calibrated_model(folder / "model")
    save_images(folder / "images", 6)
    (folder / "images" / "000.png").rename(folder / "images" / NAME)
    (folder / "images" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    save_images(folder / "others", 6)
    return folder


def liftmap(
    *words: object, encoding: str | None = "ascii", **options: object
) -> "subprocess.CompletedProcess[bytes]":
    environment = os.environ | ({} if encoding is None else {"PYTHONIOENCODING": encoding})
    command = [sys.executable, "-m", "liftmap", *map(str, words)]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, env=environment, capture_output=True, timeout=200, **options
    )


def text(done: "subprocess.CompletedProcess[bytes]", encoding: str = "ascii", code: int = 0) -> str:
    """What was printed, on both streams; the command must have done its work."""
    assert done.returncode == code, done.stderr
    printed = (done.stdout + done.stderr).decode(encoding)
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_score_prints_what_the_encoding_can_show(here: Path, tmp_path: Path, encoding: str) -> None:
    output = tmp_path / "s.parquet"
    asked = ("score", here / "images", "--model", here / "model", "--output", output)
    printed = text(liftmap(*asked, encoding=encoding), encoding, UNREAD)
    assert "6 images scored, 1 skipped" in printed
    shown = "gr\\xfcn" if encoding == "ascii" else "grün"
    assert f"{shown} _# :car: [red].png" in printed and r"caf\xe9.png" in printed
    assert any(set(line.split("p-values from 0 to 1: ")[-1][:20]) <= set("_.-:=+*#")
               for line in printed.splitlines() if "p-values" in line)  # fmt: skip
    assert pq.read_table(output).num_rows == 7


def test_json_stays_json(here: Path, tmp_path: Path) -> None:
    output = tmp_path / "größe.csv"
    asked = ("score", here / "images", "--model", here / "model", "--output", output, "--json")
    done = liftmap(*asked)
    assert done.returncode == UNREAD
    found = json.loads(done.stdout.decode("ascii"))
    assert found["output"] == str(output)
    assert NAME in [image["id"] for image in found["oddest"]] or found["scored"] == 6


def test_tables_have_plain_boxes(here: Path, tmp_path: Path) -> None:
    model = ("--model", here / "model")
    asked = ("evaluate", here / "images", here / "others", *model, "--output", tmp_path / "e")
    printed = text(liftmap(*asked, encoding="cp1252"), "cp1252")
    assert "AUROC" in printed and "+---" in printed
    assert "calibrated (fast)" in text(liftmap("info", here / "model"))


def test_watch_tells_of_any_name(here: Path, tmp_path: Path) -> None:
    asked = ("watch", "--model", here / "model", "--output", tmp_path / "größe")
    listed = b"\n".join(os.fsencode(path) for path in sorted((here / "images").iterdir()))
    printed = text(liftmap(*asked, input=listed))
    assert "7 images" in " ".join(printed.split())
    found = pq.read_table(tmp_path / "größe" / "part-000000000.parquet").to_pylist()
    reasons = {Path(row["id"]).name: row["reason"] for row in found}
    assert reasons[NAME] is None and reasons[r"caf\xe9.png"].startswith("not an image")
    assert found[0]["id"].startswith(str(here)), "not as the stream's encoding would have it"


@pytest.mark.parametrize("words", [["--help"], ["score", "--help"], ["benchmark", "--help"]])
def test_help_is_plain(words: list[str]) -> None:
    assert "Usage:" in text(liftmap(*words))


def test_mistakes_are_told_in_plain_characters(here: Path) -> None:
    done = liftmap("score", "nowhere-ä", "--model", here / "model", "--output", "x.csv")
    assert done.returncode == 1 and b"nowhere-\\xe4" in done.stderr
    assert done.stderr.isascii() and b"Traceback" not in done.stderr
    assert liftmap("score", "--grün").stderr.isascii()


def test_the_c_locale_and_names_that_are_no_utf_8_are_no_trouble(here: Path) -> None:
    unaided = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "liftmap", "info", str(here / "model")]
    done = subprocess.run(command, env=os.environ | unaided, capture_output=True, timeout=100)
    assert "calibrated (fast)" in text(done)
    nowhere = os.fsdecode(b"caf\xe9")
    asked = ("score", nowhere, "--model", here / "model", "--output", "x.csv")
    done = liftmap(*asked, encoding="utf-8")
    assert done.returncode == 1 and rb"caf\xe9: no such file" in done.stderr


def closed(command: list[str], *, encoding: str) -> tuple[int, str]:
    """Exit code and complaints of a command whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        command, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=200, text=True
    )
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("python", "options"), [([], []), (["-u"], []), ([], ["--json"]), ([], ["--report"])]
)
def test_a_reader_that_goes_away_costs_no_work(
    here: Path, tmp_path: Path, options: list[str], python: list[str]
) -> None:
    output, report = tmp_path / "s.parquet", tmp_path / "r.html"
    options = [*options, str(report)] if "--report" in options else options
    asked = ["score", str(here / "images"), "--model", str(here / "model"), "--output", str(output)]
    command = [sys.executable, *python, "-m", "liftmap", *asked, *options]
    code, complaints = closed(command, encoding="ascii" if options == ["--json"] else "utf-8")
    assert code == UNREAD
    assert "Traceback" not in complaints and "BrokenPipe" not in complaints
    assert pq.read_table(output).num_rows == 7
    assert report.exists() == ("--report" in options)


def test_an_output_that_was_never_open_costs_no_work(here: Path, tmp_path: Path) -> None:
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "liftmap", "score"]
    asked = [f"{here}/images", "--model", f"{here}/model", "--output", f"{tmp_path}/s.csv"]
    done = subprocess.run([*command, *asked], capture_output=True, timeout=100)
    assert done.returncode == UNREAD and b"Traceback" not in done.stderr
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 8


def test_watch_is_stopped_while_it_waits_for_lines(here: Path, tmp_path: Path) -> None:
    asked = ["watch", "--model", str(here / "model"), "--output", str(tmp_path / "w")]
    watching = subprocess.Popen(
        [sys.executable, "-m", "liftmap", *asked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert watching.stdin is not None and watching.stdout is not None
    watching.stdin.write(f"{here}/images/001.png\n{tmp_path}/not-yet.png\n")
    watching.stdin.flush()
    journal, end = tmp_path / "w" / "journal.jsonl", time.monotonic() + 100
    while not (journal.exists() and len(journal.read_text().splitlines()) > 1):
        assert watching.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(60) == 0
    assert "2 images, " in (told := " ".join(watching.stdout.read().split())), told
    assert "1 skipped" in told and "rror" not in told
    watching.stdin.close()
