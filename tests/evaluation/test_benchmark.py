from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import (
    decide_by,
    pixels,
    save_grey_generator,
    save_images,
    small_method,
    small_model,
    trained,
)

from liftmap.baselines.msma import MSMA
from liftmap.detector import Detector
from liftmap.errors import ModelError, OutputError, SourceError
from liftmap.evaluation.benchmark import (
    BenchmarkListener,
    Participant,
    Task,
    run_benchmark,
    table_rows,
    write_benchmark,
)
from liftmap.evaluation.cells import Cell
from liftmap.evaluation.entrants import find_entrants, lama, lmd, lmd_by_each
from liftmap.images.entry import Source, take
from liftmap.images.sources import open_source
from liftmap.images.store import HoldOut, PreparedImages
from liftmap.stages.mixture import Candidate
from liftmap.stages.scales import Scale, Scales


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(MSMA, "candidates", [Candidate(1)])
    trained(small_model(), HoldOut(0.5, 100, 0)).save(tmp_path / "model")
    images = open_source(save_images(tmp_path / "images", 40))
    (tmp_path / "images" / "003.png").write_text("no image")
    (tmp_path / "images" / "030.png").write_text("no image")
    name = str(tmp_path / "images")
    inside, outside = open_source(f"{name}[30:40]"), open_source(f"{name}[0:8]")
    return Task(str(tmp_path / "model"), take(images, 30), inside, [outside])


def kept(folder: Path) -> pa.Table:
    return pq.read_table(folder / "cells.parquet")


