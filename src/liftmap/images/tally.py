"""What a walk through a source passed over, so that it can be said once, at the end."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from liftmap.images.kinds import IMAGES, SOURCES, ending, is_hidden, is_meant, kind_of

MOST_NAMED = 8  # endings, folders


@dataclass
class Tally:
    """Counts of one walk.

    endings: files that are no images, by the end of their name. containers: those among them that
    are sources of their own. hidden: files and folders that are hidden or left by a system.
    unlisted: folders and archives that could not be listed to their end, and why.
    renamed: ids that were there already.
    notes: further sentences, each with how often it holds.
    """

    endings: Counter[str] = field(default_factory=Counter)
    containers: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    unlisted: dict[str, str] = field(default_factory=dict)
    renamed: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def become(self, other: "Tally") -> None:
        """Say what the other says."""
        self.hidden = self.renamed = 0
        for counts in (self.endings, self.containers, self.unlisted, self.notes):
            counts.clear()
        self.add(other)

    def add(self, other: "Tally") -> None:
        """Take what another walk passed over into account."""
        self.endings.update(other.endings)
        self.containers.update(other.containers)
        self.notes.update(other.notes)
        self.unlisted.update(other.unlisted)
        self.hidden += other.hidden
        self.renamed += other.renamed

    def wants(self, name: str, read_head: Callable[[], bytes]) -> bool:
        """Whether a file is an image, or meant to be one; counted if it is not.

        Args:
            read_head: its first bytes, asked for where the name doesn't say.
        """
        if is_meant(name):
            return True
        try:
            kind = kind_of(read_head())
        except Exception:  # loading says why; archives' decompressors have errors of their own
            return True
        if kind in IMAGES:
            return True
        counts = self.containers if kind in SOURCES else self.endings
        counts[ending(name)] += 1
        return False

    def hides(self, name: str) -> bool:
        """Whether a file or folder is hidden, or left by a system; counted if it is."""
        hidden = is_hidden(name)
        self.hidden += hidden
        return hidden

    def lines(self) -> Iterator[str]:
        """What to say of it: nothing when nothing was passed over."""
        if self.endings:
            yield f"passed over, no images: {_listed(self.endings)}"
        if self.containers:
            kinds = _listed(self.containers)
            yield f"passed over, as sources of their own: {kinds}; give them by name to take them"
        if self.hidden:
            yield (
                f"passed over: {self.hidden} hidden, or left by a system (as .git, ._a.png, "
                "Thumbs.db, __MACOSX); --hidden takes them"
            )
        for folder, reason in list(self.unlisted.items())[:MOST_NAMED]:
            yield f"could not be listed: {folder} ({reason}); what else is in it was not looked at"
        if len(self.unlisted) > MOST_NAMED:
            yield f"... and {len(self.unlisted) - MOST_NAMED} folders more"
        if self.renamed:
            yield f"{self.renamed} ids were there already: they got a number, as in name#2"
        for note, count in self.notes.items():
            yield note if count == 1 else f"{count} times: {note}"

    def instead(self) -> str:
        """What was there in place of images, for an error."""
        told = "; ".join(self.lines())
        return f" ({told})" if told else ""


def _listed(counts: Counter[str]) -> str:
    """Counts by name, the most frequent first.

    >>> _listed(Counter({".txt": 3, "": 1}))
    '3 .txt, 1 without an ending'
    """
    named = [f"{n} {name or 'without an ending'}" for name, n in counts.most_common(MOST_NAMED)]
    rest = sum(counts.values()) - sum(n for _, n in counts.most_common(MOST_NAMED))
    return ", ".join(named + ([f"{rest} others"] if rest else []))
