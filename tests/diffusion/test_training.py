import copy
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from liftmap.diffusion.denoiser import Parametrisation
from liftmap.diffusion.network import Patched, Preset, build_unet
from liftmap.diffusion.process import VE, VP, SubVP, log_snr
from liftmap.diffusion.schedule import (
    ALL_TIMES,
    T_MIN,
    Progress,
    TrainingSettings,
    learning_rate,
    noise_times,
)
from liftmap.diffusion.training import Trainer, loss_of, plan_step
from liftmap.errors import ModelError, SettingsError

SMALL = Preset((32, 32), blocks=1, attention=(), patch=2)


class Blobs:
    """Smooth random images held in memory."""

    shape = (1, 16, 16)

    def __init__(self, count: int = 40) -> None:
        coarse = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        size = self.shape[1:]
        self._images = torch.nn.functional.interpolate(coarse, size, mode="bilinear") * 2 - 1

    def __len__(self) -> int:
        return len(self._images)

    def take(self, rows: Tensor) -> Tensor:
        return self._images[rows]


def network() -> Patched:
    torch.manual_seed(0)
    return Patched(build_unet(SMALL, height=16, width=16, channels=1), SMALL.patch)


def trainer(steps: int, **options: object) -> Trainer:
    settings = TrainingSettings(steps=steps, batch=8, warm_up=5, **options)  # type: ignore[arg-type]
    return Trainer(network(), VP(), Parametrisation(), settings, precision="float32")


def test_training_lowers_the_loss() -> None:
    losses = trainer(60).run(Blobs()).losses
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_resumed_run_is_the_same_as_one_that_never_stopped(tmp_path: Path) -> None:
    straight = trainer(8)
    straight.run(Blobs())
    first = trainer(8)
    state = tmp_path / "training.safetensors"

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(Blobs(), on_step=stop, on_save=lambda: first.save_state(state))
    second = trainer(8)
    second.load_state(state)
    assert second.progress.step == 3
    second.run(Blobs())
    assert second.progress.losses == pytest.approx(straight.progress.losses, rel=1e-5)
    for name, weight in straight.averaged_weights().items():
        assert torch.allclose(weight, second.averaged_weights()[name], atol=1e-6), name


