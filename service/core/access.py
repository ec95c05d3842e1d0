"""Who is calling: API tokens with scopes; `fleet/devices.py` says so of devices.

Each is shown exactly once. The first token is made on the server's own command line.
"""

from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core import audit, errors
from service.core.credential import new_secret, same, sent, unauthorized
from service.core.errors import Forbidden, InvalidRequest
from service.core.network import is_part, is_within
from service.db.tables import ApiToken

SCOPES = tuple(
    "releases:read releases:write rollouts:read rollouts:write rollouts:halt rollouts:approve "
    "devices:read devices:write enroll:write telemetry:read audit:read "
    "tokens:admin".split()
)
ADVICE = "send a valid API token as `Authorization: Bearer fd_...`"
TOKEN_LIFETIME_MAX = timedelta(days=365)


def create_token(
    session: Session,
    name: str,
    scopes: list[str],
    lifetime: timedelta,
    now: datetime,
    *,
    networks: list[str] | None = None,
    maker: ApiToken | None = None,
) -> tuple[ApiToken, str]:
    """Make an API token; the secret is returned once and stored as a digest only.

    Nobody gives away what they do not have: with a maker, its scopes, networks and end are the
    most there can be.
    """
    expires = now + lifetime
    if maker is not None:
        expires = min(expires, maker.expires_at)
        for scope in scopes:
            allowed(maker, scope)
        if maker.networks is not None:
            networks = networks or maker.networks
            if outside := [n for n in networks if not is_part(n, maker.networks)]:
                raise Forbidden(f"this token is none in {outside}, and makes none for there")
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidRequest(f"unknown scopes {unknown}; known are {', '.join(SCOPES)}")
    if not timedelta(0) < lifetime <= TOKEN_LIFETIME_MAX:
        raise InvalidRequest("a token lives between a moment and 365 days")
    row_id, digest, token = new_secret("fd")
    row = ApiToken(
        id=row_id,
        name=name,
        secret_sha256=digest,
        scopes=sorted(set(scopes)),
        created_at=now,
        expires_at=expires,
        networks=networks,
    )
    session.add(row)
    audit.record(session, "token.create", row.id, now, token=name, scopes=row.scopes)
    return row, token


def authorize(session: Session, token: str, now: datetime, ip: str = "") -> ApiToken:
    """Return the API token's row if it is valid.

    Raises:
        Unauthorized: unknown, wrong, expired, revoked or from elsewhere, all alike.
    """
    row_id, digest = sent("fd", token)
    row = session.get(ApiToken, row_id)
    if (
        row is None
        or not same(row.secret_sha256, digest)
        or row.revoked_at is not None
        or row.expires_at <= now
        or not (row.networks is None or is_within(ip, row.networks))
    ):
        raise unauthorized(ADVICE, token)
    return row


def revoke_token(session: Session, token_id: str, now: datetime) -> ApiToken:
    """End a token now; ending it again changes nothing."""
    row = errors.found(session.get(ApiToken, token_id), f"token {token_id}")
    if row.revoked_at is None:
        row.revoked_at = now
        audit.record(session, "token.revoke", row.id, now, token=row.name)
    return row


def actor(caller: ApiToken) -> str:
    """Return how the audit log calls an operator; an identity has no row, and so no id."""
    return f"{caller.name} (fd_{caller.id})" if caller.id else f"{caller.name} (oidc)"


def note_use(session: Session, caller: ApiToken, now: datetime) -> None:
    """Note that a token was used just now."""
    session.execute(update(ApiToken).filter_by(id=caller.id).values(last_used_at=now))


def allowed(caller: ApiToken, scope: str | None) -> ApiToken:
    """Return the caller if its token carries the scope.

    Raises:
        Forbidden: it does not.
    """
    if scope is not None and scope not in caller.scopes:
        raise Forbidden(f"this token lacks the scope {scope}", scope=scope)
    return caller
