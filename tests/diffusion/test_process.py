import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from liftmap.diffusion.process import (
    VE,
    VP,
    Process,
    SubVP,
    Tabulated,
    log_snr,
    process_from_json,
    process_to_json,
    time_of_log_snr,
)
from liftmap.errors import SettingsError


def ddpm_table(steps: int = 1000) -> Tabulated:
    """Ho et al. 2020: betas linear from 1e-4 to 0.02."""
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    return Tabulated(tuple(torch.cumprod(1 - betas, 0).tolist()))


PROCESSES = [VP(), SubVP(), VE(), VP(0.5, 5.0), ddpm_table()]


def at(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_marginals_equal_the_integrated_sde(process: Process) -> None:
    """Mean m' = drift m and variance v' = 2 drift v + diffusion^2 (Saerkkae & Solin, eq. 5.51)."""

    def slope(t: float, y: list[float]) -> list[float]:
        drift, diffusion = process.drift(at(t)).item(), process.diffusion(at(t)).item()
        return [drift * y[0], 2 * drift * y[1] + diffusion**2]

    begin = [1.0, process.sigma(at(0.0)).item() ** 2]
    # a table's noise rate jumps between steps: short steps there
    longest = 1e-3 if isinstance(process, Tabulated) else 0.1
    path = solve_ivp(
        slope, (0, 1), begin, t_eval=[0.1, 0.5, 0.9, 1.0], rtol=1e-8, atol=1e-12, max_step=longest
    )
    for t, mean, variance in zip(path.t, *path.y, strict=True):
        assert mean == pytest.approx(process.alpha(at(t)).item(), rel=1e-4)
        assert variance == pytest.approx(process.sigma(at(t)).item() ** 2, rel=1e-4)


def test_published_end_points() -> None:
    """VP ends with alpha(1) = exp(-(0.1 + 20) / 4); VE with sigma_max; sub-VP below VP."""
    assert VP().alpha(at(1.0)).item() == pytest.approx(torch.tensor(-5.025).exp().item())
    assert VE().sigma(at(1.0)).item() == pytest.approx(50.0)
    assert SubVP().sigma(at(0.5)).item() == pytest.approx(VP().sigma(at(0.5)).item() ** 2)


def test_a_ddpm_table_is_the_vp_process_up_to_its_discretisation() -> None:
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    assert torch.allclose(ddpm_table().alpha(t), VP().alpha(t), rtol=0.06)


def test_a_table_is_exact_at_its_steps() -> None:
    table = ddpm_table(10)
    k = torch.arange(10, dtype=torch.float64)
    cumprod = torch.tensor(table.alphas_cumprod, dtype=torch.float64)
    assert torch.allclose(table.alpha((k + 1) / 10).square(), cumprod)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_time_of_log_snr_is_the_inverse(process: Process) -> None:
    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    assert torch.allclose(time_of_log_snr(process, log_snr(process, t)), t, atol=1e-9)


@given(st.floats(0.01, 1.0), st.floats(1.0, 30.0))
def test_vp_keeps_the_variance(beta_min: float, beta_max: float) -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    process = VP(beta_min, beta_max)
    power = process.alpha(t).square() + process.sigma(t).square()
    assert torch.allclose(power, torch.ones_like(t))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_json_round_trip(process: Process) -> None:
    assert process_from_json(process_to_json(process)) == process


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "cosine"}, "need one of vp, sub-vp, ve, tabulated"),
        ({"kind": "vp", "gamma": 1}, "gamma"),
        ({"kind": "vp", "beta_min": 3.0, "beta_max": 1.0}, "beta_min=3.0, beta_max=1.0"),
        ({"kind": "ve", "sigma_min": 0.0}, "sigma_min=0.0"),
        ({"kind": "tabulated", "alphas_cumprod": [0.5, 0.6]}, "below the one before"),
    ],
)
def test_bad_data_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        process_from_json(data)
