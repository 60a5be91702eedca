"""What both FastAPI peers take and give."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field  # pylint: disable=import-error  # the peers have an environment of their own


class Score(BaseModel, extra="forbid"):
    """What is posted."""

    UUID: Annotated[str, Field(min_length=1, max_length=256)]
    score: Annotated[int, Field(strict=True, ge=0, le=5)]


class Mean(BaseModel):
    """What is answered."""

    UUID: str
    mean: float
