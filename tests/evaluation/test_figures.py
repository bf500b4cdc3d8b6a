from contextlib import nullcontext
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import calibrated_model, save_images, small_method, trained

from liftmap.detector import Detector
from liftmap.engines.local import score_source
from liftmap.engines.tables import read_distances
from liftmap.errors import SettingsError
from liftmap.evaluation import figures
from liftmap.evaluation.benchmark import BenchmarkListener, Task
from liftmap.evaluation.figures import FIGURES, Tools, attempts_curves, class_by_class, draw_masks
from liftmap.evaluation.metrics import auroc
from liftmap.images.entry import Source
from liftmap.images.labels import read_labels
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut
from liftmap.model import Model


@pytest.fixture
def task(tmp_path: Path) -> Task:
    model = calibrated_model(tmp_path / "model")
    images = save_images(tmp_path / "images", 12)
    (images / "001.png").write_text("no image")
    inside, outside = open_source(f"{images}[0:6]"), open_source(f"{images}[6:12]")
    return Task(str(model), inside, inside, [outside])


def measure(detector: Detector, source: Source, table: Path) -> np.ndarray:
    score_source(detector, source, table, to="distances")
    return read_distances(table)[1]


TOOLS = Tools(measure, lambda source: read_labels(source.name))


def named(task: Task) -> Tools:
    return TOOLS._replace(names={task.inside.name: "in", task.outside[0].name: "out"})


def colours(path: Path) -> int:
    with Image.open(path) as picture:
        return len(set(picture.convert("RGB").getdata()))


def test_the_curves_are_the_auroc_of_the_first_attempts_medians() -> None:
    draw = np.random.default_rng(0)
    inside = draw.normal(size=(30, 4, 2)).astype(np.float32)
    outside = draw.normal(1.0, size=(20, 4, 2)).astype(np.float32)
    curves = attempts_curves(inside, outside)
    assert curves.shape == (2, 4)
    for kind in range(2):
        for count in range(1, 5):
            sides = (np.median(x[:, :count, kind], axis=1).astype(float) for x in (inside, outside))
            assert curves[kind, count - 1] == pytest.approx(auroc(*sides), abs=1e-6)


def test_figure_9_keeps_what_it_measured_and_leaves_bad_images_out(
    task: Task, tmp_path: Path
) -> None:
    draw = FIGURES["figure9"].draw
    [path] = draw(task, small_method(steps=1), tmp_path / "f", TOOLS)
    assert len(list((tmp_path / "f" / "distances").iterdir())) == 2
    assert colours(path) > 20


def test_figure_4_shows_images_of_both_sides(task: Task, tmp_path: Path) -> None:
    [path] = FIGURES["figure4"].draw(task, small_method(steps=1), tmp_path / "f", TOOLS)
    assert path.name.startswith("figure4-")
    assert colours(path) > 20


def test_pictures_are_named_after_data_sets_where_these_are_known(
    task: Task, tmp_path: Path
) -> None:
    names = {task.inside.name: "CIFAR10", task.outside[0].name: "SVHN"}
    [path] = FIGURES["figure4"].draw(
        task, small_method(steps=1), tmp_path / "f", TOOLS._replace(names=names)
    )
    assert path.name == "figure4-CIFAR10-SVHN.png"


NAMES = [f"{mask}-in-out.png" for mask in ("checkerboard-8x8", "checkerboard-4x4", "centre")]


def test_figure_6_shows_three_masks(task: Task, tmp_path: Path) -> None:
    made = FIGURES["figure6"].draw(task, small_method(steps=1), tmp_path / "f", named(task))
    assert [path.name for path in made] == [f"figure6-{name}" for name in NAMES]


@pytest.mark.parametrize(
    ("figure", "inpainter", "prefix"),
    [
        ("figure10", "FourierInpainting", "figure10-stand-in"),
        ("figure11", "MAEInpainting", "figure11"),
    ],
)
def test_an_inpainter_is_trained_once_for_three_masks(
    figure: str,
    inpainter: str,
    prefix: str,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = partialmethod(getattr(figures, inpainter).__init__, steps=3, device="cpu")
    monkeypatch.setattr(
        figures, inpainter, type(inpainter, (getattr(figures, inpainter),), {"__init__": short})
    )
    trained(Model.load(task.model), HoldOut(0.3, 9, 0)).save(task.model)
    learning: list[str] = []
    listener = BenchmarkListener(on_cell=lambda what, source, images: learning.append(what))
    tools = named(task)._replace(progress=lambda: nullcontext(listener))
    made = FIGURES[figure].draw(task, small_method(), tmp_path / "f", tools)
    assert [path.name for path in made] == [f"{prefix}-{name}" for name in NAMES]
    assert [what for what in learning if "learns" in what] == [f"{prefix} learns"]
    assert all(colours(path) > 20 for path in made)


def test_figure_10_is_lamas_where_its_generator_is_given(task: Task, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="need a preparation with 3 channels"):
        FIGURES["figure10"].draw(
            task, small_method(), tmp_path / "f", named(task)._replace(generator=tmp_path / "x.pt")
        )


def test_figure_5_compares_each_class_with_each(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in "ab":
        images = draw.integers(0, 256, (8, 32, 32), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(8) % (2 + (name == "b")))
    inside, outside = (open_source(tmp_path / f"{name}.npz") for name in "ab")
    task = Task(str(calibrated_model(tmp_path / "model")), inside, inside, [outside])
    [path] = FIGURES["figure5"].draw(task, small_method(steps=1), tmp_path / "f", TOOLS)
    assert colours(path) > 20


def test_class_by_class_is_the_auroc_of_their_scores() -> None:
    found = class_by_class(
        np.array([1.0, 2.0, 5.0]), np.array([3, 3, 7]), np.array([3.0, 4.0]), np.array([0, 1])
    )
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_figure_8_needs_nothing(tmp_path: Path) -> None:
    assert colours(draw_masks(tmp_path)) > 2
    assert len(figures.PAPER_MASKS) == 6
