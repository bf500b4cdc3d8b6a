from dataclasses import replace
from pathlib import Path

from tiny import save_images, small_detector, small_method

from liftmap.engines.calibrate import calibrate_folder
from liftmap.images.copies import Seen
from liftmap.images.sources import open_source
from liftmap.images.store import store_source
from liftmap.model import Model


def test_images_that_were_trained_on_take_no_part(tmp_path: Path) -> None:
    """Their scores are too low: calibrated on them, more than the rate would be flagged."""
    detector = small_detector(small_method(attempts=2, steps=1))
    folder = save_images(tmp_path / "images", 12)
    stored = store_source(open_source(folder), detector.preparation, tmp_path / "images.u8")
    trained, held_out = stored.hold_out(8)
    detector.model = replace(detector.model, seen=Seen.of(trained, held_out))
    detector.save(tmp_path / "model")
    assert calibrate_folder(detector, open_source(folder), tmp_path / "model") == 4
    calibrated = Model.load(tmp_path / "model").judge(detector.method)
    assert len(calibrated.decides_by.scores) == 8
