"""Every setting of the server, in one frozen object read from `FLEETDIFF_*` once."""

import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    SecretStr,
    ValidationInfo,
    field_validator,
)


def _words(value: object) -> object:
    """Return a list that was written with commas."""
    words = value.split(",") if isinstance(value, str) else value
    return tuple(str(word).strip() for word in words if word)  # type: ignore[attr-defined]


def _networks(value: object) -> object:
    """Return a list of networks that was written with commas; each must be one."""
    return tuple(str(ip_network(word)) for word in _words(value))  # type: ignore[attr-defined]


class Oidc(BaseModel):
    """An identity provider whose tokens are taken, and what its groups may do here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_url: str = Field(pattern=r"^(https://[^/]|http://(127\.0\.0\.1|localhost|\[::1\])[:/])")
    algorithms: tuple[Literal["RS256", "PS256", "ES256", "ES384", "EdDSA"], ...] = Field(
        default=("RS256", "ES256", "EdDSA"), min_length=1
    )
    claim: tuple[str, ...] = Field(default=("scope",), description="the way to the groups")
    scopes: dict[str, tuple[str, ...]] = Field(description="group: the scopes that it has")


ORDERS_PER_HOUR_MAX = 100_000


class FromEnviron(BaseModel):
    """Settings that are read from variables; every limit carries its unit in its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str = Field(description="SQLAlchemy URL: sqlite:///file or postgresql://...")
    rollout_limits: Path | None = Field(
        default=None, description="TOML file: how far and fast a release may go, who approves more"
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **chosen: object) -> Self:
        """Return the settings of an environment; keyword arguments win over variables.

        Raises:
            pydantic.ValidationError: naming every setting that is missing or out of bounds.
        """
        from_variables = {
            name: environ[variable]
            for name in cls.model_fields
            if (variable := f"FLEETDIFF_{name.upper()}") in environ
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        return cls.model_validate(from_variables | given)


class PublisherSettings(FromEnviron):
    """What the publisher needs when it is a process of its own."""

    online_keys: Path = Field(description="folder of snapshot.pem, timestamp.pem, director.pem")
    root: Path = Field(description="the root that everything is verified from, as devices pin it")
    record: Path = Field(description="file for the numbers it gave away; only it may write there")
    orders_per_hour_max: int = Field(
        default=ORDERS_PER_HOUR_MAX, ge=1, description="orders that it gives, whatever is wished"
    )
    round_s: float = Field(default=1, gt=0, le=60, description="seconds between two rounds")


class Settings(FromEnviron):
    """What an operator may choose for the server."""

    artifacts: str = Field(description="A folder, or s3://bucket/prefix?endpoint=...&region=...")
    publisher: Literal["embedded", "external"] = Field(
        default="embedded",
        description="who signs: embedded, this process, or external, `fleetdiff-server publish`",
    )
    online_keys: Path | None = Field(
        default=None, description="the keys of the embedded publisher; external: never here"
    )
    record: Path | None = Field(
        default=None, description="the record of the embedded publisher; limits need one"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on")
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#\s]+$",
        description="scheme and host as devices call it; behind a proxy, what is signed names it",
    )
    status_page: Literal["token", "open"] = Field(
        default="token", description="who may see the page at /: token or open, to anyone"
    )
    metrics: Literal["token", "open"] = Field(
        default="token", description="who may read /metrics: token or open, to anyone"
    )
    tick_s: float = Field(default=5, gt=0, le=600, description="seconds between two ticks")
    poll_after_s: int = Field(
        default=3600, ge=1, le=7 * 86400, description="seconds between two polls"
    )
    poll_soon_s: int = Field(default=2, ge=1, le=3600, description="while an update is under way")
    poll_entries_max: int = Field(
        default=200_000,
        ge=0,
        description="devices whose last answer is kept in memory, 0.5 kB each",
    )
    polls_at_once_max: int = Field(
        default=256, ge=1, description="that need the database; more are told to come later"
    )
    credential_lifetime_s: int = Field(
        default=30 * 86400, ge=60, description="age at which a device gets a new credential"
    )
    canary_timeout_s: int = Field(
        default=600, ge=1, le=86400, description="for a whole trial on a device"
    )
    deployment_timeout_s: int = Field(
        default=86400, ge=10, le=30 * 86400, description="until an attempt has failed"
    )
    oidc: Json[Oidc] | None = Field(
        default=None, description="identity provider, as JSON: issuer, audience, jwks_url, scopes"
    )
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(_networks)] = Field(
        default=(), description="networks of proxies that are believed, as 10.0.0.0/8,::1/128"
    )
    proxy_secret: SecretStr | None = Field(
        default=None, min_length=32, description="which a proxy sends as Fleetdiff-Proxy-Secret"
    )
    client_cert_header: Literal["off", "Client-Cert", "Client-Cert-Sha256"] = Field(
        default="off", description="in which a trusted proxy with the secret names certificates"
    )
    webhooks_to: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        default=(), description="how the address of a webhook may begin, as https://hooks.example/"
    )
    webhooks_key: SecretStr | None = Field(
        default=None, min_length=32, description="from which the secrets of webhooks are derived"
    )
    operator_calls_per_min: int = Field(default=600, ge=1, description="of one API token")
    device_calls_per_min: int = Field(default=240, ge=1, description="of one device")
    enrolls_per_min: int = Field(default=300, ge=1, description="from one address")
    failed_calls_per_min: int = Field(default=60, ge=1, description="from one address")
    artifact_bytes_max: int = Field(default=4 << 30, ge=1, description="of one artifact")
    store_bytes_max: int = Field(default=1 << 40, ge=1, description="of all artifacts together")
    artifact_grace_s: int = Field(
        default=7 * 86400, ge=0, description="until what nothing needs may be deleted"
    )
    reports_kept_s: int = Field(
        default=90 * 86400, ge=0, description="canary reports, after their rollout's end"
    )
    upload_bytes_per_day_max: int = Field(default=1 << 38, ge=1, description="of one caller")
    upload_bytes_unused_max: int = Field(
        default=1 << 37, ge=1, description="of one caller, in no release yet"
    )
    uploads_max: int = Field(default=4, ge=1, le=32, description="at once; others wait")
    upload_bytes_per_s_min: int = Field(default=16 << 10, ge=1, description="slower ones are cut")
    connections_max: int = Field(default=10_000, ge=10, description="at once")
    head_s_max: float = Field(default=10, gt=0, description="for the head of a request to arrive")
    body_s_max: float = Field(default=30, gt=0, description="for its body, besides its bytes' time")
    body_bytes_max: int = Field(default=1 << 20, ge=1024, description="of a request's document")
    url_lifetime_s_max: int = Field(default=900, ge=60, le=86400, description="of a secret URL")
    url_bytes_s_min: int = Field(default=64 << 10, ge=256, description="of a link that is slow")

    @field_validator("webhooks_to")
    @classmethod
    def _ends_its_host(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for start in given:
            if not re.match(r"https?://[^/?#@\\]+/", start):
                raise ValueError(f"{start} must begin with http(s)://HOST/, the slash included")
        return given

    @field_validator("online_keys")
    @classmethod
    def _only_if_embedded(cls, given: Path | None, info: ValidationInfo) -> Path | None:
        if given is not None and info.data.get("publisher") == "external":
            raise ValueError("an external publisher holds the keys; unset it for this process")
        return given
