from pathlib import Path

import numpy as np
from PIL import Image

from liftmap.images.prepare import Preparation
from liftmap.images.sources import open_source
from liftmap.images.survey import survey


def folder(at: Path) -> Path:
    draw = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(at / f"{i}.png")
    Image.open(at / "0.png").save(at / "copy.bmp")
    Image.new("RGB", (60, 40), "white").save(at / "blank.png")
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    grain = draw.normal(0, 12, (40, 60, 3))
    scene = np.asarray(coarse.resize((60, 40), Image.Resampling.BICUBIC)) + grain
    for name, brighter in (("scene.png", 0), ("scene2.png", 6)):
        Image.fromarray((scene + brighter).clip(0, 255).astype(np.uint8)).save(at / name)
    Image.new("L", (600, 5)).save(at / "strip.png")
    (at / "broken.png").write_bytes(b"")
    return at


def test_a_survey_counts_what_is_wrong(tmp_path: Path) -> None:
    found = survey(open_source(folder(tmp_path)), Preparation(32, 32, 3))
    assert (found.total, found.looked, found.readable, found.whole) == (12, 12, 11, True)
    assert found.kinds == {"RGB": 10, "grey": 1}
    assert found.broken.first == {"broken.png": "the file is empty"}
    assert set(found.blank.first) == {"blank.png", "strip.png"}
    assert found.copies.first == {"copy.bmp": "the same as 0.png"}
    assert found.near.first == {"scene2.png": "nearly scene.png"}
    assert found.odd_sizes.first == {"strip.png": "600x5"}


def test_a_survey_ends_where_it_is_told_to(tmp_path: Path) -> None:
    found = survey(open_source(folder(tmp_path)), Preparation(32, 32, 3), most=4)
    assert (found.total, found.looked, found.whole) == (12, 4, False)
    assert "12 images; the first 4: " in next(iter(found.lines()))


def test_what_the_models_size_does_to_them_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 3000), "red").save(tmp_path / "a.png")

    def lines(preparation: Preparation) -> str:
        return "\n".join(survey(open_source(tmp_path), preparation).lines())

    small = lines(Preparation(32, 32, 3))
    assert "4000x3000 pixels become 32x32: whatever is narrower than some 125 pixels" in small
    assert "stretched to 32x32" in small
    assert "stretched" not in lines(Preparation(32, 32, 3, "crop"))
    assert "become" not in lines(Preparation(2000, 2000, 3))
    assert "colour is not looked at" in lines(Preparation(32, 32, 1))
    assert "enlarged to 5000x5000" in lines(Preparation(5000, 5000, 3))
