import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liftmap.errors import OutputError, SettingsError
from liftmap.evaluation.evaluate import Compared, write_evaluation


def test_the_record_holds_counts_measures_and_speed(tmp_path: Path) -> None:
    inside = Compared("in", np.arange(10.0), 20.0, computed=10, seconds=4.0, skipped=1)
    outside = Compared("out", np.arange(5.0, 25.0), 35.0, computed=20, seconds=6.0)
    [record] = write_evaluation([inside, outside], tmp_path, "fast")
    assert record == json.loads((tmp_path / "evaluation.json").read_text())[0]
    assert (record["n_in"], record["n_out"], record["skipped_in"]) == (10, 20, 1)
    assert record["images_per_second"] == 3.0
    assert record["network_evaluations"] == 30.0, "the mean over ten images with 20, twenty with 35"
    # pairs in order: 15 outside scores beat all ten, the others 5, 6, 7, 8, 9 of them and tie one
    assert record["auroc"] == pytest.approx((150 + 5.5 + 6.5 + 7.5 + 8.5 + 9.5) / 200)
    for name in ("roc.png", "histogram.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(set(picture.convert("RGB").getdata())) > 20


def test_bad_sides_and_folders_are_named(tmp_path: Path) -> None:
    good = Compared("in", np.arange(3.0), 1.0)
    with pytest.raises(SettingsError, match="0 out-of-distribution scores"):
        write_evaluation([good, Compared("out", np.array([]), 1.0)], tmp_path, "fast")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        write_evaluation([good, good], tmp_path / "file" / "x", "fast")