def test_a_rerun_scores_nothing_and_gives_the_same_table(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    listener = BenchmarkListener(on_cell=lambda method, source, images: scored.append(method))
    folder = tmp_path / "b"
    first = run_benchmark([task], find_entrants(["msma"]), folder, listener=listener)
    assert scored == ["preparing", "msma learns", "msma", "msma"]
    [record] = first
    assert (record["n_in"], record["n_out"], record["skipped"]) == (9, 7, 2)
    assert 0 <= record["auroc_low"] <= record["auroc"] <= record["auroc_high"] <= 1

    def never(*args: object) -> None:
        raise AssertionError("nothing is left to score")

    monkeypatch.setattr(MSMA, "answers", never)
    assert run_benchmark([task], find_entrants(["msma"]), folder) == first


def test_a_further_method_adds_its_own_cells_only(task: Task, tmp_path: Path) -> None:
    scored: list[str] = []
    listener = BenchmarkListener(on_cell=lambda method, source, images: scored.append(method))
    run_benchmark([task], find_entrants(["msma"]), tmp_path / "b", listener=listener)
    scored.clear()
    records = run_benchmark(
        [task], find_entrants(["msma", "lmd-quick"]), tmp_path / "b", listener=listener
    )
    assert scored == ["lmd-quick learns", "lmd-quick", "lmd-quick"]
    assert [r["method"] for r in records] == ["msma", "lmd-quick"]
    assert kept(tmp_path / "b")["method"].to_pylist().count("MSMA") == 2


def test_what_was_learnt_is_kept_and_shared(task: Task, tmp_path: Path) -> None:
    told: list[str] = []
    listener = BenchmarkListener(on_cell=lambda method, source, images: told.append(method))
    folder = tmp_path / "b"
    run_benchmark([task], find_entrants(["mahalanobis"]), folder, listener=listener)
    assert "mahalanobis learns" in told
    (folder / "cells.parquet").unlink()  # as if it had been killed while it scored
    told.clear()
    run_benchmark([task], find_entrants(["mahalanobis"]), folder, listener=listener)
    assert told == ["mahalanobis", "mahalanobis"]
    for path in [folder / "cells.parquet", *(folder / "learnt").glob("*/*")]:
        path.unlink()  # as if it had been killed while it wrote what it had learnt
    told.clear()
    run_benchmark([task], find_entrants(["mahalanobis"]), folder, listener=listener)
    assert told[0] == "mahalanobis learns"
    entrants = find_entrants(["ae-mse", "ae-mh"])
    assert len({e.learns for e in entrants.values()}) == 1
    assert len({e.key for e in entrants.values()}) == 2


def test_several_distances_share_the_redraws_and_score_as_each_alone(
    task: Task, tmp_path: Path
) -> None:
    told: list[str] = []
    listener = BenchmarkListener(on_cell=lambda method, source, images: told.append(method))
    both = small_method()
    shared = lmd_by_each(replace(both, distance="lpips+mse"))
    entrants = {
        "both: lpips": shared[0],
        "both: mse": shared[1],
        "lpips": lmd(both),
        "mse": lmd(replace(both, distance="mse")),
    }
    records = run_benchmark([task], entrants, tmp_path / "b", listener=listener)
    assert told == ["both: lpips"] * 2 + ["lpips"] * 2 + ["mse"] * 2
    assert [r["auroc"] for r in records[:2]] == [r["auroc"] for r in records[2:]]


def test_seeds_are_cells_of_their_own_and_the_table_gives_their_spread(
    task: Task, tmp_path: Path
) -> None:
    records = run_benchmark([task], find_entrants(["lmd-quick"]), tmp_path / "b", seeds=[0, 1])
    assert [r["seed"] for r in records] == [0, 1]
    assert kept(tmp_path / "b")["seed"].to_pylist() == [0, 0, 1, 1]
    heading, row = table_rows(records)
    assert heading[0] == "method" and heading[1].endswith("images[0:8]")
    values = [r["auroc"] for r in records]
    assert row[1] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    assert row[2] == f"{np.mean(values):.4f}"


def test_the_tables_are_written_as_parquet_markdown_and_latex(tmp_path: Path) -> None:
    record = {
        "model": "m", "in": "d/in_a", "out": "d/b", "method": "lmd", "seed": 0, "auroc": 0.9,
        "auroc_low": 0.8, "auroc_high": 0.95, "network_evaluations": 40, "images_per_second": 2.0,
    }  # fmt: skip
    write_benchmark([record, record | {"method": "msma", "auroc": 0.5}], tmp_path)
    assert pq.read_table(tmp_path / "benchmark.parquet")["auroc"].to_pylist() == [0.9, 0.5]
    lines = (tmp_path / "benchmark.md").read_text().splitlines()
    assert lines[0] == "| method | d/in_a > d/b | average | evaluations at most | images/s |"
    assert lines[2] == "| lmd | 0.9000 (0.8000 to 0.9500) | 0.9000 | 40 | 2.0 |"
    tex = (tmp_path / "benchmark.tex").read_text()
    assert r"d/in\_a $>$ d/b" in tex and tex.startswith(r"\begin{tabular}{lrrrr}")


def test_bad_requests_are_named(task: Task, tmp_path: Path) -> None:
    run_benchmark([task], find_entrants(["msma"]), tmp_path / "b")
    table = tmp_path / "b" / "cells.parquet"
    table.write_bytes(table.read_bytes()[:40])
    with pytest.raises(OutputError, match=r"is damaged, .* put a copy of it back, or delete it"):
        run_benchmark([task], find_entrants(["msma"]), tmp_path / "b")
    path = tmp_path / "images.u8"
    path.write_bytes(pixels(4).numpy().tobytes())
    with pytest.raises(ModelError, match="does not say which images"):
        small_model().trained_split(PreparedImages(path, (1, 32, 32)))


def test_the_split_is_the_trainings_own(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "images.u8"
    path.write_bytes(pixels(10).numpy().tobytes())
    images = PreparedImages(path, (1, 32, 32))
    train, held = trained(small_model(), HoldOut(0.3, 9, 0), seed=4).trained_split(images)
    rest, expected = images.hold_out(3, seed=4)
    rows = torch.arange(3)
    assert torch.equal(held.pixels(rows), expected.pixels(rows))
    assert torch.equal(train.pixels(rows), rest.pixels(rows))
    assert len(held) == 3


def test_a_cell_belongs_to_a_files_content_wherever_it_lies(task: Task, tmp_path: Path) -> None:
    scored: list[str] = []
    listener = BenchmarkListener(on_cell=lambda method, source, images: scored.append(method))
    rows = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
    methods = find_entrants(["mahalanobis"])
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "x.npy", rows)
        moved = replace(task, outside=[open_source(f"{tmp_path / place / 'x.npy'}[2:6]")])
        run_benchmark([moved], methods, tmp_path / "b", listener=listener)
    assert scored.count("mahalanobis") == 2  # the in-domain images, and the array once
    np.save(tmp_path / "there" / "x.npy", 255 - rows)
    run_benchmark([moved], methods, tmp_path / "b", listener=listener)
    assert scored.count("mahalanobis") == 3


def test_new_images_under_old_names_are_scored_anew(task: Task, tmp_path: Path) -> None:
    """In a folder's part, and in what is prepared and learnt of the training images."""
    told: list[str] = []
    listener = BenchmarkListener(on_cell=lambda method, source, images: told.append(method))
    methods = find_entrants(["mahalanobis"])
    run_benchmark([task], methods, tmp_path / "b", listener=listener)
    for image, name in zip(pixels(2, seed=7), ("031.png", "035.png"), strict=True):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / name)
    told.clear()
    run_benchmark([task], methods, tmp_path / "b", listener=listener)
    assert told == ["mahalanobis"], "the in-domain images: training and the others are the same"
    scores = kept(tmp_path / "b")["scores"].to_pylist()
    assert len(scores) == 3 and scores[0] != scores[2]
    Image.fromarray(pixels(1, seed=8)[0, 0].numpy()).save(tmp_path / "images" / "020.png")
    told.clear()
    run_benchmark([task], methods, tmp_path / "b", listener=listener)
    assert told == ["preparing", "mahalanobis learns", "mahalanobis", "mahalanobis"]


