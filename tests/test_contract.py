"""What every method of detection promises: all that a benchmark knows, Detector and baselines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny import pixels, small_model

from liftmap.baselines.base import Baseline
from liftmap.baselines.on_diffusion import OnDiffusion
from liftmap.detector import Detector
from liftmap.errors import CalibrationError, ModelError
from liftmap.evaluation.entrants import ENTRANTS, lmd_by_each
from liftmap.images.store import PreparedImages
from liftmap.model import Model
from liftmap.scorer import Scorer
from liftmap.stages.method import Method, find_method
from liftmap.stages.mixture import Candidate


def cheaper(method: Method) -> Method:
    return replace(method, attempts=2, sampler=replace(method.sampler, steps=1))


# densities of few images are in float32: they amplify bfloat16's rounding
DENSITY: dict[str, Any] = {"precision": "float32", "candidates": [Candidate(1), Candidate(2)]}
BOTH = cheaper(Method(distance="mse+ssim"))
SMALL: dict[str, dict[str, Any]] = {
    "combined": {"method": cheaper(find_method("fast")), "precision": "float32"},
    "lmd": {"method": cheaper(find_method("redraws"))},
    "lmd-quick": {"method": cheaper(find_method("quick"))},
    "lmd-paper": {"method": cheaper(find_method("paper"))},
    "lmd-mae": {"steps": 3},
    "lmd-fourier": {"steps": 3},
    "likelihood-regret": {"steps": 20, "refit_steps": 20, "refit_rate": 1e-3, "samples": 3},
    "ae-mse": {"steps": 3},
    "ae-mh": {"steps": 3},
    "anogan": {"steps": 3, "search_steps": 3},
    "mahalanobis-efficientnet": {"side": 32},
    "msma": DENSITY,
    "diffpath": DENSITY,
    "ddpm-ood": {"starts": (2, 5)},
}
EVERY = ENTRANTS | {"lmd by ssim": lmd_by_each(BOTH)[1]}
NOTHING_TO_LEARN = ("likelihood", "input-complexity", "projection-regret")
NO_NEED_TO = (*NOTHING_TO_LEARN, "lmd-paper")  # a single distance is a score as it is
# saved with none of the methods: where it runs, and what only learning needs
GIVEN_AGAIN = ("device", "precision", "method")


def model() -> Model:
    made = small_model()
    made.checkpoint.unet.half().float()  # as a file keeps the weights
    return made


def options(name: str) -> dict[str, Any]:
    return {"device": "cpu"} | SMALL.get(name, {})


def made(name: str) -> Scorer:
    if not EVERY[name].installed:
        pytest.skip(f"{name} needs an extra")
    return EVERY[name].make(model(), 0, **options(name))


def stored(folder: Path, count: int, seed: int) -> PreparedImages:
    path = folder / f"{seed}.u8"
    path.write_bytes(pixels(count, seed=seed).numpy().tobytes())
    return PreparedImages(path, (1, 32, 32))


class Taught(NamedTuple):
    name: str
    scorer: Scorer
    told: Sequence[tuple[int, int]]  # of its progress


@pytest.fixture(scope="module", params=EVERY)
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    scorer, folder = made(request.param), tmp_path_factory.mktemp("images")
    told: list[tuple[int, int]] = []
    train, held_out = stored(folder, 40, 1), stored(folder, 20, 2)
    scorer.learn(train, held_out, on_batch=lambda *done: told.append(done))
    return Taught(request.param, scorer, told)


def test_it_is_a_scorer_and_says_what_it_costs(taught: Taught) -> None:
    scorer = taught.scorer
    assert isinstance(scorer, Scorer)
    scorer.scores(pixels(1))
    assert (scorer.evaluations > 0) == isinstance(scorer, Detector | OnDiffusion)
    assert scorer.batch >= 1


def test_scores_belong_to_images_not_to_batches(taught: Taught) -> None:
    scorer, images = taught.scorer, pixels(7)
    together = scorer.scores(images)
    assert together.shape == (7,) and together.isfinite().all()
    some = [0, 3, 6]
    alone = torch.cat([scorer.scores(images[i : i + 1]) for i in some])
    # densities may amplify the network's rounding: a thousandth of the scores' spread
    close = {"rtol": 1e-3, "atol": 1e-3 * float(together.std())}
    assert torch.allclose(alone, together[some], **close)
    assert torch.allclose(scorer.scores(images.flip(0)).flip(0), together, **close)


def test_its_column_of_the_table_is_its_score(taught: Taught) -> None:
    entrant, scorer = EVERY[taught.name], taught.scorer
    columns = entrant.columns(scorer, pixels(2))
    assert columns.shape[0] == 2 and columns.isfinite().all()
    expected = scorer
    if taught.name == "lmd by ssim":
        expected = Detector(model(), method=replace(BOTH, distance="ssim"), device="cpu")
    assert torch.equal(columns[:, entrant.column], expected.scores(pixels(2)))


def test_progress_is_told_to_the_end(taught: Taught) -> None:
    assert bool(taught.told) == (taught.name not in NOTHING_TO_LEARN)
    assert all(done == total for done, total in taught.told[-1:])


def test_a_saved_scorer_scores_alike(taught: Taught, tmp_path: Path) -> None:
    scorer, given = taught.scorer, options(taught.name)
    scorer.save(tmp_path / "saved")
    again = {name: given[name] for name in GIVEN_AGAIN if name in given}
    if isinstance(scorer, Detector):
        again["method"] = scorer.method
    loaded = type(scorer).from_pretrained(tmp_path / "saved", **again)
    images = pixels(5)
    assert torch.allclose(loaded.scores(images), scorer.scores(images), rtol=1e-4)
    assert loaded.preparation == scorer.preparation


@pytest.mark.parametrize("name", [name for name in ENTRANTS if name not in NO_NEED_TO])
def test_before_it_has_learnt_it_refuses(name: str) -> None:
    with pytest.raises(CalibrationError):
        made(name).scores(pixels(1))


def test_a_damaged_file_is_named(taught: Taught, tmp_path: Path) -> None:
    scorer = taught.scorer
    if not isinstance(scorer, Baseline) or not scorer.needs_learning:
        return
    with pytest.raises(CalibrationError, match="learnt nothing yet"):
        made(taught.name).save(tmp_path / "m")
    scorer.save(tmp_path / "m")
    path = tmp_path / "m" / "baseline.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match=r"baseline.safetensors is damaged"):
        type(scorer).from_pretrained(tmp_path / "m")
