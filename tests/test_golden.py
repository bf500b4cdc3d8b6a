"""A few of the frozen scores, within what other cores and batches make of them."""

import numpy as np
import pytest
from golden import EACH, FROZEN, METHODS, MODELS, computed, samples

SOME = [0, 1, EACH, EACH + 1]  # two clothes, two digits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_scores_stay_what_they_were(model: str, method: str) -> None:
    images = samples()
    now = computed([images[i] for i in SOME], model, method)
    with np.load(FROZEN) as frozen:
        scores = frozen[f"{model}/{method}/scores"][SOME]
        p_values = frozen[f"{model}/{method}/p_values"][SOME]
    np.testing.assert_allclose(now["scores"], scores, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(now["p_values"], p_values, atol=2e-3)
