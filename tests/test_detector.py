"""The contract that every scorer keeps, and what the detector adds to it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import decide_by, pixels, small_detector, small_method, small_model, standard_density

from liftmap.detector import Detector
from liftmap.errors import CalibrationError, ImageError
from liftmap.images.store import PreparedImages
from liftmap.stages.masks import MaskSettings
from liftmap.stages.mixture import COMPONENTS, Mixture
from liftmap.stages.redraw import Measured
from liftmap.stages.scales import Scales


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 1e-3)])
def test_a_score_does_not_depend_on_the_batch(precision: str, tolerance: float) -> None:
    """Alone, in a batch of 7, of 256, reversed, and in chunks of other sizes: the same."""
    images = pixels(256)
    detector = small_detector(small_method(attempts=2), precision=precision)
    together = detector.score_pixels(images).scores
    backwards = detector.score_pixels(images.flip(0)).scores.flip(0)
    seven = detector.score_pixels(images[:7]).scores
    alone = torch.cat([detector.score_pixels(images[i : i + 1]).scores for i in range(7)])
    detector.redraw.at_once = 37
    chunked = detector.score_pixels(images[:50]).scores
    for other in (backwards, seven, alone, chunked):
        assert torch.allclose(other, together[: len(other)], rtol=tolerance, atol=0)


def test_scores_are_finite_repeatable_and_follow_the_seed() -> None:
    images = pixels(5)
    first = small_detector().score_pixels(images)
    assert first.scores.isfinite().all()
    assert first.distances.shape == (5, 3, 1)
    assert torch.equal(first.scores, small_detector().score_pixels(images).scores)
    other = small_detector(replace(small_method(), seed=1)).score_pixels(images)
    assert (first.scores != other.scores).all()


def test_the_score_is_the_aggregate_of_the_distances() -> None:
    detector = small_detector(replace(small_method(attempts=4), aggregate="mean", distance="mse"))
    scored = detector.score_pixels(pixels(3))
    assert torch.allclose(scored.scores, scored.distances[..., 0].mean(1))


@pytest.mark.parametrize("distance", ["lpips", "mse", "ssim"])
@pytest.mark.parametrize("mask", ["checkerboard", "centre", "random-patches"])
def test_every_mask_works_with_every_distance(distance: str, mask: str) -> None:
    method = replace(small_method(2), distance=distance, mask=MaskSettings(mask))
    assert small_detector(method).score_pixels(pixels(2)).scores.isfinite().all()


def test_lifting_by_noise_works_and_costs_its_share() -> None:
    method = replace(small_method(attempts=2, steps=10), noised_to=0.5)
    assert method.evaluations == 10
    assert small_detector(method).score_pixels(pixels(2)).scores.isfinite().all()


def test_images_that_are_not_square() -> None:
    detector = small_detector(height=32, width=48)
    picture = np.zeros((20, 70), np.uint8)
    assert detector.score(picture).shape == (1,)
    assert detector.explain(picture).distance_map.shape == (32, 48)


def test_all_forms_of_images_are_taken(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(1)[0, 0].numpy())
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    forms = [image, array, array / 255.0, tmp_path / "a.png", [str(tmp_path / "a.png")]]
    forms += [torch.from_numpy(array.copy())[None], array[None, ..., None], pixels(1)]
    scores = torch.cat([small_detector().score(form) for form in forms])
    assert (scores == scores[0]).all()


def test_bad_images_are_named() -> None:
    detector = small_detector()
    with pytest.raises(ImageError, match="NaN"):
        detector.score(np.full((8, 8), np.nan))
    with pytest.raises(ImageError, match="shape"):
        detector.score(torch.zeros(2, 2, 2, 2, 2))


def test_decisions_need_a_calibration_of_the_same_method() -> None:
    detector = small_detector()
    with pytest.raises(CalibrationError, match="no calibration for this method"):
        detector.predict(pixels(1))
    decide_by(detector, map(float, range(30)))
    found = detector.predict(pixels(2), false_alarms=0.05)
    higher = [sum(known >= score for known in range(30)) for score in found.scores.tolist()]
    assert found.p_values.tolist() == pytest.approx([(1 + n) / 31 for n in higher])
    with pytest.raises(CalibrationError, match="needs at least 99"):
        detector.predict(pixels(1), false_alarms=0.01)
    other = Detector(detector.model, method=small_method(attempts=4), device="cpu")
    with pytest.raises(CalibrationError, match="no calibration for this method"):
        other.predict(pixels(1))


def test_predictions_agree_with_their_calibration() -> None:
    detector = small_detector()
    scores = detector.score_pixels(pixels(40)).scores
    decide_by(detector, scores.tolist())
    found = detector.predict(pixels(40), false_alarms=0.1)
    assert (found.is_ood == (found.p_values <= 0.1)).all()
    assert found.is_ood.sum() == 3, "k = floor(0.1 * 41) = 4 ranks, less the image itself"


def test_several_distances_count_by_the_strongest_on_the_scale_of_normal_images() -> None:
    detector = small_detector(replace(small_method(attempts=4), distance="mse+ssim"))
    with pytest.raises(CalibrationError, match="no scales for mse\\+ssim"):
        detector.score_pixels(pixels(1))
    found = detector.measure(pixels(40))
    detector.calibrate_on(found)
    calibration, distances = detector.judge.decides_by, found.distances
    rest = distances[[i for i in range(40) if i % 5]]
    log = distances[::5].log().flatten(0, 1)
    spread = (log.quantile(0.8413, 0) - log.quantile(0.1587, 0)) / 2
    standard = (rest.log() - log.quantile(0.5, 0)) / spread
    expected = standard.amax(2).quantile(0.5, dim=1)
    assert calibration.scores == pytest.approx(sorted(expected.tolist()), abs=1e-4)
    assert torch.allclose(detector.score_pixels(pixels(4)).scores[1:], expected[:3], atol=1e-4)


def test_an_uncalibrated_method_takes_the_scales_of_another_with_the_same_distances() -> None:
    detector = small_detector(replace(small_method(attempts=4), distance="mse+ssim"))
    detector.calibrate_on(detector.measure(pixels(20)))
    before = detector.judge
    other = replace(detector.method, attempts=2)
    again = Detector(detector.model, method=other, device="cpu")
    assert again.judge == before.lent_to(other)
    assert again.judge.scales == before.scales and again.judge.calibration is None
    again.calibrate_on(again.measure(pixels(20, seed=1)))
    assert again.judge.scales != before.scales and detector.judge == before
    assert len(again.judge.decides_by.scores) == 16


def stopping(**changes: Any) -> Detector:
    method = replace(small_method(attempts=6), early_stop=0.5, **changes)
    detector = small_detector(method)
    detector.calibrate_on(detector.measure(pixels(60, seed=3)))
    return detector


def of_all(detector: Detector, distances: torch.Tensor) -> torch.Tensor:
    """Scores from distances of every attempt: those beyond a stop don't count."""
    found = Measured.whole(distances, torch.empty(len(distances), 0))
    return detector.judge.scores(detector.judge.stopped(found))


