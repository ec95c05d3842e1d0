"""An identity provider for tests: its keys lie on a real HTTP server, its tokens are real."""

import json
import threading
import time
from base64 import urlsafe_b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://login.example", "fleetdiff"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC, ED = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()


def jwk(kind: Any, key: Any, kid: str) -> dict[str, Any]:
    return dict(json.loads(kind.to_jwk(key.public_key())), kid=kid, use="sig")


class Provider(ThreadingHTTPServer):
    """Serves its keys, and counts who asks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Keys)
        self.keys = [jwk(RSAAlgorithm, RSA, "rsa"), jwk(ECAlgorithm, EC, "ec")]
        self.keys.append(jwk(OKPAlgorithm, ED, "ed"))
        self.answer: tuple[int, bytes] | None = None
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/keys"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Keys(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body = self.server.answer or (200, json.dumps({"keys": self.server.keys}).encode())
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


def config(provider: Provider, **more: Any) -> str:
    scopes = {"fleet-ops": ["devices:read", "rollouts:halt"], "auditors": ["audit:read"]}
    chosen = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": provider.url, "scopes": scopes}
    return json.dumps(chosen | {"claim": ["groups"]} | more)


def token(
    key: Any = RSA, alg: str = "RS256", kid: str | None = "rsa", headers: Any = None, **claims: Any
) -> str:
    """Return a good token, or one with these changes; a claim that is None is left out."""
    now = int(time.time())
    told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "mina", "iat": now, "exp": now + 3600}
    told |= {"groups": ["fleet-ops", "cooks"]} | claims
    told = {name: value for name, value in told.items() if value is not None}
    named = {"kid": kid} if kid is not None else {}
    return jwt.encode(told, key, algorithm=alg, headers=named | (headers or {}))


def encoded(document: Any) -> str:
    """Return a part of a token, signed by nobody."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
