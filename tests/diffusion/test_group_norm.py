import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from liftmap.diffusion.group_norm import ChannelsLastGroupNorm, use_channels_last


def pair(groups: int, channels: int, *, eps: float = 1e-5) -> tuple[nn.GroupNorm, nn.GroupNorm]:
    """torch's norm and ours with the same random weights."""
    reference = nn.GroupNorm(groups, channels, eps)
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    ours = ChannelsLastGroupNorm(groups, channels, eps)
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def results(norm: nn.GroupNorm, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output, and gradients of input, weight and bias."""
    x = x.clone().requires_grad_()
    out = norm(x)
    gradients = torch.autograd.grad(out, [x, norm.weight, norm.bias], upstream)
    return [out.detach(), *gradients]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 4),
    height=st.integers(1, 6),
    across=st.integers(2, 6),
    shift=st.floats(-2, 2),
    seed=st.integers(0, 1000),
)
def test_equals_torch_forward_and_backward(
    batch: int, groups: int, width: int, height: int, across: int, shift: float, seed: int
) -> None:
    torch.manual_seed(seed)
    reference, ours = pair(groups, groups * width)
    x = channels_last(torch.randn(batch, groups * width, height, across) + shift)
    # variances near 0 amplify rounding in both
    spread = x.reshape(batch, groups, -1).var(2).min().item()
    upstream = torch.randn_like(x)
    for mine, theirs in zip(
        results(ours, x, upstream), results(reference, x, upstream), strict=True
    ):
        tolerance = 1e-5 * max(1.0, 1 / (spread + 1e-3))
        assert torch.allclose(mine, theirs, atol=10 * tolerance, rtol=1e-4)


def test_equals_torch_closely_at_a_networks_size() -> None:
    reference, ours = pair(32, 64)
    x = channels_last(torch.randn(4, 64, 8, 8))
    upstream = channels_last(torch.randn(4, 64, 8, 8))
    for mine, theirs in zip(
        results(ours, x, upstream), results(reference, x, upstream), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_equal_finite_differences() -> None:
    """In float32, hence the wide step and tolerance."""
    _, ours = pair(2, 4)
    x = channels_last(torch.randn(1, 4, 3, 3))
    upstream = torch.randn_like(x)
    _, grad, grad_weight, _ = results(ours, x, upstream)
    direction = channels_last(torch.randn_like(x))
    step = 1e-2
    with torch.no_grad():
        slope = (ours(x + step * direction) - ours(x - step * direction)).mul(upstream).sum()
        assert (slope / (2 * step)).item() == pytest.approx(
            (grad * direction).sum().item(), rel=1e-2, abs=1e-2
        )
        before = ours(x)
        ours.weight.add_(1.0)
        assert (ours(x) - before).mul(upstream).sum().item() == pytest.approx(
            grad_weight.sum().item(), rel=1e-4
        )


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_bfloat16_is_as_close_as_its_bits(shift: float) -> None:
    reference, ours = pair(4, 16)
    x = channels_last((torch.randn(2, 16, 8, 8) + shift).bfloat16())
    exact = reference(x.float())
    out = ours(x)
    assert out.dtype == torch.bfloat16
    # 8 bits: shift and scale are each rounded to 1 part in 256
    limit = 2**-6 * exact.abs().max() * (1 + abs(shift))
    assert (out.float() - exact).abs().max() < limit
    gradient = torch.autograd.grad(ours(x.requires_grad_()).float().square().sum(), x)[0]
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()


def test_a_constant_group_is_finite() -> None:
    reference, ours = pair(2, 4)
    x = channels_last(torch.full((1, 4, 4, 4), 100.0))
    assert torch.allclose(ours(x), reference(x), atol=1e-2)


def test_output_stays_channels_last() -> None:
    _, ours = pair(2, 4)
    out = ours(channels_last(torch.randn(2, 4, 5, 6)))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 7), (2, 4)])
def test_other_layouts_fall_back_to_torch(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, ours = pair(2, 4)
    monkeypatch.setattr("liftmap.diffusion.group_norm._ChannelSums.apply", None)
    x = torch.randn(shape)
    assert torch.equal(ours(x), reference(x))


def test_swapping_keeps_parameters_names_and_answers() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8, eps=1e-6), nn.Sequential(nn.GroupNorm(2, 8))
    )
    plain = nn.GroupNorm(2, 8, affine=False)
    network.append(plain)
    x = torch.randn(2, 3, 6, 6)
    before, names = network(x), list(network.state_dict())
    kept = network[1].weight
    use_channels_last(network)
    assert isinstance(network[1], ChannelsLastGroupNorm)
    assert network[1].eps == 1e-6
    assert network[1].weight is kept
    assert network[3] is plain, "a norm without weights stays as it is"
    assert list(network.state_dict()) == names
    assert torch.allclose(network(channels_last(x)), before, atol=1e-5)
