"""What a training was begun with, kept in its folder, so that it goes on as the same or not at all.

Whatever decides which images are held out must stay: the settings, and the images themselves.
"""

import json
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from liftmap.errors import ModelError, OutputError
from liftmap.files import Run, atomic_path, read_object
from liftmap.images.picture import ValueRange
from liftmap.images.store import PreparedImages, ids_path
from liftmap.model import Training

IMAGES = "images.u8"
STATE = "training.safetensors"
RECIPE = "training.json"


def run_of(training: Training, limit: int | None) -> Run:
    """What must be as it was to resume: above all, whatever decides which images are held out."""
    asked = asdict(training)
    kept = ("source", "preset", "initial", "preparation", "hold_out")
    about = {name: asked[name] for name in kept}
    by = about["hold_out"].pop("group_by")
    return Run(about | {"limit": limit, "group_by": by, "seed": training.settings.seed})


def as_begun(training: Training, folder: Path, resume: bool) -> Training:
    """The training to resume; one from before copies were kept together goes on without."""
    before = (read_object(folder / RECIPE) or {}).get("hold_out") if resume else None
    if not isinstance(before, dict) or "copies_together" in before:
        return training
    return replace(training, hold_out=replace(training.hold_out, copies_together=False))


def claim(folder: Path, run: Run, resume: bool) -> None:
    """Refuse to train over another run, or to resume one that was set up otherwise."""
    path = folder / RECIPE
    if not resume:
        if (folder / STATE).exists():
            raise ModelError(f"{folder} holds a training: add --resume, or choose a new folder")
        for left in (folder / IMAGES, ids_path(folder / IMAGES), path):
            left.unlink(missing_ok=True)
        run.begin(path)
        return
    before = read_object(path)
    if before is None:
        raise ModelError(f"{path} is missing or can't be read: nothing to resume")
    run.check(_in_present_terms(before, run), path)


def _in_present_terms(before: dict[str, Any], run: Run) -> dict[str, Any]:
    """What was kept of a run, with what earlier versions of liftmap didn't keep."""
    if "settings" in before:  # as liftmap 0.1 kept it
        before |= {"initial": before.get("initial"), "seed": before["settings"]["seed"]}
    if isinstance(before.get("hold_out"), dict):
        before["hold_out"] = {"copies_together": False} | before["hold_out"]
    if isinstance(before.get("preparation"), dict):
        before["preparation"] = {"value_range": None} | before["preparation"]
    return {"limit": run.about["limit"], "group_by": None} | before


def check_same(
    images: PreparedImages, recipe: Path, value_range: ValueRange | None, *, by_ids: bool
) -> None:
    """Keep what the images are beside what was asked for, or refuse others than are kept there.

    Images that are refused are removed, so that the right ones are prepared when they are back.

    Args:
        by_ids: the ids, too, decide which images are held out.
    """
    about = read_object(recipe) or {}
    now: dict[str, Any] = {"images": len(images), "pixels": images.hash()}
    if value_range is not None:
        now["value_range"] = list(value_range)
    if by_ids:
        now["ids"] = sha256("\n".join(images.ids()).encode("utf-8", "replace")).hexdigest()[:32]
    before = about.get("prepared")
    if before is not None and "value_range" in before:  # found when they were prepared
        now["value_range"] = before["value_range"]
    if before is None:  # now, or by a liftmap that kept nothing
        with atomic_path(recipe) as temporary:
            temporary.write_text(json.dumps(about | {"prepared": now}, indent=1) + "\n")
    elif before != now:
        for left in (images.path, ids_path(images.path)):
            left.unlink(missing_ok=True)
        raise OutputError(
            f"the images have changed since this training began (then {_images_told(before)}, now "
            f"{_images_told(now)}), which would move images between training and hold-out: give "
            "them as they were and --resume, or train into a new folder"
        )


def _images_told(about: Any) -> str:
    if not isinstance(about, dict):
        return "damaged"
    names = (f"{name} {str(about[name])[:8]}" for name in ("pixels", "ids") if name in about)
    return f"{about.get('images')} images, {', '.join(names)}"


def found_range(folder: Path) -> ValueRange | None:
    """The range that the images of more than eight bits turned out to have; None if none did."""
    about = (read_object(folder / RECIPE) or {}).get("prepared")
    found = about.get("value_range") if isinstance(about, dict) else None
    return None if found is None else (float(found[0]), float(found[1]))
