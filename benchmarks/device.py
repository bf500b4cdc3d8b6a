"""What a machine with a GPU should show: whether scores are right there, then how fast they come.

Parts run in the order of what one wants to know first and print as they go; what no time is left
for is named. Without a GPU the same parts run on the CPU, for a trial.

    python benchmarks/device.py --minutes 3 --normal FashionMNIST/t10k-images-idx3-ubyte.gz[:1000]
"""

import argparse
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from scipy.stats import betabinom
from torch import Tensor

from liftmap.cli.demo import NORMAL, SAMPLES, STRANGE
from liftmap.detector import Detector
from liftmap.diffusion.denoiser import Parametrisation, Precision
from liftmap.diffusion.network import PRESETS, Patched, build_unet
from liftmap.diffusion.on_card import CardTrainer
from liftmap.diffusion.process import VP
from liftmap.diffusion.schedule import TrainingSettings
from liftmap.diffusion.training import loss_of
from liftmap.errors import CalibrationError
from liftmap.evaluation.entrants import ENTRANTS
from liftmap.evaluation.speed import matrix_peak, measure_speed, network_flops
from liftmap.images.prepare import Preparation, to_model_range
from liftmap.images.sources import open_source
from liftmap.images.store import PreparedImages, store_source
from liftmap.model import Model
from liftmap.scorer import Scorer

METHODS = ("fast", "redraws", "quick")
MODEL = "fashion-mnist"
NEAR = 1e-3  # how far float32 scores may be from the CPU's, in spreads of in-domain scores
SCORED = 8  # images that each baseline scores
HELD_OUT = 40  # images that baselines which need it calibrate on
LEARNT = 50  # steps that baselines with a network of their own learn for: whether it runs, no more


@dataclass
class Session:
    """What the parts share; `left` is the time."""

    device: torch.device
    ends: float
    at_once: list[int]
    pixels: Tensor = field(repr=False)  # packaged samples
    normal: PreparedImages = field(repr=False)  # in-domain images that the model never saw

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def detector(self, method: str, precision: Precision, at_once: int | None = None) -> Detector:
        """The packaged model on the device."""
        return Detector.from_pretrained(
            MODEL, method=method, device=self.device, precision=precision, at_once=at_once
        )


def near_the_cpu(session: Session) -> None:
    """Scores here against the CPU's in float32; float32 by TF32 is what torch does unless told."""
    print("| method | precision | images | largest difference | other attempts | within 1e-3 |")
    print("|---|---|---|---|---|---|")
    pixels = session.pixels[::2]
    for method in METHODS:
        on_cpu = Detector.from_pretrained(MODEL, method=method, device="cpu", precision="float32")
        expected = on_cpu.score_pixels(pixels)
        runs: list[tuple[str, Precision, bool]] = [
            ("float32", "float32", False),
            ("float32 by TF32", "float32", True),
            ("bf16", "bf16", True),
        ]
        for name, precision, tf32 in runs:
            torch.backends.cudnn.allow_tf32 = tf32
            found = session.detector(method, precision).score_pixels(pixels)
            apart = float((found.scores - expected.scores).abs().max())
            others = int((found.attempts != expected.attempts).sum())
            print(
                f"| {method} | {name} | {len(pixels)} | {apart:.1e} | {others} "
                f"| {'yes' if apart < NEAR else 'no'} |",
                flush=True,
            )


def same_in_any_batch(session: Session) -> None:
    """Scores of a batch against the same images alone, in sevens and backwards."""
    print("| precision | alone | in sevens | backwards |")
    print("|---|---|---|---|")
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    for precision in precisions:
        detector, pixels = session.detector("fast", precision), session.pixels
        whole = detector.scores(pixels)
        ways = [
            torch.cat([detector.scores(pixels[i : i + 1]) for i in range(SCORED)]),
            torch.cat([detector.scores(part) for part in torch.split(pixels, 7)]),
            detector.scores(pixels.flip(0)).flip(0),
        ]
        apart = [f"{float((way - whole[: len(way)]).abs().max()):.1e}" for way in ways]
        print(f"| {precision} | {' | '.join(apart)} |", flush=True)


def a_step_of_training(session: Session) -> None:
    """Loss and gradients of one batch, here and on the CPU; then whether training goes down."""
    images = to_model_range(session.normal.pixels(torch.arange(16)))
    draw = torch.Generator().manual_seed(0)
    noise, t = torch.randn(images.shape, generator=draw), torch.linspace(0.01, 1, len(images))
    torch.backends.cudnn.allow_tf32 = False
    found = []
    for device in (torch.device("cpu"), session.device):
        network = Patched(Model.load(MODEL).checkpoint.unet, 2).to(device)
        batch = [x.to(device) for x in (images, t, noise)]
        loss = loss_of(network, VP(), Parametrisation(), *batch)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.cpu().flatten() for p in network.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat(gradients)))
    (loss_cpu, on_cpu), (loss_here, here) = found
    apart = float((here - on_cpu).norm() / on_cpu.norm())
    print(f"one batch in float32: loss {loss_here:.6f}, on the CPU {loss_cpu:.6f};", end=" ")
    print(f"gradients {apart:.1e} apart", flush=True)
    channels, height, width = session.normal.shape
    unet = build_unet(PRESETS["tiny"], height=height, width=width, channels=channels)
    steps, batch_size = (300, 256) if session.device.type == "cuda" else (3, 8)
    trainer = CardTrainer(
        Patched(unet, 2),
        VP(),
        Parametrisation(),
        TrainingSettings(steps=steps, batch=batch_size, noise_times="log-normal"),
        session.normal.take(torch.arange(len(session.normal))).to(session.device),
    )
    before, begun = trainer.held_out_loss(trainer.images), time.monotonic()
    trainer.record()
    recorded = time.monotonic()
    for _ in range(steps):
        trainer.step()
    trainer.loss()
    rate = steps * batch_size / (time.monotonic() - recorded)
    after = trainer.held_out_loss(trainer.images)
    print(
        f"{steps} steps of {batch_size} images from fresh weights, bf16: loss {before:.3f} to "
        f"{after:.3f}; ready after {recorded - begun:.1f} s, then {rate:.0f} images/s",
        flush=True,
    )


