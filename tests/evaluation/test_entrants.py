import pytest
import torch
from tiny import pixels, small_model

from liftmap.baselines.likelihood import InputComplexity, Likelihood
from liftmap.errors import SettingsError
from liftmap.evaluation.entrants import find_entrants


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"'svm': need some of combined, lmd, lmd-quick"):
        find_entrants(["svm"])


def test_likelihood_and_input_complexity_are_solved_for_once() -> None:
    found = find_entrants(["likelihood", "input-complexity"])
    assert len({e.key for e in found.values()}) == 1
    both = found["likelihood"].make(small_model(), 0).scores(pixels(2))
    for column, kind in enumerate((Likelihood, InputComplexity)):
        assert found[["likelihood", "input-complexity"][column]].column == column
        assert torch.equal(both[:, column], kind(small_model(), seed=0).scores(pixels(2)))
