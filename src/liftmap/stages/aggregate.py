"""From what each attempt says of an image to one score."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from liftmap.errors import SettingsError

TRIM = 5  # the trimmed mean drops one in five attempts at each end, rounded down


def _trimmed(distances: Tensor) -> Tensor:
    attempts = distances.shape[1]
    drop = attempts // TRIM
    kept = distances.sort(dim=1).values[:, drop : attempts - drop].mean(1)
    # sorting puts a NaN last, where it would be dropped: a failed attempt must stay visible
    return kept.masked_fill(distances.isnan().any(1), float("nan"))


AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    # of an even number, the mean of the two in the middle; torch.median takes the lower one
    "median": lambda distances: distances.quantile(0.5, dim=1),
    "mean": lambda distances: distances.mean(1),
    "trimmed": _trimmed,
}


def aggregate(distances: Float[Tensor, "b attempts"], how: str = "median") -> Float[Tensor, " b"]:
    """One score an image from the distances of its attempts, higher = more OOD; NaN stays NaN.

    The paper's is the median (Liu et al. 2024, Alg. 1), which few bad redraws can't move.

    >>> import torch
    >>> aggregate(torch.tensor([[1.0, 2.0, 4.0, 9.0]])).item()
    3.0

    Raises:
        SettingsError: no such aggregate (the message lists them), or no attempts.
    """
    if how not in AGGREGATES:
        raise SettingsError(f"aggregate {how!r}: need one of {', '.join(AGGREGATES)}")
    if not distances.shape[1]:
        raise SettingsError("0 attempts: need at least 1 to aggregate")
    return AGGREGATES[how](distances)
