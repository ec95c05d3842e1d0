"""Client certificates, as our own proxy names them: a credential bound to one is none without."""

import base64
import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from starlette.testclient import TestClient

from device_agent.client import Client
from device_agent.config import Config
from device_agent.credential import Credential, Identity
from device_agent.errors import Unavailable
from service.db.tables import Device
from service.settings import Settings
from tests.service.served import served
from tests.service.test_access import introduce, invitation
from tests.service.world import MODEL, World, opened, patient, refused

SECRET = "s3cr3t-of-the-proxy-" * 2
PROXY = ("10.0.0.1", 50_000)
KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "a", "b", "server")}
DIGEST = "ab" * 32


def certificate(name: str, serial: int = 1) -> x509.Certificate:
    """Return a certificate of our CA for a key; the CA's own is `ca`."""
    common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    local = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    builder = x509.CertificateBuilder(issuer, common, KEYS[name].public_key(), serial)
    now = datetime.now(UTC)
    builder = builder.not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1)).add_extension(local, critical=False)
    is_ca = x509.BasicConstraints(ca=name == "ca", path_length=None)
    return builder.add_extension(is_ca, critical=True).sign(KEYS["ca"], hashes.SHA256())


def header(name: str, serial: int = 1) -> str:
    der = certificate(name, serial).public_bytes(Encoding.DER)
    return f":{base64.b64encode(der).decode()}:"


@pytest.fixture
def open_world(sqlite_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[Any] = []

    def make(**chosen: Any) -> World:
        named = {"client_cert_header": "Client-Cert", "trusted_proxies": "10.0.0.0/8"}
        chosen = {"proxy_secret": SECRET} | named | chosen
        where = {"database": sqlite_url, "artifacts": str(tmp_path / "artifacts")}
        worlds.append(opened(patient(**where, **chosen), tmp_path))
        made: World = worlds[-1].__enter__()
        return made.found()

    yield make
    for world in worlds:
        world.__exit__(None, None, None)


def proxied(world: World, **headers: str) -> World:
    """Let the world's client speak through our proxy, with these headers besides its secret."""
    client = TestClient(world.app, client=PROXY, raise_server_exceptions=False)
    client.headers |= {"Fleetdiff-Proxy-Secret": SECRET, **headers}
    world.client = client
    return world


def enrolled(world: World, serial: str = "serial-1") -> dict[str, str]:
    reply = introduce(world, invitation(world), serial=serial)
    assert reply.status_code == 201, reply.text
    return {"Authorization": f"Bearer {reply.json()['credential']}"}


@pytest.mark.attack("A09")
def test_a_credential_that_was_given_to_a_certificate_is_none_without_it(
    open_world: Callable[..., World],
) -> None:
    world = open_world()
    direct = world.client
    mine = enrolled(proxied(world, **{"Client-Cert": header("a")}))
    poll = "/device/v1/poll"
    assert world.client.get(poll, headers=mine).status_code == 200
    renewed = {"Client-Cert": header("a", serial=2)}
    assert world.client.get(poll, headers=mine | renewed).status_code == 200, "its key is the same"
    refused(world.client.get(poll, headers=mine | {"Client-Cert": header("b")}), 401)
    refused(direct.get(poll, headers=mine), 401)
    refused(direct.get(poll, headers=mine | {"Client-Cert": header("a")}), 401)
    log = world.ok("GET", "/v1/audit", params={"newest_first": True})["items"]
    assert [entry["details"].get("alarm") for entry in log[:3]] == ["certificate"] * 3
    enroll = next(entry for entry in log if entry["action"] == "device.enroll")
    assert len(enroll["details"]["certificate"]) == 64
    guessed = {"Authorization": mine["Authorization"][:-43] + "A" * 43}
    refused(direct.get(poll, headers=guessed), 401)
    last = world.ok("GET", "/v1/audit", params={"newest_first": True, "limit": 1})["items"][0]
    assert "alarm" not in last["details"], "whoever knows an id raises no alarm about its device"


@pytest.mark.attack("A09")
@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("198.51.100.7", {}),
        ("10.0.0.1", {"Fleetdiff-Proxy-Secret": "guessed"}),
        ("10.0.0.1", {"Fleetdiff-Proxy-Secret": ""}),
        ("10.0.0.1", {"Client-Cert": ""}),
        ("10.0.0.1", {"Client-Cert": ":AAAA:"}),
        ("10.0.0.1", {"Client-Cert": ":not base64:"}),
        ("10.0.0.1", {"Client-Cert": "a" * 63}),
        ("10.0.0.1", {"Client-Cert": "\xe9"}),
    ],
)
def test_what_nobody_of_ours_says_is_ignored(
    open_world: Callable[..., World], peer: str, headers: dict[str, str]
) -> None:
    world = open_world()
    sent = {"Fleetdiff-Proxy-Secret": SECRET, "Client-Cert": header("a")} | headers
    world.client = TestClient(world.app, client=(peer, 50_000))
    world.client.headers.update({k: v.encode("latin-1") for k, v in sent.items()})  # type: ignore[misc]
    enrolled(world)
    with world.app.state.database.reader() as session:
        assert session.query(Device).one().certificate_sha256 is None


