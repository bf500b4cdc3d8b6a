"""The shape of the house: short rooms, errors instead of asserts, a face that says what is public.

Layers and circles are the import linter's to see (pyproject.toml).
"""

import ast
from pathlib import Path

import pytest

import liftmap

SOURCE = Path(liftmap.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES, MOST_OF_FUNCTION, MOST_OF_DETECTOR = 350, 60, 250


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_short_and_check_by_errors(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (MOST_OF_DETECTOR if path.stem == "detector" else MOST_LINES)
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: assert is for tests"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # from the end of its signature on: a command's options are its interface
            lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            assert lines <= MOST_OF_FUNCTION, f"{path}:{node.lineno}: {node.name} has {lines} lines"


def test_all_that_is_public_can_be_imported_and_nothing_else_is() -> None:
    assert sorted(liftmap.__all__) == liftmap.__all__
    for public in liftmap.__all__:
        assert getattr(liftmap, public).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Checkpoint'"):
        _ = liftmap.Checkpoint
