import asyncio

import pytest
import torch
from tiny import decide_by, pixels, small_detector, small_method

from liftmap.detector import Detector
from liftmap.serve.batcher import Batcher, BusyError, OneScore


@pytest.fixture
def detector() -> Detector:
    made = small_detector(small_method(attempts=2, steps=1))
    decide_by(made, [i / 40 for i in range(1, 41)])
    return made


def test_requests_at_the_same_time_share_a_batch_and_get_their_own_scores(
    detector: Detector,
) -> None:
    images = pixels(6)
    batches: list[int] = []

    async def ask() -> list[list[OneScore]]:
        batcher = Batcher(detector, gather=0.2)
        batcher.on_batch = lambda count, seconds: batches.append(count)
        batcher.start()
        asked = [batcher.score(list(images[i : i + 2])) for i in (0, 2, 4)]
        found = await asyncio.gather(*asked)
        await batcher.stop()
        return found

    found = asyncio.run(ask())
    assert batches == [6]
    expected = detector.score_pixels(images).scores
    scores = torch.tensor([one.score for pair in found for one in pair])
    assert torch.allclose(scores, expected, rtol=1e-3)


def test_what_was_taken_is_answered_before_it_stops(detector: Detector) -> None:
    async def ask() -> list[OneScore]:
        batcher = Batcher(detector)
        batcher.start()
        asked = asyncio.create_task(batcher.score(list(pixels(5))))
        await asyncio.sleep(0)
        await batcher.stop()
        with pytest.raises(BusyError):
            await batcher.score(list(pixels(1)))
        return await asked

    assert len(asyncio.run(ask())) == 5


def test_a_request_that_does_not_fit_is_refused_whole(detector: Detector) -> None:
    async def ask() -> int:
        batcher = Batcher(detector, most_waiting=3)
        batcher.start()
        first = asyncio.create_task(batcher.score(list(pixels(2))))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="try again in"):
            await batcher.score(list(pixels(2)))
        assert len(await first) == 2
        await batcher.stop()
        return batcher.pending

    assert asyncio.run(ask()) == 0


def test_a_failure_reaches_each_request_and_the_next_batch_is_scored(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = Batcher._score, []

    def once(batcher: Batcher, images: list[torch.Tensor]) -> list[OneScore]:
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError("the disk caught fire")
        return score(batcher, images)

    monkeypatch.setattr(Batcher, "_score", once)

    async def ask() -> list[OneScore]:
        batcher = Batcher(detector)
        batcher.start()
        with pytest.raises(RuntimeError, match="caught fire"):
            await batcher.score(list(pixels(2)))
        found = await batcher.score(list(pixels(1)))
        await batcher.stop()
        return found

    assert len(asyncio.run(ask())) == 1
