from pathlib import Path

import numpy as np
import pytest
from tiny import calibrated_model, save_images

from liftmap.errors import SettingsError, SourceError
from liftmap.evaluation.paper import ARTEFACTS, PAIRS, entrants_of, published
from liftmap.evaluation.reproduce import agenda, beside_the_paper, by_data_set, every_figure
from liftmap.images.entry import Source
from liftmap.images.sources import open_source


@pytest.mark.parametrize(
    ("table", "column", "average"),
    [
        ("table1", "Likelihood", 0.581), ("table1", "IC", 0.833), ("table1", "LR", 0.783),
        ("table1", "Pretrained", 0.821), ("table1", "AE-MSE", 0.651), ("table1", "AE-MH", 0.679),
        ("table1", "AnoGAN", 0.658), ("table1", "LMD", 0.907), ("table3", "MSE", 0.750),
        ("table3", "SSIM", 0.800), ("table3", "deep features", 0.902),
        ("table4", "denoising t=250", 0.781), ("table4", "denoising t=500", 0.901),
        ("table4", "denoising t=750", 0.820), ("table4", "inpainting", 0.907),
    ],
)  # fmt: skip
def test_the_columns_average_to_what_the_paper_prints(
    table: str, column: str, average: float
) -> None:
    """A slip in one of the hundred values would show in its column's printed average."""
    assert np.mean(ARTEFACTS[table].published[column]) == pytest.approx(average, abs=1e-3)


def test_every_table_has_a_value_a_pair_and_an_entrant_a_column() -> None:
    for artefact in ARTEFACTS.values():
        assert {len(values) for values in artefact.published.values()} == {len(artefact.pairs)}
        assert set(artefact.published) <= set(entrants_of(artefact, "paper"))
        keys = [(e.key, e.column) for e in entrants_of(artefact, "fast").values()]
        assert len(set(keys)) == len(keys), "each column is another method"
    assert len(PAIRS) == 12
    assert published(ARTEFACTS["table1"], "LMD", ("CIFAR10", "SVHN")) == 0.992
    assert published(ARTEFACTS["table1"], "MSMA", ("SVHN", "CIFAR10")) == 0.976
    assert published(ARTEFACTS["table1"], "MSMA", ("MNIST", "KMNIST")) is None


@pytest.fixture
def models(tmp_path: Path) -> Path:
    calibrated_model(tmp_path / "models" / "mnist")
    return tmp_path / "models"


def test_pairs_without_model_or_data_are_left_out_with_the_reason(
    models: Path, tmp_path: Path
) -> None:
    images = save_images(tmp_path / "images", 4)

    def find(name: str, split: str) -> Source:
        if name == "KMNIST":
            raise SourceError("KMNIST is not here")
        return open_source(images)

    made = agenda(PAIRS, models, find)
    assert set(made.pairs) == {("MNIST", "FashionMNIST"), ("FashionMNIST", "MNIST")}
    assert made.missing["MNIST", "KMNIST"] == "KMNIST is not here"
    assert "no such folder" in made.missing["CIFAR10", "SVHN"]
    assert [Path(task.model).name for task in made.tasks] == ["mnist", "fashion-mnist"]

    def nothing(name: str, split: str) -> Source:
        raise SourceError("no data")

    with pytest.raises(SettingsError, match="none of these pairs can be run"):
        agenda(PAIRS, models, nothing)


def record(method: str, auroc: float, **changes: object) -> dict[str, object]:
    return {
        "in": "m", "out": "k", "method": method, "seed": 0, "auroc": auroc,
        "auroc_low": auroc - 0.01, "auroc_high": auroc + 0.01,
        "fpr95": 0.2, "fpr95_low": 0.1, "fpr95_high": 0.3,
        "n_in": 5, "n_out": 6, "skipped": 1, "network_evaluations": 28, "images_per_second": 4.0,
    } | changes  # fmt: skip


def test_several_seeds_give_their_mean_and_a_line_each() -> None:
    two = [record("LMD", 0.95), record("LMD", 0.97, seed=1)]
    records = by_data_set(two, {("MNIST", "KMNIST"): ("m", "k")})
    assert list(beside_the_paper(ARTEFACTS["table1"], records))[1][1] == "0.960 (-0.024)"
    assert [row[2] for row in every_figure(ARTEFACTS["table1"], records)] == ["seed", "0", "1"]


def test_an_average_is_compared_only_where_all_its_pairs_were_published() -> None:
    """MSMA's is known for four pairs; their mean is no yardstick for the mean of others."""
    pairs = {("CIFAR10", "SVHN"): ("m", "k"), ("CIFAR100", "SVHN"): ("m", "f")}
    both = [record("MSMA", 0.95), record("MSMA", 0.99, out="f")]
    rows = list(beside_the_paper(ARTEFACTS["table1"], by_data_set(both, pairs)))
    assert [row[1] for row in rows[1:4]] == ["0.950 (-0.007)", "0.990", "0.970"]
    rows = list(beside_the_paper(ARTEFACTS["table1"], by_data_set(both[:1], pairs)))
    assert rows[2][1] == "0.950 (-0.007)"


def test_values_stand_beside_the_published_ones() -> None:
    sources = {("MNIST", "KMNIST"): ("m", "k"), ("MNIST", "FashionMNIST"): ("m", "f")}
    of_lmd = [record("LMD", 0.95), record("LMD", 0.99, out="f", images_per_second=2.0)]
    of_new = [record("new", 0.5, n_in=3), record("new", 0.7, n_in=3, out="f")]
    records = by_data_set([*of_lmd, *of_new], sources)
    rows = list(beside_the_paper(ARTEFACTS["table1"], records))
    assert rows == [
        ["pair", "LMD", "new"],
        ["MNIST > KMNIST", "0.950 (-0.034)", "0.500"],
        ["MNIST > FashionMNIST", "0.990 (-0.009)", "0.700"],
        ["average", "0.970 (-0.022)", "0.600"],
        ["images of a set, at most", "6", "6"],
        ["ms an image", "375.0", "250.0"],
        ["network evaluations, at most", "28", "28"],
    ]
    [heading, first, *_] = every_figure(ARTEFACTS["table1"], records)
    assert dict(zip(heading, first, strict=True)) == {
        "pair": "MNIST > KMNIST",
        "method": "LMD",
        "seed": "0",
        "AUROC (95%)": "0.9500 (0.9400 to 0.9600)",
        "published": "0.984",
        "FPR95 (95%)": "0.2000 (0.1000 to 0.3000)",
        "images": "5 + 6",
        "skipped": "1",
    }
