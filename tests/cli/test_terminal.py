import io
from pathlib import Path

import pytest
from rich.console import Console
from tiny import small_model

from liftmap.cli.progress import FitProgress, ScoreProgress, _Log
from liftmap.cli.terminal import about_table, summary_lines
from liftmap.diffusion.schedule import Progress, TrainingSettings
from liftmap.engines.local import Summary


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A console that writes to a file, every line at once."""
    monkeypatch.setattr(_Log, "EVERY", 0.0)
    return Console(file=io.StringIO(), width=200)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_scoring_into_a_log_file_prints_lines(log: Console) -> None:
    with ScoreProgress(log, 40, "images [1]") as on_batch:
        on_batch(Summary(images=10, computed=10, seconds=5.0))
        assert "images [1] 25%  10 images  2.0 images/s" in written(log)


def test_training_into_a_log_file_prints_steps_loss_and_rate(log: Console) -> None:
    with FitProgress(log, TrainingSettings(steps=8, batch=32), images=None) as listener:
        listener.on_step(Progress(step=2, seconds=4.0, losses=[0.4, 0.2]))
        assert "training 25%  step 2  loss 0.3000  16 images/s" in written(log)
        listener.on_calibrated(3, 4)
        assert "calibrating 75%  3 of 4 images" in written(log)


def test_the_summary_names_what_was_skipped_and_flagged() -> None:
    summary = Summary(images=20, skipped=12, flagged=2, computed=5, seconds=2.0, attempts=20)
    summary.reasons = {f"{i}.png": "the file is empty" for i in range(10)}
    lines = list(summary_lines(summary, Path("s.csv"), 0.05))
    assert lines[0] == "8 images scored, 12 skipped: s.csv"
    assert lines[1] == "2.5 images/s, 2.5 attempts an image (15 were there from an earlier run)"
    assert "2 flagged" in lines[2]
    assert "(25.0%); of normal images 5.0% are expected" in lines[2]
    assert lines[-1].startswith("... and 2 more")


def test_an_uncalibrated_model_says_so() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(about_table(small_model()))
    assert "run `liftmap calibrate` to get p-values and decisions" in written(console)
