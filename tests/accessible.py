"""What axe-core finds wrong with a page for people who can't see it or use no mouse."""

from typing import Any


def serious_findings(page: Any) -> list[str]:
    """The rules of WCAG 2 that the page breaks, of axe's two upper grades, with where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:120]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
