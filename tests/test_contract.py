"""What every Scorer promises, Detector and baselines alike."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import pixels, small_method, small_model

from liftmap.baselines import ddpm_ood, diffpath, likelihood_regret
from liftmap.baselines.anogan import AnoGAN
from liftmap.baselines.autoencoder import AEMH, AEMSE
from liftmap.baselines.ddpm_ood import DDPMOOD
from liftmap.baselines.diffpath import DiffPath
from liftmap.baselines.inpainters import FourierInpainting, MAEInpainting
from liftmap.baselines.likelihood import InputComplexity, Likelihood
from liftmap.baselines.likelihood_regret import LikelihoodRegret
from liftmap.baselines.mahalanobis import Mahalanobis
from liftmap.baselines.msma import MSMA
from liftmap.baselines.on_diffusion import ByDensity
from liftmap.baselines.projection_regret import ProjectionRegret
from liftmap.baselines.trained import Trained
from liftmap.detector import Detector
from liftmap.errors import CalibrationError, ModelError
from liftmap.images.store import PreparedImages
from liftmap.model import Model
from liftmap.scorer import Scorer
from liftmap.stages.mixture import Candidate

METHOD = replace(small_method(attempts=2, steps=1), distance="mse+ssim", early_stop=0.5)


def model() -> Model:
    made = small_model()
    made.checkpoint.unet.half().float()  # as a file keeps the weights
    return made


def small(kind: type[Trained], steps: int = 3, **options: int) -> Callable[[], Scorer]:
    return lambda: kind(model().preparation, device="cpu", steps=steps, **options)  # type: ignore[call-arg]


SCORERS: dict[str, Callable[[], Scorer]] = {
    "lmd": lambda: Detector(model(), method=METHOD, device="cpu"),
    # in float32, as all densities of few images: they amplify bfloat16's rounding
    "combined": lambda: Detector(
        model(), method=replace(METHOD, norms=True), device="cpu", precision="float32"
    ),
    "likelihood": lambda: Likelihood(model(), device="cpu"),
    "input-complexity": lambda: InputComplexity(model(), device="cpu"),
    "likelihood-regret": small(LikelihoodRegret, steps=20, refit_steps=20),
    "anogan": small(AnoGAN, search_steps=3),
    "lmd-mae": small(MAEInpainting),
    "lmd-fourier": small(FourierInpainting),
    "ae-mse": small(AEMSE),
    "ae-mh": small(AEMH),
    "mahalanobis": lambda: Mahalanobis(model().preparation, device="cpu"),
    "msma": lambda: MSMA(model(), device="cpu", precision="float32"),
    "diffpath": lambda: DiffPath(model(), device="cpu", precision="float32"),
    "ddpm-ood": lambda: DDPMOOD(model(), device="cpu"),
    "projection-regret": lambda: ProjectionRegret(model(), device="cpu"),
}

NOTHING_TO_LEARN = ("likelihood", "input-complexity", "projection-regret")
LEARN = [name for name in SCORERS if name not in NOTHING_TO_LEARN]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpm_ood, "STARTS", (2, 5))
    monkeypatch.setattr(likelihood_regret, "SAMPLES", 3)
    monkeypatch.setattr(likelihood_regret, "REFIT_RATE", 1e-3)
    monkeypatch.setattr(MSMA, "candidates", [Candidate(1), Candidate(2)])
    monkeypatch.setattr(diffpath.DiffPath, "candidates", [Candidate(1), Candidate(2, "diag")])


def stored(folder: Path, count: int, seed: int) -> PreparedImages:
    folder.mkdir(exist_ok=True)
    path = folder / f"{seed}.u8"
    path.write_bytes(pixels(count, seed=seed).numpy().tobytes())
    return PreparedImages(path, (1, 32, 32))


@pytest.fixture(params=SCORERS)
def scorer(request: pytest.FixtureRequest, tmp_path: Path) -> Scorer:
    made = SCORERS[request.param]()
    made.learn(stored(tmp_path, 40, 1), stored(tmp_path, 20, 2))
    return made


def test_it_is_a_scorer_and_says_what_it_costs(scorer: Scorer) -> None:
    assert isinstance(scorer, Scorer)
    scorer.scores(pixels(1))
    assert (scorer.evaluations > 0) == hasattr(scorer, "model")
    assert scorer.batch >= 1


def test_scores_belong_to_images_not_to_batches(scorer: Scorer) -> None:
    images = pixels(7)
    together = scorer.scores(images)
    assert together.shape == (7,) and together.isfinite().all()
    alone = torch.cat([scorer.scores(images[i : i + 1]) for i in range(7)])
    # densities may amplify the network's rounding: a thousandth of the scores' spread
    close = {"rtol": 1e-3, "atol": 1e-3 * float(together.std())}
    assert torch.allclose(alone, together, **close)
    assert torch.allclose(scorer.scores(images.flip(0)).flip(0), together, **close)


@pytest.mark.parametrize("name", LEARN)
def test_progress_is_told_to_the_end(name: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    train, held_out = stored(tmp_path, 40, 1), stored(tmp_path, 20, 2)
    SCORERS[name]().learn(train, held_out, on_batch=lambda *done: told.append(done))
    assert told[-1][0] == told[-1][1]


def test_a_saved_scorer_scores_alike(scorer: Scorer, tmp_path: Path) -> None:
    scorer.save(tmp_path / "saved")
    options: dict[str, Any] = {"device": "cpu"}
    if isinstance(scorer, Detector):
        options |= {"method": scorer.method}
    if isinstance(scorer, ByDensity) or (isinstance(scorer, Detector) and scorer.method.norms):
        options["precision"] = "float32"
    loaded = type(scorer).from_pretrained(tmp_path / "saved", **options)
    images = pixels(5)
    assert torch.allclose(loaded.scores(images), scorer.scores(images), rtol=1e-4)
    assert loaded.preparation == scorer.preparation


@pytest.mark.parametrize("name", LEARN)
def test_before_it_has_learnt_it_refuses(name: str) -> None:
    with pytest.raises(CalibrationError):
        SCORERS[name]().scores(pixels(1))


@pytest.mark.parametrize("name", LEARN[2:])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    made = SCORERS[name]()
    with pytest.raises(CalibrationError, match="learnt nothing yet"):
        made.save(tmp_path / "m")
    made.learn(stored(tmp_path, 40, 1), stored(tmp_path, 20, 2))
    made.save(tmp_path / "m")
    path = tmp_path / "m" / "baseline.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match=r"baseline.safetensors is damaged"):
        type(made).from_pretrained(tmp_path / "m")
