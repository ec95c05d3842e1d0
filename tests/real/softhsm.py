"""A token that exists in software only: SoftHSM, spoken to by PKCS#11 like any other."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import pkcs11
from pkcs11.util import ec

from tests.real.process import Missing

PIN = "4321"
PLACES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


@dataclass
class Token:
    """A token with one P-256 key, by the URI that names it."""

    uri: str


@contextmanager
def run_softhsm(folder: Path) -> Iterator[Token]:
    """Yield a new token; a process loads one PKCS#11 module, so there is one token a run."""
    module = next((place for place in PLACES if Path(place).exists()), None)
    if module is None or which("softhsm2-util") is None:
        raise Missing("SoftHSM is not installed (Debian: softhsm2)")
    tokens = folder / "tokens"
    tokens.mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {tokens}\n")
    before = {name: os.environ.get(name) for name in ("SOFTHSM2_CONF", "PYKCS11LIB")}
    os.environ |= {"SOFTHSM2_CONF": str(folder / "softhsm2.conf"), "PYKCS11LIB": module}
    try:
        words = ["--init-token", "--free", "--label", "anne", "--so-pin", PIN, "--pin", PIN]
        subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)
        token = pkcs11.lib(module).get_token(token_label="anne")
        with token.open(rw=True, user_pin=PIN) as session:
            curve = {pkcs11.Attribute.EC_PARAMS: ec.encode_named_curve_parameters("secp256r1")}
            parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
            parameters.generate_keypair(store=True, id=b"\x02", label="signing")
        yield Token("hsm:2?label=anne")
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
