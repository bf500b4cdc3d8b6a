"""Images that belong together, and a draw that never parts them.

A group is a number an image; images of one group have the same.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Int

from liftmap.errors import SettingsError

FOLDER = "folder"
LARGEST = 5  # a group of more than one in so many images is held out only if as many are asked for


def check_group_by(by: str) -> None:
    """Refuse what names no groups.

    Raises:
        SettingsError: neither "folder" nor a regular expression with one group in it.
    """
    if by == FOLDER:
        return
    try:
        groups = re.compile(by).groups
    except re.error as error:
        raise SettingsError(f"group-by {by!r} is no regular expression ({error})") from error
    if groups != 1:
        raise SettingsError(
            f"group-by {by!r} has {groups} groups in it: need {FOLDER}, or a regular expression "
            r"with one, such as '^(patient\d+)_'"
        )


def named_groups(ids: Sequence[str], by: str) -> tuple[Int[np.ndarray, " n"], int]:
    """The groups of images by their ids, and how many fit in none; each of these is its own.

    Args:
        by: "folder" takes the folder that an id names. Else a regular expression with one group,
            searched for in the id; what the group matched is the images' common name.

    >>> groups, alone = named_groups(["a/1", "b/1", "a/2", "3"], "folder")
    >>> groups.tolist(), alone
    ([0, 1, 0, 2], 1)
    """
    numbers: dict[str, int] = {}
    found, alone = np.empty(len(ids), dtype=np.int64), 0
    for i, id in enumerate(ids):
        name = _name(id, by)
        alone += name is None
        key = f"id {id}" if name is None else f"name {name}"
        found[i] = numbers.setdefault(key, len(numbers))
    return found, alone


def _name(id: str, by: str) -> str | None:
    if by == FOLDER:
        parent = str(PurePosixPath(id).parent)
        return None if parent == "." else parent
    match = re.search(by, id)
    return None if match is None else match.group(1)


def joined(one: Int[np.ndarray, " n"], other: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Groups of images that either of two groupings holds together, or a chain of both does.

    >>> joined(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])).tolist()
    [0, 0, 0, 1]
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns = (np.unique(part, return_inverse=True)[1] for part in (one, other))
    first = int(rows.max(initial=-1)) + 1
    size = first + int(columns.max(initial=-1)) + 1
    links = coo_matrix((np.ones(len(rows)), (rows, first + columns)), shape=(size, size))
    numbers = connected_components(links, directed=False)[1][rows]
    found: np.ndarray = np.unique(numbers, return_inverse=True)[1]
    return found


def draw(
    count: int, images: int, *, seed: int, groups: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " m"]:
    """The rows of about `count` random images, sorted; a group comes whole or not at all.

    Without groups, and where each image is its own, they are `count` exactly. Else groups are taken
    in random order, whatever their size, as far as comes nearest to `count`; one that is larger
    than both `count` and a fifth of all images is never taken. So the number is off by less than
    the size of one group, unless the groups that may be taken have fewer images together.

    Raises:
        SettingsError: there are only larger groups; the message says how large.
    """
    order = np.random.default_rng(seed).permutation(images)
    sizes = np.ones(0, np.int64) if groups is None else np.bincount(groups)
    if groups is None or not count or sizes.max(initial=0) <= 1:
        return np.sort(order[:count])
    numbers, firsts = np.unique(groups, return_index=True)
    sequence = numbers[np.argsort(np.argsort(order)[firsts])]  # where a group's first image fell
    most = min(max(count, images // LARGEST), images - 1)
    sequence = sequence[sizes[sequence] <= most]
    totals = np.cumsum(sizes[sequence])
    sequence, totals = sequence[totals < images], totals[totals < images]
    if not len(sequence):
        raise SettingsError(_too_large(np.sort(sizes[sizes > 0])[::-1], count, most))
    taken = sequence[: int(np.abs(totals - count).argmin()) + 1]
    return np.flatnonzero(np.isin(groups, taken))


def _too_large(sizes: np.ndarray, count: int, most: int) -> str:
    shown = ", ".join(map(str, sizes[:5])) + (", ..." if len(sizes) > 5 else "")
    return (
        f"{int(sizes.sum())} images in {len(sizes)} groups of {shown} images, which stay together: "
        f"to hold out {count} needs a group of at most {most}; give images of more groups, "
        "a --group-by of smaller ones, another --hold-out, or leave out copies"
    )
