"""A disk that fills up, and one that can't be written: what was computed is still there."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import calibrated_model, save_images

from liftmap.engines.tables import read_rows


def on_small_disk(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script whose $DISK is a file system of its own of 64 kB; skip without the right.

    Mounts need a namespace where this user may make them.
    """
    disk = folder / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k small {disk}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*inside, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    whole = f"set -e; {mount}; DISK={disk}; L='{sys.executable} -m liftmap'; {script}"
    return subprocess.run([*inside, whole], capture_output=True, text=True, check=False)


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_space(tmp_path: Path) -> None:
    images, model = save_images(tmp_path / "images", 400), calibrated_model(tmp_path / "model")
    score = f"$L score {images} --model {model} --output $DISK/s.parquet"
    done = on_small_disk(
        f"""
        if {score}; then exit 90; fi
        cp $DISK/s.parquet.part {tmp_path}/before.part
        mount -o remount,size=16m small $DISK
        {score} && cp $DISK/s.parquet {tmp_path}/s.parquet
        ls -A $DISK > {tmp_path}/left
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left" in done.stderr and "free space" in done.stderr
    computed = (tmp_path / "before.part").read_text().count("\n")
    assert computed > 10, "the journal holds what was computed before the disk was full"
    ids = [row["id"] for row in read_rows(tmp_path / "s.parquet")]
    assert ids == sorted(p.name for p in images.iterdir())
    assert (tmp_path / "left").read_text().split() == ["s.parquet"]


def test_an_output_that_can_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    images, model = save_images(tmp_path / "images", 4), calibrated_model(tmp_path / "model")
    done = on_small_disk(
        f"""
        mount -o remount,ro small $DISK
        $L score {images} --model {model} --output $DISK/s.parquet
        """,
        tmp_path,
    )
    assert done.returncode not in (0, 90)
    assert "can't be written" in done.stderr and "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
