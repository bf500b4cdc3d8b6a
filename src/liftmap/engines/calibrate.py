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
from liftmap.images.entry import Source, readable
from liftmap.stages.redraw import Measured


def calibrate_folder(
    detector: Detector,
    source: Source,
    folder: Path,
    *,
    engine: Engine | None = None,
    on_batch: Callable[[Summary], None] = lambda summary: None,
) -> None:
    """Calibrate on images that were not trained on, and write the folder's liftmap.json anew.

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
    distances, norms = read_distances(table)[1], read_norms(table)
    detector.calibrate_on(Measured.whole(torch.from_numpy(distances), torch.from_numpy(norms)))
    first = [detector.preparation(image) for _, image in islice(readable(source), MAPPED)]
    detector.fix_colours(torch.stack(first))
    detector.save(folder, weights=False)
    if table.is_dir():
        shutil.rmtree(table)
    else:
        table.unlink()