def test_images_that_change_while_they_are_scored_are_not_kept(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = Participant._score

    def change(self: Participant, source: Source) -> Cell:
        found = scored(self, source)
        (tmp_path / "images" / "033.png").write_text("no image")
        return found

    monkeypatch.setattr(Participant, "_score", change)
    with pytest.raises(SourceError, match="have changed meanwhile: run again"):
        run_benchmark([task], find_entrants(["mahalanobis"]), tmp_path / "b")
    assert not (tmp_path / "b" / "cells.parquet").exists()


def test_lamas_cells_go_by_its_generators_content(tmp_path: Path) -> None:
    path = save_grey_generator(tmp_path / "g.pt")
    entrant, model = lama(path), small_model()
    before = entrant.used(model, 0)
    assert lama(path).used(model, 0) == before
    path.write_bytes(path.read_bytes() + b"x")
    assert entrant.used(model, 0) != before


def test_a_cell_says_what_it_is(task: Task, tmp_path: Path) -> None:
    run_benchmark([task], find_entrants(["mahalanobis"]), tmp_path / "b")
    [inside, outside] = kept(tmp_path / "b").to_pylist()
    assert (inside["name"], inside["method"]) == ("mahalanobis", "Mahalanobis")
    assert (inside["model"], inside["trained_on"]) == (task.model, task.train.name)
    assert (inside["source"], outside["source"]) == (task.inside.name, task.outside[0].name)
    assert (inside["images"], inside["skipped"], len(inside["scores"][0])) == (10, 1, 9)


def test_another_calibration_costs_only_the_cells_of_its_method(task: Task, tmp_path: Path) -> None:
    scored: list[str] = []
    listener = BenchmarkListener(on_cell=lambda method, source, images: scored.append(method))
    entrants = find_entrants(["mahalanobis", "msma"]) | {"lmd": lmd(small_method())}
    run_benchmark([task], entrants, tmp_path / "b", listener=listener)
    scored.clear()
    detector = Detector.from_pretrained(task.model, device="cpu")
    scales = Scales((-2.0, -1.0), (0.5, 0.5))
    decide_by(detector, [0.1, 0.2, 0.3], scales=scales, surprise=Scale(0.0, 1.0))
    detector.save(task.model, weights=False)
    run_benchmark([task], entrants, tmp_path / "b", listener=listener)
    assert scored == []
    detector = Detector.from_pretrained(task.model, method=small_method(), device="cpu")
    decide_by(detector, [0.1, 0.2, 0.3], settled=0.5)
    detector.save(task.model, weights=False)
    run_benchmark([task], entrants, tmp_path / "b", listener=listener)
    assert scored == ["lmd", "lmd"]
