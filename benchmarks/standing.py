"""Where we stand beside the paper: the first table of docs/results/paper.md, and its picture.

Both are taken from what is committed: the AUROC from that page's Table 1, the intervals and the
published figures from docs/results/paper-intervals.md. The table is printed, to be put into the
page; nothing is measured.

    python benchmarks/standing.py --output docs/images/paper/standing.png
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results"
DEFAULT, ALONE = "combined", "LMD"  # columns of Table 1
NAMES = {DEFAULT: "our default", ALONE: "LMD alone"}
COLOURS = {DEFAULT: "tab:blue", ALONE: "tab:orange"}


@dataclass(frozen=True)
class Line:
    """AUROC on a pair of data sets, or the average: ours by column with intervals, the paper's."""

    pair: str
    ours: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    paper: float


def rows_of(page: Path, heading: str) -> Iterator[list[str]]:
    """The cells of the table of pairs below a heading, the table's head first."""
    text = page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1]
    found = re.search(r"^\| pair \|.*\n(?:^\|.*\n)+", text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{page}: no table of pairs below {heading!r}")
    for line in found[0].splitlines():
        if not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def standing() -> list[Line]:
    """A line for each pair, then the average."""
    intervals: dict[tuple[str, str], tuple[float, float]] = {}
    published: dict[str, float] = {}
    for pair, method, _, auroc, paper, *_ in list(
        rows_of(RESULTS / "paper-intervals.md", "Table 1")
    )[1:]:
        _, low, high = map(float, re.findall(r"\d\.\d+", auroc))
        intervals[pair, method] = (low, high)
        if method == ALONE:
            published[pair] = float(paper)
    head, *rows = rows_of(RESULTS / "paper.md", "Table 1")
    lines = []
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        pair = cells["pair"]
        if pair != "average" and pair not in published:
            continue  # the costs at the table's foot
        ours = {name: float(cells[name].split()[0]) for name in NAMES}
        if pair == "average":
            apart = float(cells[ALONE].split("(")[1].rstrip(")"))
            lines.append(Line(pair, ours, {}, round(ours[ALONE] - apart, 3)))
        else:
            lines.append(Line(pair, ours, {n: intervals[pair, n] for n in NAMES}, published[pair]))
    return lines


def draw(lines: list[Line], path: Path) -> None:
    """Save a PNG: a row a pair, our two methods with intervals, and the paper's figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(lines), 0, -1)
    for name, above in ((DEFAULT, 0.16), (ALONE, -0.16)):
        for place, line in zip(places, lines, strict=True):
            y, label = place + above, NAMES[name] if line is lines[0] else None
            axes.plot(line.ours[name], y, "o", markersize=5, color=COLOURS[name], label=label)
            if name in line.intervals:
                axes.plot(line.intervals[name], (y, y), linewidth=2, color=COLOURS[name])
    papers = [line.paper for line in lines]
    axes.plot(papers, list(places), "k|", markersize=16, markeredgewidth=1.5, label="paper")
    axes.axhline(1.5, color="grey", linewidth=0.8)
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(list(places), [line.pair for line in lines])
    axes.set_xlabel("AUROC, with 95% bootstrap intervals of ours; dotted: chance")
    axes.legend(loc="center left", bbox_to_anchor=(0.02, 0.42))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    asked = parser.parse_args()
    lines = standing()
    draw(lines, asked.output)
    print(f"| in-domain > OOD | {NAMES[DEFAULT]} | {NAMES[ALONE]} | paper |")
    print("|---|---|---|---|")
    for line in [lines[-1], *lines[:-1]]:
        bold = "**" if line.pair == "average" else ""
        cells = [line.pair, *(f"{line.ours[name]:.3f}" for name in NAMES), f"{line.paper:.3f}"]
        print("| " + " | ".join(f"{bold}{cell}{bold}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
