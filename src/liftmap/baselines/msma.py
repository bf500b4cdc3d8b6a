"""MSMA: how usual an image's noise norms are (Mahmood et al. 2021)."""

from jaxtyping import Float, UInt8
from torch import Tensor

from liftmap.baselines.on_diffusion import ByDensity
from liftmap.diffusion.noise_norms import LEVELS, noise_norms
from liftmap.images.prepare import to_model_range
from liftmap.stages.mixture import COMPONENTS


class MSMA(ByDensity):
    """ "Multiscale Score Matching for Out-of-Distribution Detection", Mahmood et al. 2021.

    The score network is asked about the clean image as if it were noisy, at ten noise levels
    (`noise_norms`), and a Gaussian mixture of 2, 4, ..., 20 components says how usual the ten norms
    of sigma times the score are.

    Departure: any diffusion model serves, see `noise_norms`.
    """

    candidates = COMPONENTS

    @property
    def evaluations(self) -> int:
        return LEVELS

    def answers(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return noise_norms(self.denoiser, to_model_range(pixels).to(self.device))
