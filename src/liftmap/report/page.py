"""The page itself: a template, a style and a script in one file that works offline."""

import json
from importlib.resources import files
from pathlib import Path

from liftmap.files import atomic_path
from liftmap.report.collect import Page


def render(page: Page) -> str:
    """The page as HTML with everything in it: no network, no other file."""
    from jinja2 import Environment, select_autoescape

    here = files("liftmap.report")
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    # a closing tag inside the data would end the script element
    data = json.dumps(page.as_json()).replace("<", "\\u003c")
    return template.render(
        page=page,
        data=data,
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
    )


def write_report(page: Page, path: Path) -> None:
    """Write the page as one HTML file.

    Raises:
        OutputError: the file can't be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(render(page), encoding="utf-8")
