"""Every error that liftmap raises on purpose: one tree, each message names value, need and fix."""


class LiftmapError(Exception):
    """Base of all errors that liftmap raises on purpose."""


class SettingsError(LiftmapError, ValueError):
    """A setting is out of its range, unknown, or contradicts another."""


class SourceError(LiftmapError):
    """A source of images can't be opened, or holds no images at all."""


class ImageError(LiftmapError, ValueError):
    """One image can't be used. In a batch it costs that image, never the run."""


class ModelError(LiftmapError):
    """A model folder or checkpoint is missing, damaged, of the wrong shape, or unsafe to read."""


class CalibrationError(LiftmapError):
    """A decision was asked for that the calibration scores can't support."""


class OutputError(LiftmapError):
    """A result can't be written, or belongs to another run than the one that continues it."""


class MissingExtraError(LiftmapError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'liftmap[{extra}]'")
