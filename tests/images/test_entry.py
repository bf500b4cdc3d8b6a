import os

from hypothesis import given
from hypothesis import strategies as some

from liftmap.images.entry import printable, raw_name


@given(some.binary(max_size=12) | some.text(max_size=8).map(lambda t: t.encode("utf-8", "ignore")))
def test_every_files_name_has_a_printable_id_of_its_own(name: bytes) -> None:
    given = os.fsdecode(name)
    id = printable(given)
    id.encode("utf-8")  # no surrogates
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in id)
    assert raw_name(id) == given


@given(some.text(alphabet="\\x5c0aF/", max_size=12))
def test_what_looks_escaped_already_is_told_apart(name: str) -> None:
    assert raw_name(printable(name)) == name


def test_ordinary_names_are_their_own_ids() -> None:
    for name in ("a/b.png", "Grüße 图.png", r"C:\new\xylophone.png", "it's [1] & more.jpg"):
        assert printable(name) == name == raw_name(name)


def test_any_text_at_all_has_one() -> None:
    assert printable("\ud83d") == r"\xed\xa0\xbd"
