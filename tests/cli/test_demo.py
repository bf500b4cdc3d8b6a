"""The packaged model and samples: what `liftmap demo` runs, on a few of the images."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from liftmap.cli import app, demo
from liftmap.model import Model
from liftmap.stages.method import METHODS


def test_the_demo_tells_clothes_from_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few.npz"
    with np.load(demo.SAMPLES) as samples:
        np.savez(few, **{name: samples[name][:8] for name in (demo.NORMAL, demo.STRANGE)})
    monkeypatch.setattr(demo, "SAMPLES", few)
    done = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = float(done.output.split("AUROC ")[1].split()[0])
    assert found > 0.8, "8 + 8 images: far above chance, however they fall"
    table = pq.read_table(tmp_path / "out" / "mnist.parquet").to_pylist()
    assert [row["id"] for row in table] == [str(i) for i in range(8)]
    for row in table:
        assert 0 < row["p_value"] <= 1
        assert 2 <= len(row["distances"]["lpips"]) == row["attempts"] <= METHODS["fast"].attempts
    with Image.open(tmp_path / "out" / "explained.png") as picture:
        assert picture.height > 600, "a row for each of six images"


def test_the_packaged_model_is_calibrated_and_small() -> None:
    folder = demo.SAMPLES.parent / "models" / "fashion-mnist"
    model = Model.load(folder)
    for method in ("fast", "quick"):
        judge = model.judge(METHODS[method])
        assert len(judge.decides_by.scores) == 1800, "2,000 held out, of which 200 gave the scales"
        assert (judge.settled is not None) == (METHODS[method].early_stop is not None)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 10_000_000
    assert (folder / "README.md").read_text().startswith("# fashion-mnist")
