from pathlib import Path

from PIL import Image
from tiny import pixels, small_detector

from liftmap.explanation import draw_explanations


def test_the_picture_has_a_row_an_image(tmp_path: Path) -> None:
    detector = small_detector()
    found = [detector.explain(p) for p in pixels(2)]
    draw_explanations(found[:1], tmp_path / "one.png")
    draw_explanations(found, tmp_path / "two.png", titles=["a", "b"])
    one, two = (Image.open(tmp_path / f"{n}.png") for n in ("one", "two"))
    assert one.width == two.width
    assert abs(two.height - 2 * one.height) <= 1
    assert len(set(two.convert("RGB").getdata())) > 100, "something was drawn"
