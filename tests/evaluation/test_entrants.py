import json
import re
from pathlib import Path

import pytest
import torch
from tiny import pixels, small_model

from liftmap.baselines.likelihood import InputComplexity, Likelihood
from liftmap.baselines.on_diffusion import OnDiffusion
from liftmap.detector import Detector
from liftmap.errors import SettingsError
from liftmap.evaluation.entrants import ENTRANTS, described, find_entrants

PAGE = Path(__file__).parents[2] / "docs" / "comparing.md"


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"'svm': need some of combined, lmd, lmd-quick"):
        find_entrants(["svm"])


def test_the_page_lists_exactly_these_methods() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == described()
    assert len(rows) == len(ENTRANTS) + 1


def test_names_and_keys_tell_methods_apart() -> None:
    assert len({entrant.about for entrant in ENTRANTS.values()}) == len(ENTRANTS)
    assert len({(entrant.key, entrant.column) for entrant in ENTRANTS.values()}) == len(ENTRANTS)


@pytest.mark.parametrize("name", ENTRANTS)
def test_what_it_uses_of_a_model_is_plain_data(name: str) -> None:
    model, entrant = small_model(), ENTRANTS[name]
    used = entrant.used(model, 0)
    assert json.loads(json.dumps(used))
    if entrant.installed:
        on_diffusion = isinstance(entrant.make(model, 0, device="cpu"), Detector | OnDiffusion)
        assert (model.checkpoint.weights_key in used) == on_diffusion


def test_likelihood_and_input_complexity_are_solved_for_once() -> None:
    found = find_entrants(["likelihood", "input-complexity"])
    assert len({e.key for e in found.values()}) == 1
    scorer = found["likelihood"].make(small_model(), 0)
    both = found["input-complexity"].columns(scorer, pixels(2))
    for column, kind in enumerate((Likelihood, InputComplexity)):
        assert found[["likelihood", "input-complexity"][column]].column == column
        assert torch.equal(both[:, column], kind(small_model(), seed=0).scores(pixels(2)))