def test_a_step_is_planned_from_seed_and_number_alone() -> None:
    settings = TrainingSettings(steps=1, batch=16, flip=True)
    one, again = (plan_step(5, 40, (1, 4, 4), settings, VP()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = plan_step(6, 40, (1, 4, 4), settings, VP())
    assert not torch.equal(one.noise, other.noise)
    assert 0 < one.flipped.sum() < 16


def test_every_image_comes_once_an_epoch() -> None:
    settings = TrainingSettings(steps=1, batch=16)
    rows = torch.cat([plan_step(i, 40, (1, 1, 1), settings, VP()).rows for i in range(5)])
    assert rows[:40].sort().values.tolist() == list(range(40))
    assert rows[40:80].sort().values.tolist() == list(range(40))
    assert rows[:40].tolist() != rows[40:80].tolist()


def test_noise_times_are_spread_evenly() -> None:
    settings = TrainingSettings(steps=1, batch=64)
    t = plan_step(0, 40, (1, 1, 1), settings, VP()).t.sort().values
    assert t[0] >= 1e-3
    assert t[-1] <= 1
    assert t.diff().max() < 2.1 / 64


@pytest.mark.parametrize("process", [VP(), SubVP(), VE()], ids=lambda p: type(p).__name__)
def test_log_normal_times_lie_where_scores_ask_and_everywhere_else_too(process: VP | VE) -> None:
    ranks = (torch.arange(2000) + 0.5) / 2000
    t = noise_times(ranks, process, "log-normal")
    assert T_MIN <= t.min() <= t.max() <= 1
    ratios = (-0.5 * log_snr(process, t.double())).exp()
    drawn = ratios[ranks >= ALL_TIMES]
    assert drawn.median().item() == pytest.approx(math.exp(-1.2), rel=0.01)
    within = (drawn > math.exp(-2.4)) & (drawn < 1)  # one deviation to either side
    assert within.double().mean().item() == pytest.approx(0.683, abs=0.01)
    everywhere = t[ranks < ALL_TIMES]
    assert everywhere.max() > 0.99
    assert everywhere.median().item() == pytest.approx(0.5, abs=0.01)


class Exact(torch.nn.Module):
    """Answers what the network should, for the one image it knows."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.answer


@pytest.mark.parametrize("target", ["noise", "v", "image", "score"])
@pytest.mark.parametrize("process", [VP(), SubVP(), VE()], ids=lambda p: type(p).__name__)
def test_the_loss_is_zero_for_the_right_answer(process: VP | VE, target: str) -> None:
    image, noise, t = torch.rand(6, 1, 4, 4), torch.randn(6, 1, 4, 4), torch.linspace(0.1, 1, 6)
    alpha = process.alpha(t.double()).float()[:, None, None, None]
    sigma = process.sigma(t.double()).float()[:, None, None, None]
    answer = {
        "noise": noise,
        "image": image,
        "v": alpha * noise - sigma * image,
        "score": -noise / sigma,
    }[target]
    loss = loss_of(Exact(answer), process, Parametrisation(target=target), image, t, noise)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    wrong = loss_of(Exact(answer + 1), process, Parametrisation(target=target), image, t, noise)
    assert wrong.item() > 1e-5


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = TrainingSettings(steps=100, warm_up=10)
    rates = [learning_rate(Progress(step), settings) for step in range(101)]
    assert rates[0] == pytest.approx(4e-5)
    assert max(rates) < 4e-4
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_a_time_budget_is_kept() -> None:
    timed = Trainer(
        network(),
        VP(),
        Parametrisation(),
        TrainingSettings(minutes=0.05, batch=8),
        precision="float32",
    )
    progress = timed.run(Blobs())
    assert 3.0 <= progress.seconds < 4.5


def test_the_average_follows_the_weights() -> None:
    made = trainer(3, ema=0.0)
    before = copy.deepcopy(made.averaged_weights())
    made.run(Blobs())
    after = made.averaged_weights()
    assert any((before[k] != after[k]).any() for k in before)
    assert all(torch.allclose(after[k], v) for k, v in made.network.state_dict().items())


def test_a_loss_that_is_no_number_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(3)
    monkeypatch.setattr(made, "step", lambda images: float("nan"))
    with pytest.raises(ModelError, match="loss nan at step 0: lower --learning-rate"):
        made.run(Blobs())


def test_damaged_and_foreign_states_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "training.safetensors"
    with pytest.raises(ModelError, match="nothing to resume"):
        trainer(1).load_state(state)
    state.write_bytes(b"half a file")
    with pytest.raises(ModelError, match="can't be read as a training state"):
        trainer(1).load_state(state)
    trainer(1).save_state(state)
    torch.manual_seed(0)
    wide = Preset((64, 64), blocks=1, attention=(), patch=2)
    other = Trainer(
        Patched(build_unet(wide, height=16, width=16, channels=1), 2),
        VP(),
        Parametrisation(),
        TrainingSettings(steps=1),
        precision="float32",
    )
    with pytest.raises(ModelError, match="of another network"):
        other.load_state(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of the two"),
        ({"steps": 1, "minutes": 1.0}, "give one of the two"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1, "ema": 1.0}, "ema=1.0"),
        ({"steps": 1, "noise_times": "often"}, "'often': need one of uniform, log-normal"),
    ],
)
def test_bad_settings_name_value_and_need(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainingSettings(**options)  # type: ignore[arg-type]


TWO_PROCESSES = """
import sys
sys.path[:0] = [{here!r}]
from test_training import Blobs, trainer
made = trainer(6)
losses = made.run(Blobs()).losses
if made.main:
    print("losses", *losses)
    weights = made.averaged_weights().values()
    print("weights", *(round(float(w.double().abs().sum()), 5) for w in weights))
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES.format(here=str(Path(__file__).parent)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    alone = trainer(6)
    alone.run(Blobs())
    assert [float(x) for x in lines["losses"]] == pytest.approx(alone.progress.losses, rel=1e-4)
    sums = [float(w.double().abs().sum()) for w in alone.averaged_weights().values()]
    assert [float(x) for x in lines["weights"]] == pytest.approx(sums, rel=1e-3)
