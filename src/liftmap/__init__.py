"""liftmap finds the images that don't belong, from unlabelled in-domain images alone.

>>> from liftmap import Detector                               # doctest: +SKIP
>>> detector = Detector.from_pretrained("fashion-mnist")       # doctest: +SKIP
>>> detector.predict(["shirt.png", "cat.jpg"]).is_ood          # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from liftmap.errors import (
    CalibrationError,
    ImageError,
    LiftmapError,
    MissingExtraError,
    ModelError,
    OutputError,
    SettingsError,
    SourceError,
)

if TYPE_CHECKING:
    from liftmap.detector import Detector
    from liftmap.diffusion.samplers import SamplerSettings
    from liftmap.diffusion.schedule import TrainingSettings
    from liftmap.images.prepare import Preparation
    from liftmap.images.sources import open_source
    from liftmap.stages.calibrate import Calibration
    from liftmap.stages.masks import MaskSettings
    from liftmap.stages.method import Method

__all__ = [
    "Calibration",
    "CalibrationError",
    "Detector",
    "ImageError",
    "LiftmapError",
    "MaskSettings",
    "Method",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Preparation",
    "SamplerSettings",
    "SettingsError",
    "SourceError",
    "TrainingSettings",
    "open_source",
]
__version__ = "0.1.0"

# where each public name lives: torch is imported when one is first asked for, not for --help
_HOMES = {
    "Calibration": "liftmap.stages.calibrate",
    "Detector": "liftmap.detector",
    "MaskSettings": "liftmap.stages.masks",
    "Method": "liftmap.stages.method",
    "Preparation": "liftmap.images.prepare",
    "SamplerSettings": "liftmap.diffusion.samplers",
    "TrainingSettings": "liftmap.diffusion.schedule",
    "open_source": "liftmap.images.sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'liftmap' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