@pytest.mark.parametrize("distance", ["mse", "lpips+ssim"])
def test_images_that_look_normal_take_fewer_attempts_and_the_others_all(distance: str) -> None:
    detector = stopping(distance=distance)
    settled = detector.judge.settled
    assert settled is not None
    images = pixels(30)
    scored = detector.score_pixels(images)
    whole = detector.measure(images).distances
    assert set(scored.attempts.tolist()) >= {2, 6}
    for i, (score, took) in enumerate(zip(scored.scores, scored.attempts, strict=True)):
        assert scored.distances[i, :took].allclose(whole[i, :took], rtol=1e-3)
        assert scored.distances[i, took:].isnan().all()
        assert took == 6 or score < settled
    assert torch.allclose(of_all(detector, whole), scored.scores, rtol=1e-3, atol=1e-4)


def test_the_settled_score_is_a_quantile_of_images_that_take_no_part_in_calibration() -> None:
    detector = stopping(distance="mse")
    whole = detector.measure(pixels(60, seed=3)).distances[..., 0]
    rule = torch.arange(60) % 5 == 0
    expected = whole[rule].quantile(0.5, dim=1).quantile(0.5).item()
    assert detector.judge.settled == pytest.approx(expected, rel=1e-4)
    assert len(detector.judge.decides_by.scores) == 48
    scores = of_all(detector, whole[~rule, :, None])
    assert detector.judge.decides_by.scores == pytest.approx(sorted(scores.tolist()), rel=1e-4)


