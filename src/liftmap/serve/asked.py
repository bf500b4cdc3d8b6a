"""What a request asks: images from a form, from JSON, or one as the body itself."""

import base64
import re
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from liftmap.errors import ImageError
from liftmap.serve.schema import AnswerForm, Encoded, EncodedOne, Rate, told

Given = tuple[str | int, bytes | str]  # an image's name or place, and its file or base64
Checked = TypeVar("Checked", bound=BaseModel)
MOST_TEXT = 2**40  # bytes of a form's field; the size of the whole request is limited before
_FROM_URLS = str.maketrans("-_", "+/")
ACCEPTED = "multipart/form-data, application/json, application/octet-stream or image/*"


async def asked_scores(request: Request, most_images: int) -> tuple[list[Given], float | None]:
    """The images of a request and its false-alarm rate.

    Raises:
        HTTPException: 415 for another content type, 422 for what can't be understood.
    """
    kind = _kind(request)
    if kind == "json":
        encoded = _checked(Encoded, await request.body())
        return list(enumerate(encoded.images)), encoded.false_alarms
    if kind == "bytes":
        return [(0, await request.body())], None
    async with request.form(max_files=most_images + 1, max_part_size=MOST_TEXT) as form:
        rate = _checked(Rate, {"false_alarms": form.get("false_alarms")})
        given = await _given(form, "images")
    if not given:
        raise HTTPException(422, "images: need at least one file in the form")
    return given, rate.false_alarms


async def asked_explanation(request: Request) -> tuple[Given, str | None]:
    """The image of a request and the form of the answer; raises as `asked_scores` does."""
    kind = _kind(request)
    if kind == "json":
        encoded = _checked(EncodedOne, await request.body())
        return ("image", encoded.image), encoded.format
    if kind == "bytes":
        return ("image", await request.body()), None
    async with request.form(max_part_size=MOST_TEXT) as form:
        chosen = _checked(AnswerForm, {"format": form.get("format")})
        given = await _given(form, "image")
    if len(given) != 1:
        raise HTTPException(422, f"image: need one file in the form, got {len(given)}")
    name, data = given[0]
    return (name or "image", data), chosen.format


def _kind(request: Request) -> str:
    """One of "json", "form" and "bytes"; a body of which nothing is said is taken for bytes."""
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/json":
        return "json"
    if kind == "multipart/form-data":
        return "form"
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        return "bytes"
    raise HTTPException(415, f"content type {given}: need {ACCEPTED}")


def _checked(model: type[Checked], data: bytes | dict[str, object]) -> Checked:
    try:
        if isinstance(data, bytes):
            return model.model_validate_json(data)
        return model.model_validate(data)
    except ValidationError as error:
        raise HTTPException(422, told(error)) from error


async def _given(form: FormData, field: str) -> list[Given]:
    """The files of a form's field, or base64 in its stead."""
    return [
        (value.filename or place, await value.read())
        if isinstance(value, UploadFile)
        else (place, value)
        for place, value in enumerate(form.getlist(field))
    ]


def decoded(text: str) -> bytes:
    """The bytes behind base64, as RFC 4648 has it or for URLs, or behind a data URL (RFC 2397).

    It may be broken into lines and lack its padding.

    >>> decoded("aGVs bG8"), decoded("-_-_"), decoded("data:image/png;base64,aGVsbG8%3D")
    (b'hello', b'\\xfb\\xff\\xbf', b'hello')

    Raises:
        ImageError: it is none.
    """
    if text[:32].lstrip()[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not re.search(r";\s*base64\s*$", head, re.IGNORECASE):
            raise ImageError("a data URL without ;base64, in it: not base64")
        text = unquote_to_bytes(text).decode("latin-1")
    packed = "".join(text.split()).translate(_FROM_URLS)
    bare = packed.rstrip("=")
    try:
        if len(packed) - len(bare) > 2:
            raise ValueError("too much padding")
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except ValueError as error:  # binascii.Error is one; characters beyond ASCII another
        raise ImageError(f"not base64 ({error}), and no data URL of it") from error
