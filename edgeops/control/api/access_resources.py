"""The REST resources of enrolment tokens and API tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from edgeops.control.access import MAX_VALID_S
from edgeops.control.api.request import Request
from edgeops.control.api.resources import Labels, Name
from edgeops.control.enrolment import TOKEN_VALID_MAX_S, TOKEN_VALID_S


class TokenRequest(Request):
    """A wish for an enrolment token. One for a rig names it."""

    profile: Name | None = None
    name: Name | None = None
    labels: Labels = {}
    kind: Literal["device", "rig"] = "device"
    valid_s: Annotated[float, Field(gt=0, le=TOKEN_VALID_MAX_S)] = TOKEN_VALID_S


class ToldOnce(BaseModel):
    """An answer that holds a secret: it is kept nowhere, so that it cannot be repeated either."""


class TokenCreated(ToldOnce):
    """A new token. `token` is shown once."""

    id: str
    token: str
    expires_at_s: float


class Token(BaseModel):
    """A token that was made; its secret is not kept."""

    id: str
    profile: str | None
    name: str | None
    labels: dict[str, str]
    created_at_s: float
    created_by: str
    expires_at_s: float
    used_at_s: float | None
    used_by: str | None
    kind: str


class Tokens(BaseModel):
    """A page of tokens by id; `next` is the cursor of the following page, null at the end."""

    items: list[Token]
    next: str | None


class ApiTokenRequest(Request):
    """A wish for an API token: whose it is, and what it may do."""

    name: Name
    role: Literal["viewer", "data-scientist", "engineer", "operator", "admin"]
    valid_s: Annotated[float, Field(gt=0, le=MAX_VALID_S)] = 90 * 86400.0


class ApiTokenCreated(ToldOnce):
    """A new API token. `token` is shown once."""

    id: str
    token: str
    expires_at_s: float


class ApiTokenResource(BaseModel):
    """An API token that was made; its secret is not kept. `used_at_s` is exact to an hour."""

    id: str
    name: str
    role: str
    created_at_s: float
    created_by: str
    expires_at_s: float
    revoked_at_s: float | None
    used_at_s: float | None


class ApiTokens(BaseModel):
    """A page of API tokens by name; `next` is the cursor of the following page, null at the end."""

    items: list[ApiTokenResource]
    next: str | None
