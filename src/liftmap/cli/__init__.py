"""The `liftmap` command: parse, call, print. Heavy modules are imported where they are needed."""

from collections.abc import Callable

from liftmap.cli import check, models, paper, production, research, use
from liftmap.cli.base import app

COMMANDS: dict[str, Callable[..., None]] = {
    "check": check.check,
    "train": use.train,
    "calibrate": use.calibrate,
    "score": use.score,
    "explain": use.explain,
    "report": use.report,
    "watch": production.watch,
    "serve": production.serve,
    "evaluate": research.evaluate,
    "benchmark": research.benchmark,
    "reproduce": paper.reproduce,
    "speed": research.speed,
    "demo": models.demo,
    "info": models.info,
    "import-score-sde": models.import_score_sde,
}
for name, function in COMMANDS.items():
    app.command(name, cls=research.ListsMethods if name == "benchmark" else None)(function)


def main() -> None:
    """Entry point of `python -m liftmap`."""
    app(prog_name="liftmap")
