"""What the service is set up with, what it may be asked, and what it answers."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from liftmap.errors import SettingsError


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of the service.

    api_key: what clients must send as X-API-Key; None for an open service.
    most_bytes: of a request's body. most_images: in a request. most_waiting: images in the queue.
    seconds: a request is given up after so long.
    """

    false_alarms: float = 0.05
    api_key: str | None = None
    most_bytes: int = 20_000_000
    most_images: int = 64
    most_waiting: int = 256
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise SettingsError("the API key is empty: set one, or none for an open service")
        for name in ("most_bytes", "most_images", "most_waiting", "seconds"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}={getattr(self, name)}: need more than 0")
        if self.most_images > self.most_waiting:
            raise SettingsError(
                f"most_images={self.most_images}, most_waiting={self.most_waiting}: a request of "
                "so many would never fit the queue"
            )


class Rate(BaseModel):
    """The false-alarm rate of a request; the service's own by default."""

    false_alarms: float | None = Field(default=None, gt=0, lt=1, examples=[0.05])


class Encoded(Rate):
    """One or many images as base64 of their files, or as data URLs of it."""

    images: list[str] = Field(
        min_length=1,
        description="base64, also for URLs, in lines or without padding; or data URLs of it",
        examples=[["iVBORw0KGgo...", "data:image/png;base64,iVBORw0KGgo..."]],
    )


class AnswerForm(BaseModel):
    """How an explanation is given: a picture by default, or numbers."""

    format: Literal["png", "json"] | None = None


class EncodedOne(AnswerForm):
    """An image as base64 of its file, or as a data URL of it."""

    image: str = Field(examples=["iVBORw0KGgo..."])


class Judged(BaseModel):
    """What is said of an image; `error` stands alone where it can't be used."""

    id: str = Field(description="the file's name, or the place in the request")
    score: float | None = Field(default=None, description="higher = more out-of-distribution")
    p_value: float | None = Field(default=None, description="share of in-domain images as odd")
    is_ood: bool | None = None
    words: str | None = None
    attempts: int | None = None
    notes: list[str] = Field(
        default=[], description="what to know of the image, as that its values are dark"
    )
    error: str | None = None


class Answer(BaseModel):
    """The answer to a request for scores."""

    false_alarms: float
    results: list[Judged]


class Typical(BaseModel):
    """A normal image to compare with; `picture` is a data URL."""

    id: str
    score: float
    p_value: float
    picture: str


class Typicals(BaseModel):
    """The normal images to compare with; none unless the service was given some."""

    images: list[Typical]


class About(BaseModel):
    """Which model answers, and how."""

    weights: str
    height: int
    width: int
    channels: int
    trained_on: str
    calibrated_on: int
    smallest_false_alarms: float
    false_alarms: float
    limits: list[float] = Field(
        description="the largest p-value flagged at a rate of 0.1%, 0.2%, ... 20%"
    )
    attempts: int
    distance: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the form is no multipart data"},
    401: {"description": "the API key is missing or wrong"},
    413: {"description": "the request is too large, or holds too many images"},
    415: {"description": "the content type is none of those that are taken"},
    422: {"description": "the request, its false-alarm rate or every image of it can't be used"},
    429: {"description": "too many images wait; Retry-After says for how long"},
    503: {"description": "it took too long"},
}


_FILE = {"type": "string", "format": "binary"}


def _body(form: dict[str, Any], encoded: type[BaseModel]) -> dict[str, Any]:
    """The description of a body that is a form, JSON, or an image's file itself."""
    content = {
        "multipart/form-data": {"schema": {"type": "object"} | form},
        "application/json": {"schema": encoded.model_json_schema()},
    }
    for kind in ("application/octet-stream", "image/png", "image/jpeg", "image/*"):
        content[kind] = {"schema": _FILE}
    return {"required": True, "content": content}


SCORE_BODY = _body(
    {
        "required": ["images"],
        "properties": {
            "images": {"type": "array", "items": _FILE},
            "false_alarms": {"type": "number", "example": 0.05},
        },
    },
    Encoded,
)
EXPLAIN_BODY = _body(
    {
        "required": ["image"],
        "properties": {"image": _FILE, "format": {"type": "string", "enum": ["png", "json"]}},
    },
    EncodedOne,
)


def told(error: ValidationError) -> str:
    """What is wrong with a request, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, part['loc'])) or 'body'}: {part['msg']}" for part in error.errors()
    )
