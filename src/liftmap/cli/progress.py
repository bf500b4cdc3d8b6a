"""The command's progress bars; plain lines now and then where the output is no terminal."""

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from liftmap.diffusion.schedule import Progress as Trained
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.engines.local import Summary
from liftmap.fitting import FitListener

if TYPE_CHECKING:
    from liftmap.evaluation.benchmark import BenchmarkListener


class _Log:
    """Plain lines now and then, where the output is a file and a bar would not show."""

    EVERY = 30.0  # seconds

    def __init__(self, bar: Progress) -> None:
        self._bar, self._next = bar, monotonic() + self.EVERY

    def tell(self, task: TaskID, about: str) -> None:
        """Print how far the task has come, unless there is a terminal or it is too soon."""
        if self._bar.console.is_terminal or monotonic() < self._next:
            return
        self._next = monotonic() + self.EVERY
        at = next(t for t in self._bar.tasks if t.id == task)
        left = "" if at.time_remaining is None else f", {at.time_remaining / 60:.0f} minutes left"
        line = f"{at.description} {at.percentage:.0f}%  {about}{left}"
        self._bar.console.print(line, soft_wrap=True)


class _Bar:
    """A bar that stops when its `with` block ends."""

    _bar: Progress

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


class ScoreProgress(_Bar):
    """A progress bar over images, with images/s and time left."""

    def __init__(self, console: Console, total: int | None, name: str = "scoring") -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(escape(name), total=total, rate="")
        self._told = False
        self._log = _Log(self._bar)

    def __enter__(self) -> Callable[[Summary], None]:
        self._bar.start()
        return self._update

    def _update(self, summary: Summary) -> None:
        if summary.changed_from is not None and not self._told:
            self._told = True
            changed = f"the images changed from number {summary.changed_from} on: scored anew"
            self._bar.console.print(changed, highlight=False)
        rate = f"{summary.images_per_second:.1f} images/s" if summary.computed else ""
        self._bar.update(self._task, completed=summary.images, rate=rate)
        self._log.tell(self._task, f"{summary.images} images  {rate}")


class BenchmarkProgress(_Bar):
    """A progress bar a cell of a benchmark: what is being scored, images/s, time left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._log = _Log(self._bar)
        self._task: TaskID | None = None

    def __enter__(self) -> "BenchmarkListener":
        from liftmap.evaluation.benchmark import BenchmarkListener  # imports scikit-learn: slow

        self._bar.start()
        return BenchmarkListener(self._cell, self._image)

    def _cell(self, method: str, source: str, images: int | None) -> None:
        short = "/".join(source.rstrip("/").split("/")[-2:])
        self._task = self._bar.add_task(escape(f"{method}: {short}"), total=images)

    def _image(self, done: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, done)
            self._log.tell(self._task, "")


class CountProgress(_Bar):
    """A progress bar that is told how much is done, and of how much."""

    def __init__(self, console: Console, name: str) -> None:
        self._bar = Progress(
            TextColumn(name), BarColumn(), MofNCompleteColumn(), console=console, transient=True
        )
        self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)


class RoundProgress(_Bar):
    """A progress bar over rounds of timing."""

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            TextColumn("timing"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
        )
        self._task = self._bar.add_task("timing", total=total)

    def __enter__(self) -> Callable[[], None]:
        self._bar.start()
        return lambda: self._bar.advance(self._task)


class FitProgress(_Bar, FitListener):
    """Progress of preparing and training: images/s, loss, time left."""

    def __init__(self, console: Console, settings: TrainingSettings, images: int | None) -> None:
        super().__init__(self._image, self._skip, self._step, self._note, self._calibrated)
        self._settings = settings
        self._skipped = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[about]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._log = _Log(self._bar)
        self._images = images
        self._preparing: TaskID | None = None
        self._training: TaskID | None = None
        self._calibrating: TaskID | None = None

    def __enter__(self) -> "FitProgress":
        self._bar.start()
        return self

    def _note(self, text: str) -> None:
        self._bar.console.print(escape(text))

    def _image(self) -> None:
        if self._preparing is None:
            self._preparing = self._bar.add_task("preparing", total=self._images, about="")
        self._bar.advance(self._preparing)
        self._log.tell(self._preparing, "")

    def _skip(self, id: str, reason: str) -> None:
        self._skipped += 1
        if self._skipped <= 10:
            self._bar.console.print(f"[yellow]skipped[/] {escape(id)}: {escape(reason)}")

    def _step(self, progress: Trained) -> None:
        if self._training is None:
            self._training = self._bar.add_task("training", total=1.0, about="")
        recent = progress.losses[-50:]
        rate = progress.step * self._settings.batch / progress.seconds
        about = f"step {progress.step}  loss {sum(recent) / len(recent):.4f}  {rate:.0f} images/s"
        self._bar.update(self._training, completed=progress.share(self._settings), about=about)
        self._log.tell(self._training, about)

    def _calibrated(self, done: int, total: int) -> None:
        if self._calibrating is None:
            self._calibrating = self._bar.add_task("calibrating", total=total, about="")
        about = f"{done} of {total} images"
        self._bar.update(self._calibrating, completed=done, about=about)
        self._log.tell(self._calibrating, about)
