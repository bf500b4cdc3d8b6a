"""Checkpoints of other projects: diffusers folders as they ship, score_sde's ddpm_continuous .pth."""

from pathlib import Path
from typing import Any


def read_diffusers(folder: Path) -> dict[str, Any]:
    """An unconditional diffusers folder as Checkpoint's fields."""
    raise NotImplementedError(folder)
