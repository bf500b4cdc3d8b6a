"""What a file is, by its first bytes and by the end of its name.

Names lie: a phone's HEIC is called .jpg, a download has no ending, an archive is called .dat. So
content decides wherever it speaks for itself; the ending says what a file was meant to be.
"""

from pathlib import PurePosixPath

HEAD = 512  # bytes that tell a kind: tar's mark is the furthest, at byte 257

# endings that promise an image: such a file is an image, or one that can't be read
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp", "dib", "gif"),
        *("avif", "heic", "heif", "hif", "jp2", "j2k", "jpx", "jpf", "j2c"),
        *("pgm", "ppm", "pbm", "pnm"),
    )
)
# endings of pictures that liftmap doesn't read, and what to do
CONVERT = "convert it to PNG or TIFF"
DEVELOP = "develop the camera's raw data, and save them as PNG, TIFF or JPEG"
UNREAD = {
    **dict.fromkeys(
        (".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".orf", ".rw2"),
        DEVELOP,
    ),
    **dict.fromkeys((".pef", ".srw", ".raf", ".3fr", ".iiq", ".x3f", ".erf", ".mrw"), DEVELOP),
    **dict.fromkeys((".psd", ".xcf", ".ai", ".eps", ".svg", ".svgz", ".wmf", ".emf"), CONVERT),
    **dict.fromkeys((".jxl", ".exr", ".hdr", ".tga", ".pcx", ".ico", ".icns", ".qoi"), CONVERT),
    **dict.fromkeys((".sgi", ".dds", ".fits", ".fit", ".dcm", ".nii", ".jxr", ".wdp"), CONVERT),
}

# (offset, bytes, kind)
_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"II+\0", "tiff"),
    (0, b"MM\0+", "tiff"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000"),
    (0, b"\xff\x4f\xff\x51", "jpeg2000"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"PK\x07\x08", "zip"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"PAR1", "parquet"),
    (0, b"\0\0\x08\x01", "idx"),
    (0, b"\0\0\x08\x03", "idx"),
    (0, b"\x1f\x8b", "gz"),
    (0, b"BZh", "bz2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (257, b"ustar", "tar"),
)
_HEIC = frozenset((b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs"))
IMAGES = frozenset(("png", "jpeg", "webp", "tiff", "bmp", "gif", "avif", "heic", "jpeg2000", "ppm"))
PACKED = frozenset(("gz", "bz2", "xz"))
SOURCES = frozenset(("zip", "tar", "npy", "parquet", "idx")) | PACKED  # of many images each


def kind_of(head: bytes) -> str | None:
    r"""What a file's first HEAD bytes say it is; None if they say nothing known.

    >>> kind_of(b"PAR1...."), kind_of(b"P5 3 3 255\n"), kind_of(b"Dear Sir,")
    ('parquet', 'ppm', None)
    """
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head[:2] == b"BM" and head[6:10] == bytes(4):  # its reserved field
        return "bmp"
    if head[:1] == b"P" and head[1:2] in b"123456fF" and head[2:3].isspace():
        return "ppm"
    return None


def _of_brands(head: bytes) -> str | None:
    """AVIF or HEIC, of all that ISO's base media format holds (ISO/IEC 14496-12, 4.3)."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12]} | {head[at : at + 4] for at in range(16, size - 3, 4)}
    if brands & {b"avif", b"avis"}:
        return "avif"
    return "heic" if brands & (_HEIC | {b"mif1", b"msf1"}) else None


def ending(name: str) -> str:
    """The end of a file's name, from its last dot, in small letters; "" where there is none.

    >>> ending("a/Photo.JPG"), ending(".profile"), ending("README")
    ('.jpg', '', '')
    """
    return PurePosixPath(name).suffix.lower()


def is_meant(name: str) -> bool:
    """Whether a file's name says that it holds a picture, of whatever kind."""
    return ending(name) in SUFFIXES or ending(name) in UNREAD


# what systems and programs leave in folders and archives, none of it anybody's image
_LITTER = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle"),
        *("$recycle.bin", "lost+found", "__pycache__", "system volume information"),
    )
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left behind by a system.

    >>> [is_hidden(n) for n in ("._a.png", ".Trash-1000", "Thumbs.db", "__MACOSX", "a.png")]
    [True, True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _LITTER
