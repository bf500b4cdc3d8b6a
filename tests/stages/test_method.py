import pytest

from liftmap.errors import SettingsError
from liftmap.stages.method import METHODS, Method, find_method


def test_the_paper_method_is_the_published_protocol() -> None:
    paper = find_method("paper")
    assert paper.evaluations == 10_000
    assert (paper.attempts, paper.distance, paper.aggregate) == (10, "lpips", "median")
    assert (paper.mask.kind, paper.mask.cells) == ("checkerboard", 8)
    assert (paper.sampler.name, paper.sampler.steps) == ("euler-maruyama", 1000)


def test_methods_are_found_by_name_and_told_apart() -> None:
    with pytest.raises(SettingsError, match="fast, redraws, quick, paper"):
        find_method("slow")
    keys = {m.key for m in METHODS.values()} | {Method(seed=1).key, Method(attempts=9).key}
    assert len(keys) == 6
    with pytest.raises(SettingsError, match="attempts=0"):
        Method(attempts=0)
    with pytest.raises(SettingsError, match=r"early_stop=1.5: need a quantile"):
        Method(early_stop=1.5)
