"""Redo a model folder's calibration on a source of in-domain images; a killed run goes on."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from liftmap.detector import MAPPED, Detector
from liftmap.diffusion.checkpoints import check_own
from liftmap.engines.engine import Engine
from liftmap.engines.local import Summary
from liftmap.engines.tables import read_distances, read_norms
from liftmap.images.copies import Copy
from liftmap.images.entry import Source, readable
from liftmap.stages.redraw import Measured


def calibrate_folder(
    detector: Detector,
    source: Source,
    folder: Path,
    *,
    engine: Engine | None = None,
    on_batch: Callable[[Summary], None] = lambda summary: None,
) -> int:
    """Calibrate on images that were not trained on, and write the folder's liftmap.json anew.

    Images that the model remembers to have been trained on are left out: how many, is returned.
    What was measured lies in a table beside the model until the calibration is written.

    Raises:
        CalibrationError: too few images.
        OutputError: the folder is the hub's cache or can't be written, or its table belongs to
            another run.
    """
    check_own(folder)
    engine = engine or Engine()
    table = engine.table(folder, "calibration")
    engine.score(detector, source, table, "distances", on_batch)
    trained = Copy.EXACT_TRAINED.words
    everything = len(read_distances(table)[1])
    distances = read_distances(table, without=trained)[1]
    norms = read_norms(table, without=trained)
    detector.calibrate_on(Measured.whole(torch.from_numpy(distances), torch.from_numpy(norms)))
    preparation = detector.preparation
    shown = islice(readable(source, preparation.value_range), MAPPED)
    first = [preparation(image) for _, image in shown]
    detector.fix_colours(torch.stack(first))
    detector.save(folder, weights=False)
    if table.is_dir():
        shutil.rmtree(table)
    else:
        table.unlink()
    return everything - len(distances)
