"""Which column of a Parquet file holds the images, and where its paths may lead."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forms import png

from liftmap.errors import ImageError, SourceError
from liftmap.images.sources import open_source

IMAGES = [png(np.full((6, 8), shade, np.uint8)) for shade in (10, 20)]
OTHERS = [b"not", b"these"]


def table(at: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    made = pa.table(columns)
    pq.write_table(made.replace_schema_metadata(metadata) if metadata else made, at)
    return at


def shades(source: object) -> list[int]:
    return [int(np.asarray(entry.load())[0, 0]) for entry in source]  # type: ignore[attr-defined]


def marked(column: str) -> dict[str, str]:
    """As `datasets` marks a column of images."""
    features = {"mask": {"_type": "Value"}, column: {"_type": "Image"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        ({"mask": OTHERS, "image": IMAGES}, None),
        ({"a": OTHERS, "b": OTHERS, "picture": IMAGES}, None),
        ({"embedding": OTHERS, "x": [{"bytes": i, "path": None} for i in IMAGES]}, None),
        ({"mask": OTHERS, "strange": IMAGES}, marked("strange")),
        ({"label": [1, 2], "only": IMAGES}, None),
        ({"x": pa.array(IMAGES, pa.large_binary()), "label": ["a", "b"]}, None),
    ],
)
def test_the_image_column_is_found(
    tmp_path: Path, columns: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    assert shades(open_source(table(tmp_path / "p.parquet", columns, metadata))) == [10, 20]


def test_where_several_could_be_it_one_is_asked_for(tmp_path: Path) -> None:
    at = table(tmp_path / "p.parquet", {"before": OTHERS, "after": IMAGES})
    with pytest.raises(SourceError, match=r"before, after; name one with --column"):
        open_source(at)
    assert shades(open_source(at, column="after")) == [10, 20]


def test_paths_are_followed_within_the_files_folder(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a.png").write_bytes(IMAGES[0])
    (tmp_path / "secret.png").write_bytes(IMAGES[1])
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    paths = [
        "sub/a.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "gone.png",
        None,
    ]
    for columns in ({"file_name": paths}, {"x": [{"bytes": None, "path": p} for p in paths]}):
        first, *others = open_source(table(inside / "p.parquet", columns))
        assert np.asarray(first.load())[0, 0] == 10
        reasons = ["leads out", "leads out", "leads out", "No such file", "neither"]
        for entry, reason in zip(others, reasons, strict=True):
            with pytest.raises(ImageError, match=reason):
                entry.load()


def test_ids_are_unique_whatever_the_column_says(tmp_path: Path) -> None:
    columns = {"id": ["a", None, "a", "row 1"], "image": IMAGES * 2}
    source = open_source(table(tmp_path / "p.parquet", columns))
    assert [e.id for e in source] == ["a", "row 1", "a#2", "row 1#2"]
    lines = list(source.tally.lines())
    assert "2 ids were there already: they got a number, as in name#2" in lines
    assert "the id is empty: the row's number stands for it" in lines
    assert [
        e.id for e in open_source(table(tmp_path / "n.parquet", {"id": [3, 4], "image": IMAGES}))
    ] == ["3", "4"]


def test_a_folder_of_shards_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        columns = {"image": [{"bytes": IMAGES[number], "path": "same.png"}]}
        table(tmp_path / "data" / f"train-{number:05}-of-00002.parquet", columns)
    (tmp_path / "README.md").write_text("about")
    source = open_source(tmp_path)
    assert shades(source) == [10, 20]
    assert [e.id for e in source] == [f"data/train-{n:05}-of-00002.parquet/0" for n in range(2)]
    assert source.count() == 2
