"""From the attempts' distances to one score an image."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from liftmap.errors import SettingsError

TRIM = 0.2  # share of the attempts that the trimmed mean drops at each end


def _trimmed(distances: Tensor) -> Tensor:
    drop = int(TRIM * distances.shape[1])
    kept = distances.sort(dim=1).values[:, drop : distances.shape[1] - drop]
    return kept.mean(1)


AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    # of an even number, the mean of the two in the middle; torch.median takes the lower one
    "median": lambda distances: distances.quantile(0.5, dim=1),
    "mean": lambda distances: distances.mean(1),
    "trimmed": _trimmed,
}


def aggregate(distances: Float[Tensor, "b attempts"], how: str = "median") -> Float[Tensor, "b"]:
    """One score an image from the distances of its attempts; the paper's is the median.

    >>> import torch
    >>> aggregate(torch.tensor([[1.0, 2.0, 4.0, 9.0]])).item()
    3.0

    Raises:
        SettingsError: no such aggregate; the message lists them.
    """
    if how not in AGGREGATES:
        raise SettingsError(f"aggregate {how!r}: need one of {', '.join(AGGREGATES)}")
    return AGGREGATES[how](distances)
