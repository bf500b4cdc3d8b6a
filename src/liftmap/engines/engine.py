"""Where scoring runs: the one way from a source to a table, whichever engine does the work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from liftmap.detector import Detector
from liftmap.engines.local import Summary, Upto, score_source
from liftmap.engines.ray import Cluster, score_on_ray
from liftmap.errors import SettingsError
from liftmap.images.entry import Source


@dataclass(frozen=True)
class Engine:
    """What scores a source into a table: this process, or Ray's workers into a folder of parts."""

    name: str = "local"
    address: str | None = None
    workers: int = 2
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray"):
            raise SettingsError(f"--engine {self.name}: need local or ray")

    def table(self, folder: Path, name: str) -> Path:
        """Where a table of that name goes."""
        return folder / (f"{name}.parquet" if self.name == "local" else name)

    def score(
        self,
        detector: Detector,
        source: Source,
        output: Path,
        to: Upto,
        on_batch: Callable[[Summary], None],
        *,
        false_alarms: float = 0.05,
    ) -> Summary:
        """Score every image of a source into a table; raises as `score_source` does."""
        if self.name == "local":
            return score_source(
                detector, source, output, false_alarms=false_alarms, to=to, on_batch=on_batch
            )
        if output.suffix:
            raise SettingsError(f"--output {output}: Ray's workers write a folder of parts")
        return score_on_ray(
            detector,
            source,
            output,
            Cluster(self.address, self.workers, self.gpus_per_worker),
            false_alarms=false_alarms,
            to=to,
            on_part=on_batch,
        )