def with_norms(**changes: Any) -> Detector:
    """Calibrated with noise norms; in float32, since densities amplify rounding."""
    method = replace(small_method(attempts=4), norms=True, **changes)
    detector = small_detector(method, precision="float32")
    detector.model = detector.model.with_density(standard_density())
    detector.calibrate_on(detector.measure(pixels(60, seed=3)))
    return detector


def test_noise_norms_add_to_every_attempt_how_unusual_they_are() -> None:
    detector, alone = with_norms(), small_detector(small_method(attempts=4), precision="float32")
    images = pixels(5)
    scored, usual = detector.score_pixels(images), detector.judge.surprise
    assert usual is not None and scored.norms.shape == (5, 10)
    # of a standard normal: minus the log-density is half the square, and a constant
    surprise = 0.5 * scored.norms.double().square().sum(1) + 5 * math.log(2 * math.pi)
    expected = alone.score_pixels(images).scores + (surprise - usual.centre) / usual.spread
    assert torch.allclose(scored.scores, expected.float(), rtol=1e-4)
    why = detector.explain(images[0, 0].numpy())
    assert why.score == pytest.approx(scored.scores[0].item(), rel=1e-4)
    assert why.surprise == pytest.approx(
        float((surprise[0] - usual.centre) / usual.spread), rel=1e-4
    )
    assert why.words.startswith(f"score {why.score:.3f} (redraws ")
    assert alone.explain(images[0, 0].numpy()).surprise is None
    assert detector.method.evaluations == 4 * 2 + 10


@pytest.mark.parametrize("early_stop", [None, 0.5])
def test_scores_with_norms_do_not_depend_on_the_batch(early_stop: float | None) -> None:
    detector = with_norms(early_stop=early_stop, distance="mse+ssim")
    images = pixels(9)
    together = detector.score_pixels(images)
    alone = [detector.score_pixels(images[i : i + 1]) for i in range(9)]
    assert torch.allclose(torch.cat([a.scores for a in alone]), together.scores, rtol=1e-3)
    assert torch.equal(torch.cat([a.attempts for a in alone]), together.attempts)


def test_norms_without_their_scale_are_refused() -> None:
    detector = small_detector(replace(small_method(), norms=True))
    with pytest.raises(CalibrationError, match="no scales for noise norms"):
        detector.score_pixels(pixels(1))


def test_a_model_without_a_density_learns_it_from_half_of_the_calibration_images() -> None:
    detector = small_detector(replace(small_method(attempts=2), norms=True), precision="float32")
    found = detector.measure(pixels(120))
    detector.calibrate_on(found)
    expected = Mixture.fit(found.norms[::2], COMPONENTS)
    density = detector.model.density
    assert density is not None
    assert all(torch.equal(a, b) for a, b in zip(density, expected, strict=True))
    assert len(detector.judge.decides_by.scores) == 48, "of the other 60, a fifth gives the scale"
    detector.calibrate_on(found)
    assert len(detector.judge.decides_by.scores) == 96, "the density is there now"
    with pytest.raises(CalibrationError, match="noise norms: 1 in-domain images"):
        few = small_detector(detector.method)
        few.calibrate_on(few.measure(pixels(2)))


