"""liftmap.json as earlier versions of liftmap wrote it, turned into the present format.

1  liftmap 0.1: calibrations by the hash of all their method's settings
2  judges; says neither who wrote the network's files nor whether copies were kept together
3  the present one
"""

from pathlib import Path
from typing import Any

from liftmap.diffusion.foreign import ships_scheduler

FORMAT = 3


def upgraded(about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """liftmap.json of a folder in the present format; raises what malformed data raises."""
    if about["format"] == 1:
        about = _from_format_1(about)
    if about["format"] < 3:
        about = _from_format_2(about, folder)
    return about


def _from_format_1(about: dict[str, Any]) -> dict[str, Any]:
    """liftmap.json of liftmap 0.1 as the present format has it."""
    judges = []
    for stored in about.get("calibrations", {}).values():
        method = dict(stored["method"])
        method["noised_to"] = method.pop("start", None)
        rest = {"scores": stored["scores"], "map_top": stored.get("map_top"), "precision": None}
        judges.append({"method": method, **(stored["rule"] or {}), **rest})
    training = about.get("training")
    if training is not None:  # models from before there was a least have none
        training = training | {"hold_out": {"least": 0} | training["hold_out"]}
    optional = {"preparation": about.get("preparation"), "density": about.get("density")}
    return about | optional | {"training": training, "judges": judges}


def _from_format_2(about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """liftmap.json of format 2 as the present format has it.

    It didn't say who wrote the network's files. A hold-out then parted copies.
    """
    network = "diffusers" if ships_scheduler(folder) else "liftmap"
    training = about["training"]
    if training is not None:
        training = training | {"hold_out": {"copies_together": False} | training["hold_out"]}
    return about | {"network": network, "training": training}
