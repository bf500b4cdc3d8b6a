"""From pixels to what is measured of them: lift, map, and compare, for a whole batch.

hidden (masks) -> redraws (inpaint) -> distances to the original, and noise norms.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from liftmap.diffusion.denoiser import Denoiser
from liftmap.diffusion.noise import ImageNoise, attempt_seed
from liftmap.diffusion.noise_norms import noise_norms
from liftmap.errors import ModelError
from liftmap.images.prepare import fingerprint, to_model_range
from liftmap.stages.distances import load_distances
from liftmap.stages.inpaint import inpaint, noise_and_denoise
from liftmap.stages.masks import hidden_masks
from liftmap.stages.method import PAIR, Method

EVEN = 16  # larger batches of redraws are multiples of this
KEPT_BUSY = 256 * 1024  # pixels at once that keep two cores busy: 256 redraws of 32x32

Made = TypeVar("Made")


class Measured(NamedTuple):
    """What scores come from, on the CPU.

    distances: NaN in attempts that an image did not take. norms: no levels unless the method asks
    for them. attempts: how many each image took.
    """

    distances: Float[Tensor, "b attempts kinds"]
    norms: Float[Tensor, "b levels"]
    attempts: Int[Tensor, " b"]

    @classmethod
    def whole(
        cls, distances: Float[Tensor, "b attempts kinds"], norms: Float[Tensor, "b levels"]
    ) -> "Measured":
        """Of images that took every attempt."""
        return cls(distances, norms, torch.full((len(distances),), distances.shape[1]))

    def of(self, chosen: Tensor) -> "Measured":
        """Those images' alone, by their places or by a mask."""
        return Measured(*(part[chosen] for part in self))

    def first(self, attempts: int) -> "Measured":
        """As if no image had taken more attempts."""
        return Measured(self.distances[:, :attempts], self.norms, self.attempts.clamp_max(attempts))


class Pictures(NamedTuple):
    """What was done to one image, attempt by attempt.

    original, redraws: in [-1, 1]; hidden: True = redrawn; maps: each distance by pixel.
    """

    original: Float[Tensor, "c h w"]
    hidden: Bool[Tensor, "attempts 1 h w"]
    redraws: Float[Tensor, "attempts c h w"]
    maps: Float[Tensor, "attempts kinds h w"]


class _Batch(NamedTuple):
    """Images on the device, with what each distance compares redraws to, and their seeds."""

    original: Float[Tensor, "b c h w"]
    references: list[Any]
    seeds: list[int]


