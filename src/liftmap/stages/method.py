"""A method: every choice of Lift, Map, Detect, and the named ones."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from liftmap.diffusion.noise_norms import LEVELS
from liftmap.diffusion.samplers import SamplerSettings
from liftmap.errors import SettingsError
from liftmap.settings import settings_key
from liftmap.stages.inpaint import Resampling, evaluations
from liftmap.stages.masks import MaskSettings

PAIR = 2  # attempts between two looks at a score: the alternating mask then hid every pixel
# sampler, steps, start, attempts, distance and early stop come from docs/results/steps.md
SEVEN = SamplerSettings("renoise", steps=7, spacing="quadratic", start=0.5)
FIVE = SamplerSettings("renoise", steps=5, spacing="quadratic", start=0.5)


@dataclass(frozen=True)
class Method:
    """Every choice of Lift, Map, Detect that changes a score; saved with the model.

    noised_to: None hides parts. A noise time in (0, 1] noises the whole image to it and hides
        nothing (section 3.4.4).
    distance: a name, or several joined by "+": an attempt then counts by the one that stands out
        most, each on the scale of in-domain images (`scales.Scales`).
    norms: also count how usual the noise norms are, on the scale of in-domain images. What they
        say is added to every attempt's evidence (Mahmood et al. 2021; the model's `density`).
    early_stop: the quantile of in-domain scores below which an image is settled, looked at after
        each pair of attempts. None: all attempts. Needs a calibration of the method's own.
    seed: the user's own; noise depends on it and on the image alone.
    """

    mask: MaskSettings = field(default_factory=MaskSettings)
    sampler: SamplerSettings = SEVEN
    resampling: Resampling = field(default_factory=Resampling)
    noised_to: float | None = None
    attempts: int = 4
    distance: str = "lpips+ssim"
    aggregate: str = "median"
    norms: bool = False
    early_stop: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise SettingsError(f"attempts={self.attempts}: need at least 1")
        if self.early_stop is not None and not 0 < self.early_stop < 1:
            raise SettingsError(
                f"early_stop={self.early_stop}: need a quantile between 0 and 1, or None"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations of one image that takes all attempts."""
        return round(self.evaluations_of(float(self.attempts)))

    def evaluations_of(self, attempts: float) -> float:
        """Network evaluations of an image, or of a mean one, that takes so many attempts."""
        return attempts * self.attempt_evaluations + (LEVELS if self.norms else 0)

    @property
    def attempt_evaluations(self) -> int:
        """Network evaluations of one attempt."""
        share = 1.0 if self.noised_to is None else self.noised_to
        return max(1, round(evaluations(self.sampler, self.resampling) * share))

    @property
    def looks(self) -> Sequence[int]:
        """The numbers of attempts after which an image is looked at, and may take no more."""
        return () if self.early_stop is None else range(PAIR, self.attempts, PAIR)

    @property
    def key(self) -> str:
        """A name for exactly these settings; a calibration holds for its own method only."""
        return settings_key(self)

    @property
    def former_key(self) -> str:
        """What liftmap called these settings up to format 1: a hash of them all."""
        stored = asdict(self)
        stored["start"] = stored.pop("noised_to")
        text = json.dumps(stored, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: "Method") -> int:
        """How many settings differ, those of mask and sampler counted one by one."""
        mine, its = (dict(_leaves(asdict(method))) for method in (self, other))
        return sum(mine[name] != its[name] for name in mine)


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as single ones with long names."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


METHODS: dict[str, Method] = {
    "fast": Method(sampler=FIVE, norms=True, early_stop=0.7),
    # Lift, Map, Detect alone
    "redraws": Method(early_stop=0.7),
    # where missing a few more is better than waiting: a thousandth of the paper's evaluations
    "quick": Method(sampler=FIVE, attempts=2),
    # the authors' protocol at 32x32: 1,000 Euler-Maruyama steps, ten attempts, LPIPS, median
    "paper": Method(
        sampler=SamplerSettings("euler-maruyama", steps=1000), attempts=10, distance="lpips"
    ),
}


def find_method(name: str) -> Method:
    """The preset of that name.

    Raises:
        SettingsError: no such method; the message lists them.
    """
    if name not in METHODS:
        raise SettingsError(f"method {name!r}: need one of {', '.join(METHODS)}")
    return METHODS[name]
