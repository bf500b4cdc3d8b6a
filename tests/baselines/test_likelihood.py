import io
import math

import numpy as np
import pytest
import torch
from exact import ExactDenoiser
from PIL import Image
from tiny import pixels, small_model

from liftmap.baselines.likelihood import COMPRESSORS, InputComplexity, Likelihood, code_length
from liftmap.diffusion.process import VP
from liftmap.errors import SettingsError


def test_bits_are_those_of_the_distribution_that_the_model_knows() -> None:
    """Grey levels from a wide normal: the expected length is its differential entropy in bits."""
    scorer = Likelihood(small_model(), device="cpu")
    scorer.denoiser = ExactDenoiser(VP(), [0.0], [0.3], [1.0])
    draw = torch.Generator().manual_seed(0)
    levels = 128 + 0.3 * 128 * torch.randn(4, 1, 32, 32, generator=draw)
    bits = scorer.scores(levels.round().clamp(0, 255).to(torch.uint8))
    entropy = math.log2(0.3 * 128 * math.sqrt(2 * math.pi * math.e))
    assert bits.mean().item() == pytest.approx(entropy, abs=0.05)
    assert scorer.evaluations > 10


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_codes_are_lossless_and_counted_in_bits_a_channel(compressor: str) -> None:
    image = pixels(1, channels=3)[0]
    with io.BytesIO() as file:
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array).save(file, **COMPRESSORS[compressor])
        assert code_length(image, compressor) == 8 * len(file.getvalue()) / (3 * 32 * 32)
        with Image.open(file) as back:
            assert np.array_equal(np.asarray(back), array)


def test_a_simple_image_is_coded_shorter_and_counts_as_odder() -> None:
    flat, noisy = torch.zeros(1, 32, 32, dtype=torch.uint8), pixels(1)[0].random_(0, 256)
    assert code_length(flat, "png") < 1 < 8 < code_length(noisy, "png")
    scorer = InputComplexity(small_model(), device="cpu")
    assert scorer.compare(torch.tensor([[3.0, 0.5], [3.0, 2.0]])).tolist() == [2.5, 1.0]


def test_an_unknown_compressor_is_refused() -> None:
    with pytest.raises(SettingsError, match="'zip': need one of png, jpeg2000, webp"):
        InputComplexity(small_model(), compressor="zip")
