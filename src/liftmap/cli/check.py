"""Look at images, before a run or without one: what they are, and what would go wrong."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from liftmap.cli.base import (
    ColumnOption,
    DownloadOption,
    HiddenOption,
    LimitOption,
    PixelsOption,
    RangeOption,
    RootOption,
    SourceArgument,
    complaints,
    console,
    load_detector,
    method_of,
    open_images,
    range_of,
    size_of,
)

if TYPE_CHECKING:
    from liftmap.detector import Detector
    from liftmap.images.entry import Source
    from liftmap.images.prepare import Preparation

LOOK_AT, LOOK_FOR = 64, 2.0  # images and seconds, of a look before the work
NOT_LOOKED_AT = 5  # exit code: too many images, or a folder, could not be looked at


def check(
    source: SourceArgument,
    model: Annotated[
        str | None, typer.Option(help="Say what this model makes of them, and how long it takes.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="Without a model: pixels, 32 or HEIGHTxWIDTH, as for train.")
    ] = "32",
    channels: Annotated[int, typer.Option(help="Without a model: 3 for colour, 1 for grey.")] = 3,
    fit: Annotated[str, typer.Option(help="Without a model: stretch, crop or pad.")] = "stretch",
    method: Annotated[str, typer.Option(help="To time, with a model.")] = "fast",
    value_range: RangeOption = None,
    most_skipped: Annotated[
        float, typer.Option(help="Exit with 5 if more than this share can't be used.", min=0, max=1)
    ] = 0.1,
    limit: LimitOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    column: ColumnOption = None,
    hidden: HiddenOption = False,
    most_pixels: PixelsOption = None,
) -> None:
    """Look at every image of a source: kinds, sizes, and which are broken, blank, copies or odd.

    Nothing is scored or written. Exit codes: 0 fine, 1 an error, 5 more than --most-skipped can't
    be used, or a folder not be listed.
    """
    from liftmap.cli.progress import CountProgress
    from liftmap.images.prepare import Preparation
    from liftmap.images.survey import stacked, survey

    opened = open_images(
        source, root, download, limit, column=column, hidden=hidden, most_pixels=most_pixels
    )
    preparation, detector = Preparation(*size_of(size), channels, fit, range_of(value_range)), None
    if model is not None:
        chosen = method_of(method, None, None, None)
        detector = load_detector(model, chosen, None, None, None, value_range)
        preparation = detector.preparation
    with CountProgress(complaints, "looking") as on_image:
        total = opened.count() or 0
        found = survey(
            opened,
            preparation,
            training=model is None,
            on_image=lambda done: on_image(done, total),
        )
    for line in found.lines():
        console.print(escape(line), highlight=False, soft_wrap=True)
    named = {
        "odd size": found.odd_sizes,
        "broken": found.broken,
        "blank": found.blank,
        "copy": found.copies,
        "near copy": found.near,
    }
    for name, faults in named.items():
        for id, told in faults.first.items():
            text = f"{name} {id}: {told}" if told else f"{name} {id}"
            console.print(escape(text), highlight=False, soft_wrap=True)
    if detector is not None and found.pixels:
        from liftmap.evaluation.speed import seconds_an_image

        seconds = found.readable * seconds_an_image(detector, stacked(found))
        console.print(f"about {duration(seconds)} to score them", highlight=False)
    check_looked_at(opened, found.readable, found.broken.count, most_skipped)


def look_first(
    source: "Source",
    preparation: "Preparation",
    *,
    detector: "Detector | None" = None,
    to: Console | None = None,
    training: bool = False,
) -> None:
    """Say what the source's images are, and how long they will take, before the work."""
    from liftmap.images.survey import stacked, survey

    found = survey(source, preparation, most=LOOK_AT, seconds=LOOK_FOR, training=training)
    shown = to or console
    for line in found.lines():
        shown.print(escape(line), highlight=False, soft_wrap=True)
    if detector is not None and found.total and found.pixels:
        from liftmap.evaluation.speed import seconds_an_image

        seconds = found.total * seconds_an_image(detector, stacked(found))
        shown.print(f"about {duration(seconds)} for all", highlight=False)


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(0.3), duration(90.0), duration(8000.0)
    ('1 second', '2 minutes', '2.2 hours')
    """
    if seconds < 60:
        whole = max(1, round(seconds))
        return f"{whole} second{'s' * (whole > 1)}"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} minute{'s' * (minutes > 1)}"
    return f"{seconds / 3600:.1f} hours"


def check_looked_at(
    source: "Source",
    looked: int | None = None,
    skipped: int = 0,
    most_skipped: float = 1.0,
    *,
    to: Console | None = None,
) -> None:
    """Say what a walk through a source passed over; exit if that was too much.

    Args:
        looked: images that could be used, if they were counted.

    Raises:
        typer.Exit: with NOT_LOOKED_AT, when too many images could not be used, or a folder not be
            listed; it says why.
    """
    for line in source.tally.lines():
        (to or console).print(f"[yellow]note[/] {escape(line)}", highlight=False, soft_wrap=True)
    why = []
    if looked == 0:
        why.append(f"none of {skipped} images could be used: nothing was checked")
    elif looked and skipped > most_skipped * (looked + skipped):
        why.append(
            f"{skipped / (looked + skipped):.1%} of the images could not be used; --most-skipped "
            f"{most_skipped:g} allows {most_skipped:.0%}"
        )
    if folders := len(source.tally.unlisted):
        why.append(f"{folders} folder{'s' * (folders > 1)} could not be listed")
    if why:
        complaints.print(
            f"[bold red]incomplete:[/] {escape('; '.join(why))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(NOT_LOOKED_AT)
