import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liftmap.errors import SettingsError
from liftmap.stages.masks import MaskSettings, centre, checkerboard, hidden_masks, random_patches

sides = st.integers(2, 40)


@given(sides, sides, st.integers(2, 40))
def test_a_flipped_pair_hides_every_pixel_exactly_once(height: int, width: int, cells: int) -> None:
    cells = min(cells, height, width)
    pair = checkerboard(height, width, cells), checkerboard(height, width, cells, flipped=True)
    assert (pair[0] ^ pair[1]).all()


@given(sides, sides, st.integers(2, 40))
def test_cells_differ_by_at_most_a_pixel(height: int, width: int, cells: int) -> None:
    cells = min(cells, height, width)
    hidden = checkerboard(height, width, cells)[0, 0].int()
    for line in (hidden[0], hidden[:, 0]):
        edges = torch.cat(
            [torch.tensor([0]), line.diff().nonzero()[:, 0] + 1, torch.tensor([len(line)])]
        )
        sizes = edges.diff()
        assert len(sizes) == cells
        assert sizes.max() - sizes.min() <= 1


def test_eight_cells_of_32_pixels_are_the_authors_blocks_of_four() -> None:
    even = checkerboard(32, 32, 8)[0, 0]
    assert not even[:4, :4].any(), "even attempts keep the top left block"
    assert even[:4, 4:8].all()
    assert even.sum() == 32 * 32 // 2


def test_alternation_follows_the_published_parity() -> None:
    masks = hidden_masks(MaskSettings(), 32, 32, 10)
    for attempt in range(10):
        assert masks[attempt, 0, 0, 0] == (attempt % 2 == 1)
    fixed = hidden_masks(MaskSettings("fixed-checkerboard"), 32, 32, 10)
    assert (fixed == fixed[0]).all()


def test_centre_hides_a_quarter_in_the_middle() -> None:
    hidden = centre(32, 16, 0.5)[0, 0]
    assert hidden.sum() == 16 * 8
    assert (hidden == hidden.flip(0).flip(1)).all()


@given(sides, sides, st.integers(1, 8), st.floats(0.05, 0.95))
def test_random_patches_hide_their_share_of_whole_squares(
    height: int, width: int, patch: int, ratio: float
) -> None:
    hidden = random_patches(height, width, patch, ratio, 3)[0, 0]
    assert hidden.shape == (height, width)
    squares = hidden[::patch, ::patch]
    assert squares.sum() == -(-squares.numel() * ratio // 1)
    whole = squares.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    assert (whole[:height, :width] == hidden).all()


def test_random_patches_change_with_the_attempt_and_the_seed_only() -> None:
    settings = MaskSettings("random-patches")
    first = hidden_masks(settings, 32, 32, 4, seed=1)
    assert (first == hidden_masks(settings, 32, 32, 4, seed=1)).all()
    assert (first != hidden_masks(settings, 32, 32, 4, seed=2)).any()
    assert (first[0] != first[1]).any()


def test_a_custom_mask_comes_back_as_given() -> None:
    hidden = torch.rand(5, 7) < 0.5
    hidden[0, 0] = True
    assert (hidden_masks(MaskSettings.custom(hidden), 5, 7, 2) == hidden).all()
    with pytest.raises(SettingsError, match="5x7 pixels: need 6x7"):
        hidden_masks(MaskSettings.custom(hidden), 6, 7, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": 1}, "cells=1: need at least 2"),
        ({"kind": "chess"}, "need one of checkerboard"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"kind": "custom"}, "use custom"),
        ({"kind": "custom", "rows": ("#.", "#")}, "one length"),
    ],
)
def test_bad_settings_name_value_and_need(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MaskSettings(**settings)  # type: ignore[arg-type]


def test_more_cells_than_pixels_is_refused() -> None:
    with pytest.raises(SettingsError, match="cells=8 on 4x32"):
        checkerboard(4, 32, 8)