def test_learning_takes_the_density_from_the_training_images(tmp_path: Path) -> None:
    stores = []
    for name, count in (("train", 50), ("held", 20)):
        path = tmp_path / name
        path.write_bytes(pixels(count, seed=count).numpy().tobytes())
        stores.append(PreparedImages(path, (1, 32, 32)))
    detector = small_detector(replace(small_method(attempts=2), norms=True), precision="float32")
    detector.learn(*stores)
    expected = Mixture.fit(detector.measure(pixels(50, seed=50)).norms, COMPONENTS)
    assert detector.model.density is not None
    assert torch.allclose(detector.model.density.means, expected.means, atol=1e-3)
    assert len(detector.judge.decides_by.scores) == 16
    judge = replace(detector.judge, density=None)
    with pytest.raises(CalibrationError, match="no density of noise norms"):
        judge.scores(detector.measure(pixels(1)))


def test_without_a_calibration_all_attempts_are_taken() -> None:
    detector = small_detector(replace(small_method(attempts=4), early_stop=0.9))
    assert detector.judge.settled is None
    scored = detector.score_pixels(pixels(3))
    assert scored.attempts.tolist() == [4, 4, 4]
    assert not scored.distances.isnan().any()


def test_a_saved_detector_scores_and_decides_alike(tmp_path: Path) -> None:
    model = small_model()
    model.checkpoint.unet.half().float()  # as the file keeps them
    detector = Detector(model, method=small_method(), device="cpu")
    decide_by(detector, [0.1, 0.2, 0.3])
    detector.save(tmp_path / "m")
    loaded = Detector.from_pretrained(tmp_path / "m", method=small_method(), device="cpu")
    images = pixels(4)
    assert torch.allclose(loaded.score_pixels(images).scores, detector.score_pixels(images).scores)
    assert loaded.judge.decides_by == detector.judge.decides_by


def test_known_pixels_come_back_in_the_explanation() -> None:
    detector = small_detector()
    found = detector.explain(Image.fromarray(pixels(1)[0, 0].numpy()))
    known = ~found.hidden.expand_as(found.redraws)
    original = found.original.expand_as(found.redraws)
    assert torch.equal(found.redraws[known], original[known])
    assert found.p_value is None
    assert found.score == pytest.approx(found.evidence.quantile(0.5).item())
    assert 0 <= found.typical < 3


def test_rows_that_even_out_a_batch_change_nothing() -> None:
    """33 rows are made 48 by repeating the last: the same distances and explanation."""
    detector = small_detector(small_method(attempts=3))
    images = pixels(11)
    together = detector.measure(images).distances
    detector.redraw.at_once = 3
    assert torch.allclose(together, detector.measure(images).distances, rtol=1e-3)
    many = small_detector(small_method(attempts=35))
    found = many.explain(images[0])
    assert len(found.redraws) == len(found.maps) == len(found.evidence) == 35


def test_most_of_a_normal_images_map_is_below_the_brightest_colour(tmp_path: Path) -> None:
    detector = small_detector()
    path = tmp_path / "images.u8"
    path.write_bytes(pixels(20).numpy().tobytes())
    detector.calibrate(PreparedImages(path, (1, 32, 32)))
    found = [detector.explain(image) for image in pixels(20)]
    [top] = {e.map_top for e in found}
    maps = torch.stack([e.distance_map for e in found])
    assert (maps > top / 2).float().mean().item() == pytest.approx(0.001, abs=2e-4)
    detector.save(tmp_path / "m")
    loaded = Detector.from_pretrained(tmp_path / "m", method=small_method(), device="cpu")
    assert loaded.explain(pixels(1)[0]).map_top == top


def test_a_map_of_two_distances_is_their_geometric_mean() -> None:
    method = replace(small_method(), distance="mse+ssim")
    detector = small_detector(method)
    decide_by(detector, [0.1, 0.2], scales=Scales((-2.0, -1.0), (0.5, 0.5)))
    found = detector.explain(pixels(1)[0])
    assert found.maps.shape == (3, 2, 32, 32)
    mse, ssim = found.maps.double().quantile(0.5, dim=0)
    assert torch.allclose(found.distance_map.double(), (mse * ssim).sqrt(), rtol=1e-4, atol=1e-6)
    alone = small_detector(replace(method, distance="mse")).explain(pixels(1)[0])
    assert torch.allclose(alone.maps[:, 0], found.maps[:, 0])
