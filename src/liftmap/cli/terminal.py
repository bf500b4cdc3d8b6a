"""The tables and summaries that the command prints."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from liftmap.engines.local import Summary
from liftmap.errors import CalibrationError
from liftmap.model import Model
from liftmap.stages.calibrate import Calibration
from liftmap.stages.method import METHODS

if TYPE_CHECKING:
    from liftmap.evaluation.speed import Speed


def sparkline(counts: list[int]) -> str:
    """Counts as a row of bars, the highest full.

    >>> sparkline([0, 1, 4])
    '▁▂█'
    """
    bars, top = "▁▂▃▄▅▆▇█", max([*counts, 1])
    return "".join(bars[(len(bars) - 1) * count // top] for count in counts)


def summary_lines(summary: Summary, output: Path, false_alarms: float | None) -> Iterator[str]:
    """What `score` ends with."""
    scored = summary.scored
    yield f"{scored} images scored, {summary.skipped} skipped: {escape(str(output))}"
    if summary.computed:
        earlier = summary.images - summary.computed
        before = f" ({earlier} were there from an earlier run)" if earlier else ""
        rate = f"{summary.images_per_second:.1f} images/s"
        yield f"{rate}, {summary.attempts_an_image:.1f} attempts an image{before}"
    if false_alarms is not None and scored:
        yield (
            f"[bold]{summary.flagged} flagged as out-of-distribution[/] "
            f"({summary.flagged / scored:.1%}); "
            f"of normal images {false_alarms:.1%} are expected to be"
        )
        yield f"p-values from 0 to 1: {sparkline(summary.p_values)}  (level when all are in-domain)"
    if summary.oddest and false_alarms is not None:
        yield "the oddest:"
        for score, id, p_value in summary.oddest:
            yield f"  {escape(id)}  score {score:.3f}, p {p_value:.4f}"
    for note, count in sorted(summary.notes.items(), key=lambda item: item[1]):  # the rare first
        first = f"{summary.noted[note]}" if count == 1 else f"{count}, as {summary.noted[note]}"
        yield f"[yellow]note[/] of {escape(first)}: {escape(note)}"
    for id, reason in summary.reasons.items():
        yield f"[yellow]skipped[/] {escape(id)}: {escape(reason)}"
    if summary.skipped > len(summary.reasons):
        yield f"... and {summary.skipped - len(summary.reasons)} more, see the column `reason`"


def about_table(model: Model) -> Table:
    """What `info` shows."""
    table = Table(show_header=False, box=None, pad_edge=False)
    checkpoint = model.checkpoint
    channels, height, width = checkpoint.image_shape
    parameters = sum(p.numel() for p in checkpoint.unet.parameters())
    table.add_row("images", f"{height}x{width}, {channels} channel(s), {model.preparation.fit}")
    process = type(checkpoint.process).__name__
    predicts = f"{process}, predicts {checkpoint.by.target}"
    table.add_row("network", f"{parameters / 1e6:.1f} M parameters, {predicts}")
    if training := model.training:
        table.add_row("trained on", escape(f"{training.images} of {training.source}"))
        if by := training.hold_out.group_by:
            table.add_row("held out", escape(f"groups of images whole, by {by}"))
        table.add_row("for", f"{training.minutes} minutes, {training.steps} steps")
        if initial := training.initial:
            earlier = f", trained for {initial.minutes} minutes, {initial.steps} steps"
            known = "" if initial.steps is None else earlier
            table.add_row("started from", f"{initial.model}{known}")
        if curve := training.loss_curve:
            table.add_row("loss", f"{curve[0]:.3f} to {curve[-1]:.4f}")
    if seen := model.seen:
        held_out = len(seen) - seen.trained
        told = f"{seen.trained} images trained on, {held_out} held out: copies of them are known"
        table.add_row("remembers", told)
    for name, told in _calibrations(model):
        table.add_row(name, told)
    return table


def _calibrations(model: Model) -> Iterator[tuple[str, str]]:
    names = {method.key: name for name, method in METHODS.items()}
    if not model.judges:
        yield "calibrated", "no; run `liftmap calibrate` to get p-values and decisions"
    for key, judge in model.judges.items():
        sampler = judge.method.sampler
        name = names.get(key, f"{sampler.name}, {sampler.steps} steps")
        calibration = judge.decides_by
        precision = f" in {judge.precision}" if judge.precision else ", precision not recorded"
        yield f"calibrated ({name})", f"on {len(calibration.scores)} images{precision}"
        for rate in (0.01, 0.05, 0.1):
            yield "", f"at {rate:.0%}: {_rate(calibration, rate)}"


def _rate(calibration: Calibration, rate: float) -> str:
    """The threshold of a rate, and what this very calibration makes of the rate."""
    try:
        low, high = calibration.false_alarm_interval(rate)
        told = f"of further normal images {low:.1%} to {high:.1%} are (95%)"
        return f"flagged above {calibration.threshold(rate):.4f}; {told}"
    except CalibrationError:
        return f"needs {Calibration.needed(rate)} images"


def evaluation_table(records: list[dict[str, Any]]) -> Table:
    """What `evaluate` shows; in a narrow terminal names are folded, figures never."""
    first = records[0]
    table = Table(
        caption=f"{first['network_evaluations']:g} network evaluations an image, "
        f"{first['images_per_second']:.1f} images/s; AUPR is in evaluation.json"
    )
    for name in ("in", "out"):
        table.add_column(name, overflow="fold")
    for name in ("images", "AUROC", "95% interval", "FPR95"):
        table.add_column(name, no_wrap=True)
    for r in records:
        table.add_row(
            escape(r["in"]),
            escape(r["out"]),
            f"{r['n_in']} + {r['n_out']}",
            f"[bold]{r['auroc']:.4f}[/]",
            f"{r['auroc_low']:.4f} to {r['auroc_high']:.4f}",
            f"{r['fpr95']:.4f}",
        )
    return table


def rows_table(rows: list[list[str]], caption: str) -> Table:
    """What `benchmark` and `reproduce` show: the first row is the heading."""
    table = Table(caption=caption)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(escape(cell) for cell in row))
    return table


def speed_table(speeds: "dict[str, Speed]", alone: tuple[float, float], images: int) -> Table:
    """What `speed` shows: a row a method, compared with the slowest."""
    slowest = max(speed.seconds for speed in speeds.values())
    first = next(iter(speeds))
    caption = (
        f"evaluations of the network an image; {images} images at once; {first}, one image alone: "
        f"{1000 * alone[0]:.0f} ms (median), {1000 * alone[1]:.0f} ms (95% quantile)"
    )
    table = Table(caption=caption)
    for name in ("method", "evaluations", "ms/image", "images/s", "faster"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name in ("of peak", "MB"):
        table.add_column(name, justify="right")
    for name, speed in speeds.items():
        of_steps = (
            "" if speed.share_timed == 1 else f"\n(from {speed.share_timed:.0%} of its steps)"
        )
        table.add_row(
            escape(name) + of_steps,
            str(speed.evaluations),
            f"{1000 * speed.seconds:.1f}",
            f"{1 / speed.seconds:.2f}",
            f"{slowest / speed.seconds:.1f}x",
            f"{speed.peak_share:.0%}",
            "" if speed.megabytes is None else f"{speed.megabytes:.0f}",
        )
    return table