def throughput(session: Session) -> None:
    """Images a second of each method, and how much of the card's matrix peak that is."""
    peak = matrix_peak(session.device, "bf16")
    print(f"bf16 matrix peak {peak / 1e12:.1f} TFLOP/s\n")
    print("| what | at once | images/s | evaluations an image | of the peak | memory, MB |")
    print("|---|---|---|---|---|---|")
    for rows in session.at_once:
        detector = session.detector("fast", "bf16", rows)
        x = torch.randn(rows, *detector.model.checkpoint.image_shape, device=session.device)
        took = min(_seconds(lambda d=detector, x=x: d.denoiser(x, 0.3)) for _ in range(5))  # type: ignore[misc]
        share = network_flops(detector) * rows / took / peak
        print(f"| the network alone | {rows} | {rows / took:.0f} | 1 | {share:.1%} | |", flush=True)
    for rows in session.at_once:
        detectors = [session.detector(method, "bf16", rows) for method in METHODS]
        wanted = torch.arange(max(d.batch for d in detectors)) % len(session.normal)
        pixels = session.normal.pixels(wanted)
        speeds = measure_speed(detectors, pixels, rounds=2)
        for method, speed in zip(METHODS, speeds, strict=True):
            print(
                f"| {method} | {rows} | {1 / speed.seconds:.0f} | {speed.evaluations} "
                f"| {speed.peak_share:.1%} | {speed.megabytes or 0:.0f} |",
                flush=True,
            )


def false_alarms(session: Session) -> None:
    """How many normal images that the model never saw are flagged, at three rates."""
    print("| method | rate asked for | flagged | of | expected in 95% of cases |")
    print("|---|---|---|---|---|")
    for method in METHODS:
        detector = session.detector(method, "bf16")
        calibration, n = detector.judge.decides_by, len(session.normal)
        rows = torch.split(torch.arange(n), detector.batch)
        scores = torch.cat([detector.scores(session.normal.pixels(part)) for part in rows])
        known = len(calibration.scores)
        for rate in (0.01, 0.05, 0.1):
            flagged = int(detector.judge.decide(scores, rate).is_ood.sum())
            k = calibration.allowed(rate)
            low, high = betabinom.interval(0.95, n, k, known + 1 - k)
            print(
                f"| {method} | {rate:.0%} | {flagged} | {n} | {low:.0f} to {high:.0f} |", flush=True
            )


def baselines(session: Session) -> None:
    """Every method of the benchmark learns a little and scores once."""
    print(f"| method | ready in, s | {SCORED} images in, s | finite |")
    print("|---|---|---|---|")
    pixels = session.pixels[:SCORED]
    for name, entrant in sorted(ENTRANTS.items(), key=lambda item: item[0] == "lmd-paper"):
        if not entrant.installed or session.left < 0:
            print(f"| {name} | {'no time' if entrant.installed else 'not installed'} | | |")
            continue
        try:
            scorer = entrant.make(Model.load(MODEL), 0)
            if hasattr(scorer, "steps"):
                scorer.steps = LEARNT
            learnt = _seconds(lambda s=scorer: _teach(s, session.normal))  # type: ignore[misc]
            found: list[Tensor] = []
            took = _seconds(lambda s=scorer, f=found: f.append(s.scores(pixels)))  # type: ignore[misc]
            finite = "yes" if bool(found[0].isfinite().all()) else "no"
            print(f"| {name} | {learnt:.2f} | {took:.2f} | {finite} |", flush=True)
        except Exception as error:  # one that fails is a finding, and the others still run
            print(f"| {name} | {type(error).__name__}: {error} | | |", flush=True)


def _teach(scorer: Scorer, images: PreparedImages) -> None:
    """Let it learn what it can't score without."""
    try:
        scorer.scores(images.pixels(torch.arange(1)))
    except CalibrationError:
        scorer.learn(*images.hold_out(min(HELD_OUT, len(images) // 5)))


def _seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - begun


PARTS: tuple[Callable[[Session], None], ...] = (
    near_the_cpu,
    same_in_any_batch,
    a_step_of_training,
    throughput,
    false_alarms,
    baselines,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--normal", default=f"{SAMPLES}:{NORMAL}", help="source, not trained on")
    parser.add_argument("--at-once", type=int, nargs="+", default=[256, 1024, 4096])
    asked = parser.parse_args()
    ends = time.monotonic() + 60 * asked.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    print(f"{card}; torch {torch.__version__}; {torch.get_num_threads()} CPU threads")
    prepare = Preparation(32, 32, 1)
    samples = [e for name in (NORMAL, STRANGE) for e in open_source(f"{SAMPLES}:{name}")]
    pixels = torch.stack([prepare(entry.load()) for entry in samples])
    with TemporaryDirectory() as folder:
        normal = store_source(open_source(asked.normal), prepare, Path(folder) / "normal.u8")
        session = Session(device, ends, asked.at_once, pixels, normal)
        for part in PARTS:
            title = (part.__doc__ or "").strip()
            if session.left < 0:
                print(f"\nNo time left: {title}", flush=True)
                continue
            print(f"\n## {title}\n", flush=True)
            begun = time.monotonic()
            try:
                part(session)
            except Exception:  # the other parts still tell
                traceback.print_exc()
            print(f"\n({time.monotonic() - begun:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
