from dataclasses import replace

import pytest
import torch
from tiny import pixels, small_detector, small_method
from torch import nn

from liftmap.diffusion.samplers import SamplerSettings
from liftmap.evaluation import speed
from liftmap.evaluation.speed import latency, matrix_peak, measure_speed, network_flops


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PEAK_SIDE", 64)


def test_operations_are_two_a_weight_and_position() -> None:
    """Counted by hand: 2 x in x kernel x out for each position of each layer's output."""
    detector = small_detector(precision="float32")
    counted = 0

    def count(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal counted
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        positions = output.numel() // weight.shape[0]
        counted += 2 * weight.numel() * positions

    for layer in detector.denoiser.network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    expected = network_flops(detector)
    assert counted == expected > 0


def test_a_long_method_is_timed_in_part_and_counted_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "_seconds", lambda call, device: (call(), 2.0)[1])
    monkeypatch.setattr(speed, "MOST_STEPS", 2)
    short = small_detector(small_method(attempts=2, steps=2))
    long = small_detector(replace(short.method, sampler=SamplerSettings("euler-maruyama", 10)))
    rounds = []
    found = measure_speed([short, long], pixels(4), rounds=2, on_round=lambda: rounds.append(1))
    assert [f.share_timed for f in found] == [1.0, 0.2]
    assert [f.seconds for f in found] == pytest.approx([0.5, 2.5])
    assert [f.evaluations for f in found] == [4, 20]
    assert len(rounds) == 4
    # the work counted is the network's alone: evaluations of one image x operations of one
    peak = 2 * 64**3 / 2.0
    assert found[0].peak_share == pytest.approx(network_flops(short) * 4 / 0.5 / peak)
    whole = measure_speed([long], pixels(2), rounds=1, whole=True)
    assert (whole[0].share_timed, whole[0].seconds) == (1.0, 1.0)


def test_latency_is_the_median_and_the_95_percent_quantile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    took = iter(range(1, 22))
    monkeypatch.setattr(speed, "_seconds", lambda call, device: float(next(took)))
    assert latency(small_detector(), pixels(3), rounds=21) == (11.0, 20.0)


def test_the_peak_is_a_rate_of_this_machine() -> None:
    assert 1e6 < matrix_peak(torch.device("cpu"), "float32", rounds=2) < 1e15
