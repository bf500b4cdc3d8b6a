from dataclasses import replace

import pytest
import torch
from tiny import pixels, small_detector, small_method

from liftmap.errors import ModelError
from liftmap.stages.redraw import Measured, Redraw


def test_what_settles_takes_no_more_attempts() -> None:
    """Some images settle at the first look, some at the second, the others never."""
    method = replace(small_method(attempts=6), distance="mse", early_stop=0.5)
    redraw, images = small_detector(method).redraw, pixels(9)
    whole, looks = redraw(images), []

    def settled(found: Measured) -> torch.Tensor:
        looks.append((len(found.distances), found.attempts.unique().tolist()))
        return torch.arange(len(found.distances)) % 3 == 0

    found = redraw(images, settled)
    assert looks == [(9, [2]), (6, [4])]
    assert found.attempts.tolist() == [2, 4, 6, 2, 6, 4, 2, 6, 6]
    for i, took in enumerate(found.attempts.tolist()):
        torch.testing.assert_close(found.distances[i, :took], whole.distances[i, :took])
        assert found.distances[i, took:].isnan().all()


def test_measured_parts_keep_together() -> None:
    found = small_detector(small_method(attempts=4)).measure(pixels(5))
    some = found.of(torch.tensor([3, 1])).first(2)
    assert torch.equal(some.distances, found.distances[[3, 1], :2])
    assert some.attempts.tolist() == [2, 2]


def test_fewer_are_redrawn_at_once_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small_detector(at_once=16)
    whole = detector.score_pixels(pixels(8)).scores
    real = Redraw._redraw

    def greedy(self: Redraw, original: torch.Tensor, *more: object) -> torch.Tensor:
        if len(original) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return real(self, original, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Redraw, "_redraw", greedy)
    assert torch.allclose(detector.score_pixels(pixels(8)).scores, whole, rtol=1e-3)
    assert detector.redraw.at_once == 4


def test_memory_for_nothing_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*args: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Redraw, "_redraw", greedy)
    with pytest.raises(ModelError, match="not enough memory for a single redraw"):
        small_detector().score_pixels(pixels(1))


def test_other_errors_are_not_taken_for_missing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Redraw, "_redraw", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        small_detector().score_pixels(pixels(1))
