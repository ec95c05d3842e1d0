"""People of an identity provider (OpenID Connect): their token says who, the settings say what.

Issuer, audience, algorithms and the address of the keys come from the settings, never from a
token: a token can only name one of the keys that were fetched from there. An unknown name asks for
the keys again, but not more often than twice a minute, whoever makes names up.
"""

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

import jwt
from jwt import PyJWK, PyJWKClient, PyJWTError

from service.core.access import ADVICE, SCOPES
from service.core.errors import IdentityUnavailable, InvalidRequest, Unauthorized
from service.db.tables import ApiToken
from service.settings import Oidc

logger = logging.getLogger(__name__)
REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
LEEWAY_S = 60
FETCH_TIMEOUT_S = 5
FETCH_PAUSE_S = 30
KEYS_FRESH_S = 300  # then they are fetched again: a key may have been withdrawn
KEYS_TRUSTED_S = 86_400  # while the provider does not answer
SUBJECT_LETTERS_MAX = 128


class Provider:
    """One identity provider and the keys that it signs with now."""

    def __init__(self, config: Oidc) -> None:
        """Remember whom to believe; nothing is fetched yet.

        Raises:
            InvalidRequest: the settings grant a scope that does not exist.
        """
        unknown = {s for granted in config.scopes.values() for s in granted} - set(SCOPES)
        if unknown:
            raise InvalidRequest(f"FLEETDIFF_OIDC grants unknown scopes {sorted(unknown)}")
        self._config = config
        self._client = PyJWKClient(config.jwks_url, cache_jwk_set=False, timeout=FETCH_TIMEOUT_S)
        self._keys: dict[str, PyJWK] = {}
        self._fetched_s = self._asked_s = float("-inf")
        self._lock = threading.Lock()
        self.clock_s = time.monotonic

    def recognise(self, token: str, now: datetime) -> ApiToken:
        """Return the caller whom a token names, as an API token that is in no table.

        Raises:
            Unauthorized: for whatever reason.
            IdentityUnavailable: the provider's keys are not to be had.
        """
        config = self._config
        try:
            key = self._key(str(jwt.get_unverified_header(token).get("kid")))
            claims = jwt.decode(
                token,
                key,
                algorithms=config.algorithms,
                issuer=config.issuer,
                audience=config.audience,
                leeway=LEEWAY_S,
                options={"require": REQUIRED, "enforce_minimum_key_length": True},
            )
            subject = str(claims["sub"])
            if not subject.isprintable() or not 0 < len(subject) <= SUBJECT_LETTERS_MAX:
                raise jwt.InvalidTokenError("a subject is a printable text")
            expires = datetime.fromtimestamp(int(claims["exp"]), UTC)
        except (PyJWTError, RecursionError, ValueError, OverflowError) as error:
            refusal = Unauthorized(ADVICE)
            refusal.noted = {"token": type(error).__name__}
            raise refusal from error
        return ApiToken(
            name=subject,
            scopes=self._scopes(claims),
            expires_at=expires,
            last_used_at=now,  # nothing to note
        )

    def _scopes(self, claims: dict[str, Any]) -> list[str]:
        """Return what the settings grant to the groups that a token names."""
        found: Any = claims
        for name in self._config.claim:
            found = found.get(name) if isinstance(found, dict) else None
        words = found.split() if isinstance(found, str) else found
        groups = [w for w in words if isinstance(w, str)] if isinstance(words, list) else []
        return sorted({s for group in groups for s in self._config.scopes.get(group, ())})

    def _key(self, name: str) -> PyJWK:
        stale = name not in self._keys or self.clock_s() - self._fetched_s > KEYS_FRESH_S
        # A provider that hangs holds up one caller, unless there is no key at all yet.
        if stale and self._lock.acquire(blocking=not self._keys):
            try:
                self._fetch()
            finally:
                self._lock.release()
        if not self._keys:
            raise IdentityUnavailable("the identity provider does not tell its keys; try again")
        if name not in self._keys:
            raise jwt.InvalidKeyError("no key of this name")
        return self._keys[name]

    def _fetch(self) -> None:
        now = self.clock_s()
        if now - self._asked_s < FETCH_PAUSE_S:
            return
        self._asked_s = now
        try:
            found = self._client.get_signing_keys()
        except (PyJWTError, OSError, ValueError, RecursionError) as error:
            logger.warning("no keys of the identity provider", extra={"why": str(error)})
            if now - self._fetched_s > KEYS_TRUSTED_S:
                self._keys = {}
            return
        self._keys, self._fetched_s = {str(key.key_id): key for key in found}, now
