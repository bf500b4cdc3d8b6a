"""Scores images of many requests together: a bounded queue, one worker, full batches."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from liftmap.detector import Detector

Answer = TypeVar("Answer")


class BusyError(Exception):
    """Too many images wait already; `after` is about how many seconds until there is room."""

    def __init__(self, after: float) -> None:
        super().__init__(f"too many images wait: try again in {after:.0f} s")
        self.after = after


class OneScore(NamedTuple):
    """What is said of one image."""

    score: float
    attempts: int


def model_thread() -> ThreadPoolExecutor:
    """One thread for a model, from its loading on.

    Each thread that computes has helpers of its own. Once there are more than cores, OpenMP lets
    them sleep between operations and no longer spin: the network then runs a quarter slower.
    """
    return ThreadPoolExecutor(1, "liftmap")


class Batcher:
    """Takes images from any number of coroutines and scores as many at once as fit.

    Everything that touches the model runs in one thread: batches, and whatever `call` is given. It
    should be loaded there too (`model_thread`).
    """

    def __init__(
        self,
        detector: Detector,
        *,
        most_waiting: int = 256,
        gather: float = 0.01,
        share: float = 0.1,
        thread: ThreadPoolExecutor | None = None,
    ):
        """Prepare; `start` sets to work.

        Args:
            most_waiting: images beyond this are refused.
            gather: seconds that a batch waits for its next image.
            share: it waits no longer than this share of what the last batch took, in all.
            thread: the model's, where it was loaded; a new one by default.
        """
        self.detector, self.most_waiting = detector, most_waiting
        self.gather, self.share = gather, share
        self._seconds = 0.0  # of the last batch
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[OneScore]]] = asyncio.Queue()
        self._pending = 0  # asked for and not answered
        self._thread = thread or model_thread()
        self._worker: asyncio.Task[None] | None = None
        self._rate = 10.0  # images a second, of late
        self.on_batch: Callable[[int, float], None] = lambda images, seconds: None

    @property
    def pending(self) -> int:
        """Images asked for and not yet answered."""
        return self._pending

    @property
    def running(self) -> bool:
        """Whether images are taken."""
        return self._worker is not None

    def start(self) -> None:
        """Begin to take images; within a running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Take no more, answer all that was taken, then end."""
        worker, self._worker = self._worker, None
        while worker and self._pending and not worker.done():
            await asyncio.sleep(0.01)
        if worker:
            worker.cancel()
        self._thread.shutdown()

    async def score(self, images: list[UInt8[Tensor, "c h w"]]) -> list[OneScore]:
        """Scores of prepared images, in their order.

        Raises:
            BusyError: not all of them fit into the queue, so that none was taken; or it is closing.
        """
        if not self.running or self._pending + len(images) > self.most_waiting:
            raise BusyError(max(1.0, self._pending / self._rate))
        self._pending += len(images)
        loop = asyncio.get_running_loop()
        asked: list[asyncio.Future[OneScore]] = []
        for image in images:
            asked.append(loop.create_future())
            self._waiting.put_nowait((image, asked[-1]))
        return await asyncio.gather(*asked)

    async def call(self, function: Callable[[], Answer]) -> Answer:
        """Run something else that needs the model, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            begun = loop.time()
            try:
                scores = await loop.run_in_executor(
                    self._thread, self._score, [image for image, _ in batch]
                )
            except Exception as error:  # whatever it was, each request must hear of it
                self._answer(batch, [error] * len(batch))
                continue
            seconds = self._seconds = loop.time() - begun
            self._rate = 0.8 * self._rate + 0.2 * len(batch) / max(seconds, 1e-3)
            self._answer(batch, scores)
            self.on_batch(len(batch), seconds)

    async def _next_batch(self) -> list[tuple[Tensor, asyncio.Future[OneScore]]]:
        """The first that waits, and what comes after it in close order, up to a full batch.

        Whoever was just answered asks again at about the same time: whole batches, not halves.
        """
        batch = [await self._waiting.get()]
        end = asyncio.get_running_loop().time() + max(self.gather, self.share * self._seconds)
        while len(batch) < self.detector.batch:
            left = end - asyncio.get_running_loop().time()
            try:
                wait = max(0.0, min(left, self.gather))
                batch.append(await asyncio.wait_for(self._waiting.get(), wait))
            except TimeoutError:
                break
        return batch

    def _score(self, images: list[Tensor]) -> list[OneScore]:
        found = self.detector.score_pixels(torch.stack(images))
        pairs = zip(found.scores.tolist(), found.attempts.tolist(), strict=True)
        return [OneScore(score, attempts) for score, attempts in pairs]

    def _answer(
        self,
        batch: list[tuple[Tensor, asyncio.Future[OneScore]]],
        answers: Sequence[OneScore | Exception],
    ) -> None:
        for (_, asked), answer in zip(batch, answers, strict=True):
            self._pending -= 1
            if asked.done():  # its request gave up
                continue
            if isinstance(answer, Exception):
                asked.set_exception(answer)
            else:
                asked.set_result(answer)