@pytest.mark.attack("A09")
def test_a_header_that_comes_twice_or_with_an_underscore_is_ignored(
    open_world: Callable[..., World],
) -> None:
    world = proxied(open_world(), **{"Client-Cert": header("a")})
    mine = enrolled(world)
    poll, secret = "/device/v1/poll", ("Fleetdiff-Proxy-Secret", SECRET)
    client = TestClient(world.app, client=PROXY)
    right = [*mine.items(), secret, ("Client-Cert", header("a"))]
    assert client.get(poll, headers=right).status_code == 200
    for wrong in (
        [*right, ("Client-Cert", header("b"))],
        [*right, ("Client-Cert", header("a"))],
        [*right, secret],
        [*right[:-1], ("Client_Cert", header("a"))],
    ):
        refused(client.get(poll, headers=wrong), 401)


@pytest.mark.attack("A09")
@pytest.mark.parametrize(
    "chosen",
    [{"client_cert_header": "off"}, {"proxy_secret": None}, {"trusted_proxies": ""}],
)
def test_unless_all_of_it_is_set_up_nothing_is_believed(
    open_world: Callable[..., World], chosen: dict[str, Any]
) -> None:
    world = proxied(open_world(**chosen), **{"Client-Cert": header("a"), "off": header("a")})
    mine = enrolled(world)
    poll = world.client.get("/device/v1/poll", headers=mine | {"Client-Cert": header("b")})
    assert poll.status_code == 200
    assert '"certificate"' not in json.dumps(world.ok("GET", "/v1/audit"))


def test_a_proxy_may_name_a_digest_instead(open_world: Callable[..., World]) -> None:
    world = open_world(client_cert_header="Client-Cert-Sha256")
    mine = enrolled(proxied(world, **{"Client-Cert-Sha256": DIGEST.upper()}))
    poll = "/device/v1/poll"
    assert world.client.get(poll, headers=mine | {"Client-Cert-Sha256": DIGEST}).status_code == 200
    refused(world.client.get(poll, headers=mine | {"Client-Cert-Sha256": "cd" * 32}), 401)


def test_a_secret_that_is_short_is_refused_at_the_start_and_none_is_shown() -> None:
    where = {"database": "sqlite://", "artifacts": "a"}
    with pytest.raises(ValueError, match="proxy_secret"):
        Settings(**where, proxy_secret="short")  # type: ignore[arg-type]
    assert SECRET not in repr(Settings(**where, proxy_secret=SECRET))  # type: ignore[arg-type]


class Proxy(ThreadingHTTPServer):
    """A TLS proxy as small as one can be: it asks for a certificate and says which it saw."""

    daemon_threads = True

    def __init__(self, behind: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.behind = urlsplit(behind).netloc
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem(folder, "server"))
        context.load_verify_locations(cafile=pem(folder, "ca"))
        context.verify_mode = ssl.CERT_OPTIONAL
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def handle_error(self, *_words: Any) -> None:
        return


class _Forward(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = self.connection.getpeercert(binary_form=True)  # type: ignore[attr-defined]
        drop = ("client-cert", "fleetdiff-proxy-secret", "host")
        sent = {k: v for k, v in self.headers.items() if k.lower() not in drop}
        sent |= {"Fleetdiff-Proxy-Secret": SECRET}
        sent |= {"Client-Cert": f":{base64.b64encode(seen).decode()}:"} if seen else {}
        upstream = http.client.HTTPConnection(self.server.behind)
        upstream.request(self.command, self.path, body or None, sent)
        found = upstream.getresponse()
        answer = found.read()
        self.send_response(found.status)
        for name, value in found.getheaders():
            if name.lower() not in ("date", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)
        upstream.close()

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        return


def pem(folder: Path, name: str) -> Path:
    """Write a certificate and its key into one file."""
    file = folder / f"{name}.pem"
    key = KEYS[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(certificate(name).public_bytes(Encoding.PEM) + key)
    return file


@pytest.mark.attack("A09")
def test_an_agent_shows_its_certificate_through_a_real_tls_proxy(
    open_world: Callable[..., World], tmp_path: Path
) -> None:
    world = open_world(trusted_proxies="127.0.0.0/8")
    with served(world.app) as behind:
        proxy = Proxy(behind, tmp_path)
        try:
            asked = {"enrollment_token": invitation(world), "model": MODEL, "serial": "s"}
            asked |= {"hardware": "h1", "agent_version": "1"}

            def client(name: str, *credentials: str) -> Client:
                config = Config(
                    server=f"https://localhost:{proxy.server_address[1]}",
                    model=MODEL,
                    serial="s",
                    hardware="h1",
                    state_dir=tmp_path,
                    root=tmp_path / "root.json",
                    ca_file=str(pem(tmp_path, "ca")),
                    client_cert=str(pem(tmp_path, name)) if name else "",
                )
                known = Credential("", *credentials) if credentials else Credential("", "")
                return Client(config, Identity(known, tmp_path))

            mine = json.loads(client("a").post("enroll", asked))["credential"]
            assert client("a", mine).poll("", 0, 0, "").status == 200
            for other in ("b", ""):
                with pytest.raises(Unavailable, match="401"):
                    client(other, mine).poll("", 0, 0, "")
        finally:
            proxy.shutdown()
            proxy.server_close()
