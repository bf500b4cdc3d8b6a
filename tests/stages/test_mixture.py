import json

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from liftmap.errors import SettingsError
from liftmap.stages.mixture import Candidate, Mixture


def two_clouds(count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    at = torch.where(torch.rand(count, 1, generator=draw) < 0.5, -3.0, 3.0)
    return 100 + 7 * (at + torch.randn(count, 3, generator=draw))


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_the_density_is_scikit_learns(covariance: str) -> None:
    x = two_clouds(400)
    found = Mixture.fit(x, [Candidate(2, covariance)]).log_density(x[:50])
    standard = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0)).numpy()
    oracle = GaussianMixture(2, covariance_type=covariance, random_state=0).fit(standard)
    assert found.numpy() == pytest.approx(oracle.score_samples(standard[:50]), abs=1e-6)


def test_held_out_images_choose_the_number_of_components() -> None:
    found = Mixture.fit(two_clouds(2000), [Candidate(1), Candidate(2)])
    assert len(found.weights) == 2
    one = Mixture.fit(torch.randn(200, 3, generator=torch.Generator().manual_seed(1)), CANDIDATES)
    assert len(one.weights) < 60, "sixty components in three dimensions don't generalise"


CANDIDATES = [Candidate(1), Candidate(60)]


def test_a_statistic_that_never_changes_is_left_as_it_is() -> None:
    x = two_clouds(100)
    x[:, 1] = 5.0
    assert np.isfinite(Mixture.fit(x, [Candidate(1)]).log_density(x)).all()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(SettingsError, match="4 in-domain images: a mixture of 50 components"):
        Mixture.fit(torch.randn(4, 2), [Candidate(50), Candidate(100)])


def test_plain_data_gives_the_same_mixture_back() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    mixture = Mixture.fit(x, [Candidate(2)])
    again = Mixture.from_json(json.loads(json.dumps(mixture.to_json())))
    assert torch.equal(again.log_density(x), mixture.log_density(x))
