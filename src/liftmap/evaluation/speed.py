"""What scoring costs: seconds an image, latency, memory, and how well the hardware is used."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from liftmap.detector import Detector
from liftmap.diffusion.denoiser import Precision
from liftmap.errors import CalibrationError, SettingsError
from liftmap.images.entry import Source, take
from liftmap.stages.method import Method

MOST_STEPS = 50  # of a longer method's path only so many steps are timed, unless it is timed whole
STATUS = Path("/proc/self/status")  # Linux's account of this process
PEAK_SIDE = 2048  # of the square matrices whose product shows the peak; of CUDA's, four times that


@dataclass(frozen=True)
class Speed:
    """What a method costs on full batches, the median over rounds.

    seconds: of one image.
    evaluations: network evaluations of one image.
    peak_share: the network's matrix work a second against the machine's measured peak.
    megabytes: the most memory resident (Linux) or allocated (CUDA) while it ran; None elsewhere.
    share_timed: the share of the method's steps that was timed; the rest is taken to cost the same.
    """

    seconds: float
    evaluations: int
    peak_share: float
    megabytes: float | None
    share_timed: float


def matrix_peak(device: torch.device, precision: Precision, *, rounds: int = 5) -> float:
    """Floating-point operations a second of a large square matrix product, the best round.

    Of random numbers: on equal ones some cards are faster than they ever are on images.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = PEAK_SIDE * (4 if device.type == "cuda" else 1)
    square = torch.randn(side, side, device=device).to(dtype)
    took = [_seconds(lambda: square @ square, device) for _ in range(rounds + 1)]
    return float(2.0 * side**3 / min(took[1:]))


def network_flops(detector: Detector) -> float:
    """Floating-point operations of one network evaluation of one image: convolutions, matrices."""
    x = torch.zeros(1, *detector.model.checkpoint.image_shape, device=detector.device)
    with FlopCounterMode(display=False) as counter:
        detector.denoiser(x, 0.5)
    return float(counter.get_total_flops())


def sample_pixels(
    detector: Detector, source: Source | None, count: int
) -> UInt8[Tensor, "b c h w"]:
    """Prepared images to time on: those of a source, or noise."""
    if source is not None:
        return torch.stack([detector.preparation(entry.load()) for entry in take(source, count)])
    shape = (count, *detector.model.checkpoint.image_shape)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


def measure_speed(
    detectors: Sequence[Detector],
    pixels: UInt8[Tensor, "b c h w"],
    *,
    rounds: int = 3,
    whole: bool = False,
    on_round: Callable[[], None] = lambda: None,
) -> list[Speed]:
    """Time detectors in turn, round after round, on the same images, each with all its attempts.

    Args:
        pixels: prepared images; at least `detector.batch` of them fill the network's rows.
        whole: time every step of methods with more than MOST_STEPS.
        on_round: called after each detector's round.

    Raises:
        SettingsError: no rounds.
    """
    if rounds < 1:
        raise SettingsError(f"rounds={rounds}: need at least 1")
    timed = [d if whole else _shortened(d) for d in detectors]
    seconds: list[list[float]] = [[] for _ in timed]
    memory: list[float | None] = [None for _ in timed]
    for detector in timed:  # first calls compile kernels and fill caches
        _briefly(detector).measure(pixels[: detector.batch])
    for _ in range(rounds):
        for i, detector in enumerate(timed):
            _forget_peak(detector.device)
            seconds[i].append(_seconds(lambda d=detector: d.measure(pixels), detector.device))  # type: ignore[misc]
            memory[i] = _peak_megabytes(detector.device)
            on_round()
    return [
        _speed(detector, short, float(np.median(took)) / len(pixels), megabytes)
        for detector, short, took, megabytes in zip(detectors, timed, seconds, memory, strict=True)
    ]


def seconds_an_image(detector: Detector, pixels: UInt8[Tensor, "b c h w"]) -> float:
    """About how long an image takes with all its attempts, by a look of a second or so."""
    short = _shortened(detector)
    _briefly(short).measure(pixels)
    seconds = _seconds(lambda: short.measure(pixels), detector.device)
    return seconds / len(pixels) * detector.method.evaluations / short.method.evaluations


def latency(
    detector: Detector, pixels: UInt8[Tensor, "b c h w"], *, rounds: int = 20
) -> tuple[float, float]:
    """Seconds to score one image alone, in a running process: the median and the 95% quantile.

    As a service would: images that look normal stop early if the model is calibrated for it.
    """
    score: Callable[[Tensor], object] = detector.score_pixels
    try:
        detector.judge.check()
    except CalibrationError:
        score = detector.measure
    score(pixels[:1])
    images = [pixels[i % len(pixels)][None] for i in range(rounds)]
    took = [_seconds(lambda p=image: score(p), detector.device) for image in images]  # type: ignore[misc]
    p50, p95 = np.quantile(took, [0.5, 0.95])
    return float(p50), float(p95)


def _speed(detector: Detector, timed: Detector, seconds: float, megabytes: float | None) -> Speed:
    share = timed.method.evaluations / detector.method.evaluations
    peak = matrix_peak(detector.device, detector.denoiser.precision)
    work = network_flops(detector) * timed.method.evaluations / seconds
    return Speed(
        seconds=seconds / share,
        evaluations=detector.method.evaluations,
        peak_share=work / peak,
        megabytes=megabytes,
        share_timed=share,
    )


def _with(detector: Detector, method: Method) -> Detector:
    return Detector(
        detector.model,
        method=method,
        device=detector.device,
        precision=detector.denoiser.precision,
        at_once=detector.redraw.at_once,
    )


def _shortened(detector: Detector) -> Detector:
    sampler = detector.method.sampler
    if sampler.steps <= MOST_STEPS:
        return detector
    return _with(detector, replace(detector.method, sampler=replace(sampler, steps=MOST_STEPS)))


def _briefly(detector: Detector) -> Detector:
    sampler = replace(detector.method.sampler, steps=1)
    return _with(detector, replace(detector.method, sampler=sampler))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _forget_peak(device: torch.device) -> None:
    """Start the account of the most memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def _peak_megabytes(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if not STATUS.exists():
        return None
    [line] = [x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6
