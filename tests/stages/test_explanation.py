from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tiny import pixels, small_detector

from liftmap.stages.explanation import columns_of, draw_explanations


def test_the_picture_has_a_row_an_image(tmp_path: Path) -> None:
    detector = small_detector()
    found = [detector.explain(p) for p in pixels(2)]
    draw_explanations(found[:1], tmp_path / "one.png")
    draw_explanations(found, tmp_path / "two.png", titles=["a", "b"])
    one, two = (Image.open(tmp_path / f"{n}.png") for n in ("one", "two"))
    assert one.width == two.width
    assert abs(two.height - 2 * one.height) <= 1
    assert len(set(two.convert("RGB").getdata())) > 100, "something was drawn"


def test_one_images_map_is_drawn_on_the_calibrations_scale(tmp_path: Path) -> None:
    """Twice the scale's top, and the same image looks calmer."""
    found = small_detector().explain(pixels(1)[0])
    brightness = []
    for factor in (1.0, 4.0):
        top = factor * float(found.distance_map.max())
        draw_explanations([replace(found, map_top=top)], tmp_path / "e.png")
        with Image.open(tmp_path / "e.png") as picture:
            column = np.asarray(picture.convert("L"))[:, -int(picture.width / 6) :]
        brightness.append(column[30:-10, 10:-10].mean())
    assert brightness[1] < 0.7 * brightness[0]


def test_a_mask_is_called_flipped_only_where_it_is() -> None:
    found = small_detector().explain(pixels(1)[0])
    assert columns_of(found)[3] == "hidden, flipped"
    same = found.hidden[:1].expand_as(found.hidden)
    assert columns_of(replace(found, hidden=same))[3] == "hidden again"
