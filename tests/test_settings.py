from dataclasses import asdict, dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftmap.errors import SettingsError
from liftmap.settings import changed_settings, read_settings, settings_key


@dataclass(frozen=True)
class Inner:
    name: str = "a"
    sides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    share: float = 0.5
    count: int = 1
    wanted: bool = False


@dataclass(frozen=True)
class Later:
    """`Outer` after somebody has added a setting."""

    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    share: float = 0.5
    count: int = 1
    wanted: bool = False
    added: str = "as before"


inners = st.builds(Inner, st.text(max_size=3), st.lists(st.integers()).map(tuple))
outers = st.builds(Outer, inners, st.none() | inners, st.floats(0, 1), st.integers(), st.booleans())


@given(outers)
def test_settings_come_back_from_plain_data(settings: Outer) -> None:
    assert read_settings(Outer, asdict(settings)) == settings


@given(outers, outers)
def test_a_key_names_exactly_the_settings(one: Outer, other: Outer) -> None:
    assert (settings_key(one) == settings_key(other)) == (one == other)


@given(outers)
def test_a_setting_that_is_added_at_its_default_changes_no_key(settings: Outer) -> None:
    later = read_settings(Later, asdict(settings))
    assert settings_key(later) == settings_key(settings)
    assert settings_key(replace(later, added="new")) != settings_key(settings)


def test_what_differs_from_the_defaults_is_told() -> None:
    assert changed_settings(Outer()) == {}
    assert changed_settings(Outer(Inner("b"), count=2)) == {"inner": {"name": "b"}, "count": 2}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"colour": 1}, "Outer has no colour: need some of inner, other, share, count, wanted"),
        ({"inner": {"name": 3}}, r"Inner.name=3: need a str"),
        ({"share": "half"}, r"Outer.share='half': need a float"),
        ({"count": True}, r"Outer.count=True: need a int"),
        ({"other": []}, r"Inner from \[\]: need an object"),
        ([], "need an object"),
    ],
)
def test_what_does_not_fit_is_named(data: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_settings(Outer, data)
