"""Images in an object store that speaks S3's language, here moto's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import pixels, save_images

from liftmap.errors import ImageError, SourceError
from liftmap.images.sources import open_source

moto = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The options of an address that lead to the store."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = moto.ThreadedMotoServer(port=0)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="photos")
        client.put_object(Bucket="photos", Key="papers/notes.txt", Body=b"no image")
        client.put_object(Bucket="photos", Key="in/sub/bad.png", Body=b"no image")
        yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        server.stop()


def put(store: str, folder: Path) -> None:
    from pyarrow import fs

    fs.copy_files(str(folder), f"s3://photos/in{store}")


def test_images_below_an_address_are_found_and_read(store: str, tmp_path: Path) -> None:
    put(store, save_images(tmp_path / "images", 3))
    source = open_source(f"s3://photos/in{store}")
    entries = list(source)
    assert [e.id for e in entries] == ["000.png", "001.png", "002.png", "sub/bad.png"]
    for entry, image in zip(entries[:3], pixels(3), strict=True):
        assert np.array_equal(np.asarray(entry.load()), image[0].numpy())
    with pytest.raises(ImageError, match="not an image"):
        entries[3].load()


def test_a_stamp_changes_with_the_object(store: str, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 3)
    put(store, folder)
    before = [entry.stamp for entry in open_source(f"s3://photos/in{store}")]
    assert None not in before
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes() + b"more")
    put(store, folder)
    after = [entry.stamp for entry in open_source(f"s3://photos/in{store}")]
    assert before[1] != after[1] and before[3] == after[3]


def test_a_part_of_an_address_and_a_single_id(store: str, tmp_path: Path) -> None:
    put(store, save_images(tmp_path / "images", 3))
    assert [e.id for e in open_source(f"s3://photos/in{store}[1:3]")] == ["001.png", "002.png"]
    source = open_source(f"s3://photos/in{store}")
    assert source.find is not None  # type: ignore[attr-defined]
    assert source.find("002.png").load().size == (32, 32)  # type: ignore[attr-defined]
    with pytest.raises(ImageError, match="can't be read"):
        source.find("nowhere.png").load()  # type: ignore[attr-defined]


def test_what_is_not_there_is_named(store: str) -> None:
    with pytest.raises(SourceError, match="s3://nowhere/x"):
        list(open_source(f"s3://nowhere/x{store}"))
    with pytest.raises(SourceError, match="no images in it"):
        list(open_source(f"s3://photos/papers{store}"))
    with pytest.raises(SourceError, match="can't be opened"):
        open_source("what://is/this")
