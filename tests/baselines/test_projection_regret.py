import pytest
import torch
from exact import ExactDenoiser
from tiny import pixels, small_model

from liftmap.baselines.projection_regret import ProjectionRegret
from liftmap.diffusion.denoiser import Denoiser, Prediction
from liftmap.diffusion.process import VP


def test_it_costs_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ProjectionRegret(small_model(), device="cpu")
    asked: list[float] = []
    predict = Denoiser.__call__

    def counting(denoiser: Denoiser, x: torch.Tensor, t: float) -> Prediction:
        asked.append(t)
        return predict(denoiser, x, t)

    monkeypatch.setattr(Denoiser, "__call__", counting)
    assert scorer.answers(pixels(1)).shape == (1, 2)
    assert len(asked) == scorer.evaluations == 36
    assert max(asked) == 0.4


def test_where_all_is_projected_to_one_image_only_the_first_move_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A domain of mid-grey alone: the projection is grey, and grey stays grey."""
    scorer = ProjectionRegret(small_model(), device="cpu")
    grey = ExactDenoiser(VP(), [0.0], [1e-4], [1.0])
    monkeypatch.setattr(scorer, "denoiser", grey)
    answers = scorer.answers(pixels(3))
    assert (answers[:, 0] > 0.1).all()
    assert answers[:, 1].abs().max() < 1e-3
    assert torch.equal(scorer.compare(answers), answers[:, 0] - answers[:, 1])