class Redraw:
    """Redraws images by a method and measures how far off the redraws are.

    What is measured is a function of the image and the method's seed, whatever the batch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        method: Method,
        size: tuple[int, int],
        *,
        at_once: int | None = None,
    ) -> None:
        """Prepare for images of height and width `size`.

        Args:
            at_once: redraws that the network handles together; halved when memory runs out.
        """
        self.denoiser, self.method = denoiser, method
        height, width = size
        self.masks = hidden_masks(method.mask, height, width, method.attempts, seed=method.seed)
        self.distances = load_distances(method.distance)
        self.at_once = at_once or max(1, KEPT_BUSY // (height * width))

    def batch(self, *, stops: bool) -> int:
        """Images whose attempts, or first pair of attempts if some stop there, are done at once."""
        attempts = self.method.attempts
        return max(1, self.at_once // (min(PAIR, attempts) if stops else attempts))

    def __call__(
        self,
        pixels: UInt8[Tensor, "b c h w"],
        settled: Callable[[Measured], Bool[Tensor, " b"]] | None = None,
    ) -> Measured:
        """Measure images; those that `settled` says so of at a look take no more attempts.

        One that looks odd takes every attempt: nothing is flagged on less evidence than before, and
        an image is let go only after each of its pixels was hidden once (by an alternating mask).
        """
        method, batch = self.method, self._batch(pixels)
        found = Measured.whole(
            torch.full((len(pixels), method.attempts, len(self.distances)), float("nan")),
            self._norms(batch),
        )
        going, first = torch.arange(len(pixels)), 0
        for last in [*(method.looks if settled else ()), method.attempts]:
            if not len(going):
                break
            found.distances[going, first:last] = self._measure(batch, going, first, last)
            if settled and last < method.attempts:
                calm = settled(found.of(going).first(last))
                found.attempts[going[calm]] = last
                going = going[~calm]
            first = last
        return found

    def pictures(self, pixels: UInt8[Tensor, "1 c h w"]) -> tuple[Pictures, Measured]:
        """One image's redraws and maps, with what every attempt of it measures."""
        batch, attempts = self._batch(pixels), self.method.attempts
        redraws, maps, values = [], [], []
        for redraw, index, _ in self._redraws(batch, torch.arange(1), 0, attempts):
            redraws.append(redraw.cpu())
            pairs = zip(self.distances.values(), batch.references, strict=True)
            maps.append(torch.stack([d.maps(r, redraw, index).float().cpu() for d, r in pairs], 1))
            values.append(self._values(batch.references, redraw, index))
        shown = (torch.cat(parts)[:attempts] for parts in (redraws, maps))
        distances = torch.cat(values)[None, :attempts]
        return (
            Pictures(batch.original[0].cpu(), self.masks, *shown),
            Measured.whole(distances, self._norms(batch)),
        )

    def _batch(self, pixels: Tensor) -> _Batch:
        original = to_model_range(pixels).to(self.denoiser.device)
        references = [d.reference(original) for d in self.distances.values()]
        return _Batch(original, references, [fingerprint(image) for image in pixels])

    def _norms(self, batch: _Batch) -> Float[Tensor, "b levels"]:
        """The images' noise norms; without levels if the method doesn't ask."""
        total = len(batch.original)
        if not self.method.norms:
            return torch.empty(total, 0)
        parts = self._parts(total, lambda rows: noise_norms(self.denoiser, batch.original[rows]))
        return torch.cat([norms[: _distinct(rows)] for norms, rows in parts])

    def _measure(self, batch: _Batch, images: Tensor, first: int, last: int) -> Tensor:
        """(images, attempts from first to last, kinds) of the distances."""
        found = torch.empty(len(images) * (last - first), len(self.distances))
        for redraw, index, rows in self._redraws(batch, images, first, last):
            found[rows] = self._values(batch.references, redraw, index)
        return found.view(len(images), last - first, len(self.distances))

    def _values(self, references: list[Any], redraw: Tensor, index: Tensor) -> Tensor:
        """(redraws, kinds) of the distances."""
        pairs = zip(self.distances.values(), references, strict=True)
        return torch.stack([d.values(r, redraw, index).float().cpu() for d, r in pairs], 1)

    def _redraws(
        self, batch: _Batch, images: Tensor, first: int, last: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """Some attempts of some images: (redraws, image index, rows), row = image and attempt."""
        each = last - first

        def redraw(rows: Tensor) -> tuple[Tensor, Tensor]:
            index, attempt = images[rows // each], first + rows % each
            pairs = zip(index.tolist(), attempt.tolist(), strict=True)
            seeds = [attempt_seed(batch.seeds[i], self.method.seed, a) for i, a in pairs]
            hidden = self.masks[attempt].to(self.denoiser.device)
            return self._redraw(batch.original[index], hidden, seeds), index

        for (redrawn, index), rows in self._parts(len(images) * each, redraw):
            yield redrawn, index.to(self.denoiser.device), rows

    def _redraw(self, original: Tensor, hidden: Tensor, seeds: list[int]) -> Tensor:
        method, (channels, height, width) = self.method, original.shape[1:]
        noise = ImageNoise(seeds, (channels, height, width), original.device)
        if method.noised_to is not None:
            return noise_and_denoise(
                self.denoiser, original, noise, method.sampler, method.noised_to
            )
        return inpaint(self.denoiser, original, hidden, noise, method.sampler, method.resampling)

    def _parts(
        self, total: int, make: Callable[[Tensor], Made]
    ) -> Iterator[tuple[Made, Int[Tensor, " n"]]]:
        """What is made of so many rows, `at_once` at a time, and of which rows.

        The last row may come several times, alike each time (`_evened`).
        """
        begin = 0
        while begin < total:
            rows = _evened(torch.arange(begin, min(total, begin + self.at_once)))
            try:
                made = make(rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._halve(error)
                continue
            yield made, rows
            begin = int(rows[-1]) + 1

    def _halve(self, error: Exception) -> None:
        """Take fewer rows at once after memory ran out; any other error goes on."""
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise error
        if self.at_once == 1:
            raise ModelError("not enough memory for a single redraw: free some") from error
        self.at_once //= 2


def _evened(rows: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """The rows, of more than 32 the last repeated until they are a multiple of 16.

    The CPU's library keeps code and buffers for each shape of batch that it has met. How many
    images go on after a look differs from batch to batch, and how many a service has to score at
    once; so they share a few shapes.
    """
    if len(rows) <= 2 * EVEN:
        return rows
    return torch.cat([rows, rows[-1:].expand(-len(rows) % EVEN)])


def _distinct(rows: Tensor) -> int:
    """How many rows there are, without the last one's repetitions."""
    return int(rows[-1] - rows[0]) + 1
