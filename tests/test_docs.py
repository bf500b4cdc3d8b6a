"""What the documentation shows is what the program does."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image
from tiny import SMALL, pixels, save_images
from typer.testing import CliRunner

from liftmap.cli import app
from liftmap.diffusion import network

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# training as short as a test can bear; everything else as it stands there
SHORT = (("--minutes 40", "--steps 2 --batch 4"), ("minutes=40", "steps=2, batch=4"))


def blocks(page: Path) -> Iterator[str]:
    """The page's indented code, with continued lines joined."""
    for block in re.findall(r"(?:^ {4}.*\S.*\n)+", page.read_text(), re.MULTILINE):
        yield block.replace("\\\n", " ")


def commands(page: Path) -> list[str]:
    """The lines that call liftmap."""
    lines = [line.strip() for block in blocks(page) for line in block.splitlines()]
    return [line for line in lines if line.startswith("liftmap ")]


EVERY = [(page, line) for page in PAGES for line in commands(page)]


def test_commands_are_found() -> None:
    assert len(EVERY) > 20
    assert len({line.split()[1] for _, line in EVERY}) > 6, "different ones"


@pytest.mark.parametrize(("page", "line"), EVERY, ids=lambda x: getattr(x, "name", None))
def test_the_command_takes_what_is_written(page: Path, line: str) -> None:
    """Parsed with the options and types that the command has, though not run."""
    words = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(app)
    context = group.make_context("liftmap", list(words))
    name, command, rest = group.resolve_command(context, words)
    command.make_context(name, rest, parent=context)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(network.PRESETS, "tiny", SMALL)
    save_images(tmp_path / "normal_photos", 520)  # 26 held out: enough for a rate of 5%
    save_images(tmp_path / "new_normal_photos", 60)
    for name in ("new_photos", "normal_test", "strange"):
        save_images(tmp_path / name, 4)
    image = Image.fromarray(pixels(1, seed=7)[0, 0].numpy())
    for name in ("a.jpg", "b.png", "new_photos/odd.png"):
        image.save(tmp_path / name)
    return tmp_path


def shortened(text: str) -> str:
    for long, short in SHORT:
        text = text.replace(long, short)
    return text


@pytest.mark.parametrize("page", ["README.md", "docs/own-images.md"])
def test_a_pages_commands_work_one_after_the_other(page: str, here: Path) -> None:
    for line in commands(ROOT / page):
        asked = shlex.split(shortened(line), comments=True)[1:]
        done = CliRunner().invoke(app, asked)
        allowed = (0, 3) if "--fail-if-flagged" in asked else (0,)
        assert done.exit_code in allowed, f"{line}: {done.output}"
    assert (here / "report.html").exists()


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=str)
def test_python_blocks_run(page: Path, here: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(shortened(block), page.name, "exec"), {})


def test_links_lead_somewhere() -> None:
    """mkdocs checks those within docs; these are the README's and what stands beside it."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
