import torch
from hypothesis import given
from hypothesis import strategies as st

from liftmap.diffusion.noise import ImageNoise, attempt_seed

SHAPE = (1, 16, 16)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), st.integers(0, 4))
def test_a_row_depends_on_its_seed_alone(seeds: list[int], row: int) -> None:
    row %= len(seeds)
    together, alone = ImageNoise(seeds, SHAPE), ImageNoise([seeds[row]], SHAPE)
    for _ in range(3):
        assert torch.equal(together.draw()[row], alone.draw()[0])


def test_draws_are_standard_gaussian_and_independent() -> None:
    noise = ImageNoise([attempt_seed(i, 0, 0) for i in range(400)], SHAPE)
    first, second = noise.draw(), noise.draw()
    count = first.numel()  # 102,400: a mean's standard error is 0.003
    assert abs(first.mean().item()) < 4 / count**0.5
    assert abs(first.var().item() - 1) < 4 * (2 / count) ** 0.5
    assert abs((first * second).mean().item()) < 4 / count**0.5
    assert abs((first * first.roll(1, 0)).mean().item()) < 4 / count**0.5


def test_seeds_differ_in_image_user_and_attempt() -> None:
    seeds = {attempt_seed(i, u, a) for i in range(8) for u in range(8) for a in range(8)}
    assert len(seeds) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)
