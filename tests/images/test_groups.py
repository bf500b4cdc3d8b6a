import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftmap.errors import SettingsError
from liftmap.images.groups import check_group_by, draw, joined, named_groups


def groupings(most: int = 60) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 12), min_size=1, max_size=most)


@settings(deadline=None)  # scipy is imported
@given(one=groupings(), data=st.data())
def test_joined_groups_hold_whatever_either_holds(one: list[int], data: st.DataObject) -> None:
    """And no more: what is joined is linked by a chain, by another implementation."""
    other = data.draw(st.lists(st.integers(0, 12), min_size=len(one), max_size=len(one)))
    found = joined(np.array(one), np.array(other))
    parent = list(range(len(one)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for grouping in (one, other):
        for i, a in enumerate(grouping):
            parent[root(i)] = root(grouping.index(a))
    found = found.tolist()
    pairs = [(i, j) for i in range(len(one)) for j in range(i)]
    assert all((found[i] == found[j]) == (root(i) == root(j)) for i, j in pairs)


@given(groups=groupings(), share=st.floats(0.01, 0.9), seed=st.integers(0, 50))
def test_no_group_is_on_both_sides_and_about_as_many_are_drawn(
    groups: list[int], share: float, seed: int
) -> None:
    total, count = len(groups), round(share * len(groups))
    numbers = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    try:
        chosen = draw(count, total, seed=seed, groups=numbers)
    except SettingsError as error:
        may = min(max(count, total // 5), total - 1)
        assert sizes.min() > may, error
        assert str(sizes.max()) in str(error)
        return
    assert np.array_equal(chosen, draw(count, total, seed=seed, groups=numbers))
    held = np.zeros(total, dtype=bool)
    held[chosen] = True
    assert set(numbers[held]).isdisjoint(numbers[~held])
    if not count or sizes.max() == 1:
        assert held.sum() == count
        return
    assert 0 < held.sum() < total
    allowed = sizes[sizes <= min(max(count, total // 5), total - 1)]
    off = abs(int(held.sum()) - count)
    assert off < allowed.max() or held.sum() > allowed.sum() - allowed.max()


@given(count=st.integers(0, 50), total=st.integers(1, 40), seed=st.integers(0, 50))
def test_without_groups_it_is_the_draw_that_it_always_was(
    count: int, total: int, seed: int
) -> None:
    then = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    assert np.array_equal(draw(count, total, seed=seed), then)
    assert np.array_equal(draw(count, total, seed=seed, groups=np.arange(total)[::-1]), then)


def test_large_groups_are_drawn_as_often_as_their_size_says() -> None:
    """Twenty groups of ten and two hundred of one: half of the held-out images are of each."""
    groups = np.concatenate([np.repeat(np.arange(20), 10), np.arange(20, 220)])
    shares = [(draw(40, 400, seed=s, groups=groups) < 200).mean() for s in range(300)]
    assert 0.4 < np.mean(shares) < 0.6


def test_a_giant_group_is_trained_on_or_refused() -> None:
    giant = np.concatenate([np.zeros(90, int), np.arange(1, 11)])
    chosen = draw(5, 100, seed=0, groups=giant)
    assert len(chosen) == 5 and chosen.min() >= 90
    assert len(draw(50, 100, seed=0, groups=giant)) == 10, "all that there are besides"
    with pytest.raises(SettingsError, match=r"100 images in 2 groups of 60, 40 images.*at most 20"):
        draw(5, 100, seed=0, groups=np.repeat([0, 1], (60, 40)))
    with pytest.raises(SettingsError, match=r"9 images in 1 groups of 9 images"):
        draw(1, 9, seed=0, groups=np.zeros(9, int))


def test_names_in_ids() -> None:
    ids = ["patient1_a.png", "patient2_a.png", "x/patient1_b.png", "other.png", "other2.png"]
    groups, alone = named_groups(ids, r"^(patient\d+)_")
    assert (groups.tolist(), alone) == ([0, 1, 2, 3, 4], 3)
    groups, alone = named_groups(ids, r"(patient\d+)_")
    assert (groups.tolist(), alone) == ([0, 1, 0, 2, 3], 2)
    groups, alone = named_groups(["a/b/1", "a/b/2", "a/1", "1", "id 1"], "folder")
    assert (groups.tolist(), alone) == ([0, 0, 1, 2, 3], 2)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("(", "is no regular expression"),
        ("patient", "has 0 groups in it: need folder, or"),
        ("(a)(b)", "has 2 groups in it"),
    ],
)
def test_what_names_no_groups_is_refused(by: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_group_by(by)
