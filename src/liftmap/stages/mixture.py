"""A Gaussian mixture over a few statistics of an image: how usual they are in-domain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from liftmap.errors import SettingsError

MOST = 10_000  # images that a mixture is fitted to: more cost time and change it little
HELD = 5  # one in so many decides between candidates


@dataclass(frozen=True)
class Candidate:
    """How many components, and which covariances (scikit-learn's names)."""

    components: int
    covariance: str = "full"


# of score norms, as Mahmood et al. 2021 (MSMA) try them
COMPONENTS = tuple(Candidate(k) for k in range(2, 21, 2))


class Mixture(NamedTuple):
    """A density over standardised statistics.

    centre, spread: (d,), each statistic's mean and deviation over the in-domain images;
    weights: (k,); means: (k, d); covariances: (k, d, d) of the standardised statistics.
    """

    centre: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]
    weights: Float[Tensor, " k"]
    means: Float[Tensor, "k d"]
    covariances: Float[Tensor, "k d d"]

    @classmethod
    def fit(
        cls, statistics: Float[Tensor, "n d"], candidates: Sequence[Candidate], *, seed: int = 0
    ) -> "Mixture":
        """The candidate that gives held-out images the highest likelihood, fitted to all.

        Departure from the papers, which choose by tenfold cross-validation: one split in five.

        Raises:
            SettingsError: too few images for any candidate.
        """
        from sklearn.mixture import GaussianMixture

        x = statistics[:MOST].double().numpy()
        centre, spread = x.mean(0), x.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        x = (x - centre) / spread
        held = np.arange(len(x)) % HELD == 0

        def fitted(candidate: Candidate, rows: np.ndarray) -> GaussianMixture:
            return GaussianMixture(
                candidate.components,
                covariance_type=candidate.covariance,
                max_iter=200,
                random_state=seed,
            ).fit(rows)

        possible = [c for c in candidates if c.components < (~held).sum()]
        if not possible:
            raise SettingsError(
                f"{len(x)} in-domain images: a mixture of "
                f"{min(c.components for c in candidates)} components needs more"
            )
        best = max(possible, key=lambda c: fitted(c, x[~held]).score(x[held]))
        chosen = fitted(best, x)
        return cls(
            centre=torch.from_numpy(centre),
            spread=torch.from_numpy(spread),
            weights=torch.from_numpy(chosen.weights_),
            means=torch.from_numpy(chosen.means_),
            covariances=_covariances(torch.from_numpy(chosen.covariances_), best, x.shape[1]),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: part.tolist() for name, part in self._asdict().items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Mixture":
        """Undo `to_json`; raises what malformed data raises."""
        parts = {name: torch.tensor(part, dtype=torch.float64) for name, part in stored.items()}
        return cls(**parts)

    def log_density(self, statistics: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Natural logarithm of the density of the standardised statistics."""
        x = (statistics.double() - self.centre) / self.spread
        lower = torch.linalg.cholesky(self.covariances)
        # torch.distributions does the same, and imports a computer algebra system for it
        off = torch.linalg.solve_triangular(lower, (x - self.means[:, None]).mT, upper=False)
        logarithms = lower.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        each = -0.5 * (off.square().sum(1) + x.shape[1] * math.log(2 * math.pi)) - logarithms
        return torch.logsumexp(self.weights.log()[:, None] + each, 0)


def _covariances(given: Tensor, candidate: Candidate, size: int) -> Float[Tensor, "k d d"]:
    """scikit-learn's four forms of covariances as full matrices."""
    if candidate.covariance == "full":
        return given
    if candidate.covariance == "tied":
        return given.expand(candidate.components, size, size).contiguous()
    diagonals = given if candidate.covariance == "diag" else given[:, None].expand(-1, size)
    return torch.diag_embed(diagonals)
