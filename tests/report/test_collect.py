from pathlib import Path

import numpy as np
import pytest
from scipy.stats import betabinom
from tiny import decide_by, save_images, small_detector

from liftmap.detector import Detector
from liftmap.errors import CalibrationError, SettingsError
from liftmap.images.sources import open_source
from liftmap.report.collect import chance, collect, interval, windows
from liftmap.stages.calibrate import Calibration

CALIBRATION = Calibration.from_scores([i / 199 for i in range(199)])


def rows(count: int, **changes: object) -> list[dict[str, object]]:
    made = [
        {"id": f"{i:03}.png", "score": float(i), "p_value": 1 - i / count, "attempts": 2}
        for i in range(count)
    ]
    return [row | {"reason": None} | changes for row in made]


@pytest.fixture
def detector() -> Detector:
    made = small_detector()
    decide_by(made, [i / 40 for i in range(1, 41)])
    return made


def test_the_gallery_holds_the_oddest_first_with_their_pictures(
    detector: Detector, tmp_path: Path
) -> None:
    source = open_source(save_images(tmp_path / "i", 20))
    page = collect(rows(20), detector, source, title="t", rate=0.1, shown=3)
    assert [image.id for image in page.gallery] == ["019.png", "018.png", "017.png"]
    assert page.gallery[0].words == "about 1 in 20 in-domain images looks this odd"
    assert all(image.thumbnail.startswith("data:image/webp;base64,") for image in page.gallery)
    assert len({image.explanation for image in page.gallery}) == 3
    assert page.flagged == 2, "p-values of 0.05 and 0.1 at a rate of 0.1"
    assert page.settings["images are taken as"] == "32x32 grey"


def test_skipped_images_are_listed_with_their_reason(detector: Detector) -> None:
    bad = {"id": "x", "score": None, "p_value": None, "attempts": None, "reason": "empty"}
    page = collect([*rows(3), bad], detector, None, title="t")
    assert page.skipped == [("x", "empty")]
    assert len(page.rows) == 3 and page.gallery == []


def test_the_interval_and_the_surprise_are_beta_binomial() -> None:
    expected = betabinom(500, 10, 190)
    assert interval(CALIBRATION, 0.05, 500) == expected.interval(0.95)
    assert chance(CALIBRATION, 0.05, 500, 40) == pytest.approx(1 - expected.cdf(39))
    assert chance(CALIBRATION, 0.05, 500, 0) == pytest.approx(1.0)
    assert chance(CALIBRATION, 0.05, 0, 0) == 1.0


def test_in_domain_batches_surprise_as_rarely_as_they_should() -> None:
    """Over calibrations and batches of one distribution: P(chance <= 0.05) is at most 0.05."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(400):
        calibration = Calibration.from_scores(draw.normal(size=199).tolist())
        flagged = (draw.normal(size=300) > calibration.threshold(0.05)).sum()
        found.append(chance(calibration, 0.05, 300, int(flagged)))
    assert (np.array(found) <= 0.05).mean() <= 0.08


def test_windows_part_the_table_and_count_its_flags() -> None:
    flags = np.arange(1000) % 10 == 0
    found = windows(CALIBRATION, 0.05, flags)
    assert len(found) == 20, "at least fifty images each"
    assert sum(n for _, n, *_ in found) == 1000
    assert sum(k for _, _, k, *_ in found) == 100
    assert all(low <= high for *_, low, high in found)
    assert windows(CALIBRATION, 0.05, np.array([], dtype=bool)) == []


def test_tables_that_can_not_be_reported_are_refused(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no p-values: score without"):
        collect(rows(3, p_value=None), detector, None, title="t")
    other = open_source(save_images(tmp_path / "i", 2))
    with pytest.raises(SettingsError, match="has none of the table's images"):
        collect(rows(3, id="elsewhere.png"), detector, other, title="t")
    with pytest.raises(CalibrationError, match="needs at least 99"):
        collect(rows(3), detector, None, title="t", rate=0.01)


def test_known_ood_images_get_a_curve_of_their_own(detector: Detector) -> None:
    """Scores rise with the id: the last ten are out-of-distribution by pattern, others by table."""
    others = {"others": np.array([-5.0, 100.0])}
    page = collect(rows(20), detector, None, title="t", ood_ids="01?.png", ood_scores=others)
    other, known = page.curves
    assert (known.name, known.n_in, known.n_out) == ("01?.png", 10, 10)
    assert known.auroc[0] == 1.0 and known.fpr95[0] == 0.0
    assert (other.name, other.auroc[0]) == ("others", 0.5)
    assert known.points[0] == (0.0, 0.0) and known.points[-1] == (1.0, 1.0)
    with pytest.raises(SettingsError, match=r"'x\*' fits 0 of 20 ids"):
        collect(rows(20), detector, None, title="t", ood_ids="x*")
    assert collect(rows(20), detector, None, title="t").curves == []


def test_a_long_curve_is_thinned(detector: Detector) -> None:
    draw = np.random.default_rng(0)
    table = [row | {"score": float(draw.normal())} for row in rows(3000)]
    scores = {"others": draw.normal(1.0, size=3000)}
    [curve] = collect(table, detector, None, title="t", ood_scores=scores).curves
    assert len(curve.points) == 200
    assert curve.auroc[0] == pytest.approx(0.76, abs=0.02), "of normals one deviation apart"
