import pytest
import torch
from tiny import pixels, small_model

from liftmap.baselines import ddpm_ood
from liftmap.baselines.ddpm_ood import DDPMOOD
from liftmap.diffusion.denoiser import Denoiser, Prediction


def test_seven_levels_cost_350_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = DDPMOOD(small_model(), device="cpu")
    assert (len(ddpm_ood.STARTS), scorer.evaluations) == (7, 350)
    asked: list[float] = []
    predict = Denoiser.__call__

    def counting(denoiser: Denoiser, x: torch.Tensor, t: float) -> Prediction:
        asked.append(t)
        return predict(denoiser, x, t)

    monkeypatch.setattr(Denoiser, "__call__", counting)
    assert scorer.answers(pixels(1)).shape == (1, 14)
    assert len(asked) == 350
    assert max(asked) == 0.98, "the highest level, from which 98 of 100 steps lead back"


def test_scores_are_mean_z_scores_over_the_levels() -> None:
    scorer = DDPMOOD(small_model(), device="cpu")
    scorer.learnt = {"centre": torch.full((14,), 2.0), "spread": torch.full((14,), 0.5)}
    answers = torch.full((1, 14), 3.0)
    assert scorer.compare(answers).tolist() == [4.0], "(3 - 2) / 0.5 for each of two distances"
