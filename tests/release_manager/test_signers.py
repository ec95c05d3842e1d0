"""Keys where they lie: in files with a passphrase, and on a token that never gives them away."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from release_manager.errors import Refused, Usage
from release_manager.signers import (
    SECRET_VARIABLE,
    ask_secret,
    open_signer,
    public_key,
    signature_of,
)
from tests.real.softhsm import PIN, Token
from tests.release_manager.desk import Desk
from tests.release_manager.key_service import run_key_service
from tests.release_manager.town import Machine, Town
from trust import sign
from trust.keys import check_key


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of bcrypt: how long a guess takes is not what these tests are about."""
    monkeypatch.setattr(sign, "BCRYPT_ROUNDS", 1)


def make(desk: Desk, file: Path, *words: str) -> Any:
    return desk.json("key", "make", file, *words)


def test_a_key_is_made_in_a_file_with_its_public_part_beside(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "anne.pem"
    done = make(desk, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    public = json.loads((tmp_path / "anne.pem.pub").read_bytes())
    assert public == {name: done[name] for name in public}
    assert public["keytype"] == public["scheme"] == "ed25519"
    assert desk.json("key", "show", f"file:{file}") == public
    assert desk.json("key", "show", file)["keyid"] == public["keyid"]
    assert desk.run("key", "make", file) == 1
    assert "never overwritten" in desk.err


def test_a_passphrase_is_stretched_and_needed(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sign.BCRYPT_ROUNDS >= 100
    file = tmp_path / "anne.pem"
    monkeypatch.setenv(SECRET_VARIABLE, "correct horse")
    done = make(desk, file, "--passphrase")
    assert "correct horse" not in desk.everything
    with pytest.raises(TypeError):
        s.load_ssh_private_key(file.read_bytes(), None)
    assert desk.json("key", "show", file)["keyid"] == done["keyid"]
    monkeypatch.setenv(SECRET_VARIABLE, "wrong")
    assert desk.run("key", "show", file) == 1
    assert str(file) in desk.err and "wrong" not in desk.err


def test_the_passphrase_is_asked_for_twice_at_a_terminal(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for typed, code in ((["one", "two"], 1), (["one", "one"], 0)):
        monkeypatch.setattr("getpass.getpass", lambda _, typed=typed: typed.pop(0))
        assert desk.run("key", "make", tmp_path / "k.pem", "--passphrase") == code, desk.err
        assert (tmp_path / "k.pem").exists() == (code == 0)


def test_where_nobody_can_be_asked_the_passphrase_is_missing(
    desk: Desk, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.run("key", "make", tmp_path / "k.pem", "--passphrase") == 2
    assert SECRET_VARIABLE in desk.err and not (tmp_path / "k.pem").exists()
    sign.generate_key(tmp_path / "k.pem", "secret")
    assert desk.run("key", "show", tmp_path / "k.pem") == 2


def test_an_encrypted_pem_of_another_tool_is_opened_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "ec.pem"
    hidden = s.BestAvailableEncryption(b"secret")
    file.write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, hidden))
    monkeypatch.setenv(SECRET_VARIABLE, "secret")
    uri, key = public_key(f"file:{file}")
    assert (uri, key.scheme) == (f"file:{file}", "ecdsa-sha2-nistp256")


@pytest.mark.parametrize(
    "body", [b"", b"no key", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", b"\xff"]
)
def test_a_file_that_is_no_key_is_named(desk: Desk, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "bad.pem").write_bytes(body)
    assert desk.run("key", "show", tmp_path / "bad.pem") == 1
    assert "bad.pem is no private key" in desk.err
    assert desk.run("key", "show", tmp_path / "none.pem") == 1
    assert "none.pem" in desk.err


@pytest.mark.parametrize("uri", ["ftp:key", "hsm", "gpg:0123", "file2:x.pem"])
def test_a_uri_of_an_unknown_kind_is_refused(uri: str) -> None:
    with pytest.raises((Usage, OSError)) as caught:
        public_key(uri)
    if isinstance(caught.value, Usage):
        assert "is not the URI of a key" in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["gcpkms:projects/p", "azurekms://v.vault.azure.net/keys/k/1", "hv:k/1", "hsm:x"]
)
def test_a_key_service_whose_library_is_missing_says_so(uri: str) -> None:
    with pytest.raises(Refused, match="cannot be opened") as caught:
        public_key(uri)
    assert "securesystemslib[SCHEME]" in caught.value.advice


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keyid":"a","keytype":"b","scheme":"c","public":1}',
        b"\xff",
        b"[" * 60_000,
    ],
)
def test_a_public_key_that_is_none_is_refused(the_town: Town, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "bad.pub").write_bytes(body)
    the_town.found()
    assert the_town.anne.run("model", "create", "asr", "--add", tmp_path / "bad.pub") == 1
    assert "bad.pub is no public key" in the_town.anne.err


# --- a token


@pytest.mark.real
def test_a_token_signs_and_keeps_its_key(
    token: Token, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = desk.json("key", "show", token.uri)
    assert (shown["scheme"], shown["uri"]) == ("ecdsa-sha2-nistp256", token.uri)
    public = {"public": shown["public"]}
    key = SSlibKey(shown["keyid"], shown["keytype"], shown["scheme"], public)
    signer = open_signer(token.uri, [key])
    monkeypatch.setenv(SECRET_VARIABLE, PIN)
    signature: Signature = signer.sign(b"payload")
    key.verify_signature(signature, b"payload")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.delenv(SECRET_VARIABLE)
    asked: list[str] = []
    monkeypatch.setattr("getpass.getpass", lambda text: (asked.append(text), PIN)[1])
    key.verify_signature(signer.sign(b"another"), b"another")
    assert asked == ["pin: "]
    with pytest.raises(Refused, match="may not sign this"):
        open_signer(token.uri, [])


def test_a_pin_that_nobody_can_give_is_wrong_usage_and_no_broken_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = CryptoSigner.generate_ed25519()
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    monkeypatch.setattr(token, "sign", lambda payload: ask_secret("the pin"))
    with pytest.raises(Usage, match="the pin is needed"):
        signature_of("hsm:2", token, b"payload")
    monkeypatch.setattr(token, "sign", lambda payload: {}["session"])
    with pytest.raises(Refused, match=r"hsm:2 did not sign \(KeyError: 'session'\)") as caught:
        signature_of("hsm:2", token, b"payload")
    assert "check the PIN" in caught.value.advice


@pytest.mark.real
def test_one_of_two_release_managers_signs_with_a_token(
    token: Token, the_town: Town, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    town = the_town
    town.found()
    dora = Machine(town, "dora")
    dora.folder.mkdir()
    (dora.folder / "root.json").write_bytes((town.anne.folder / "root.json").read_bytes())
    public = dora.folder / "token.pub"
    public.write_text(json.dumps(dora.json("key", "show", token.uri)))
    words = ["--add", str(public), "--add", str(town.ben.key("family-asr")), "--threshold", "2"]
    assert town.anne.run("model", "create", "asr", *words) == 0, town.anne.err
    for person in (town.anne, town.ben):
        person.sign("targets")
    assert town.anne.run("release", "publish", "asr", "r1", files[0]) == 0
    signing = ("sign", "family-asr", "--key", token.uri, "--yes")
    monkeypatch.setenv(SECRET_VARIABLE, "0000")
    assert dora.run(*signing) == 1
    assert "PinIncorrect" in dora.err
    monkeypatch.setenv(SECRET_VARIABLE, PIN)
    assert dora.json(*signing)["missing"] == 1
    assert town.ben.sign("family-asr")["published"]
    assert list(town.family().releases) == ["r1"]


# --- a key service


def test_a_key_service_signs_and_keeps_its_key(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with run_key_service("alias/releases") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", address)
        shown = desk.json("key", "show", "awskms:alias/releases")
        assert shown["scheme"] == "ecdsa-sha2-nistp256"
        public = {"public": shown["public"]}
        key = SSlibKey(shown["keyid"], shown["keytype"], shown["scheme"], public)
        check_key(key)
        signer = open_signer("awskms:alias/releases", [key])
        key.verify_signature(signer.sign(b"payload"), b"payload")
        assert desk.run("key", "show", "awskms:alias/other") == 1
        assert "NotFound" in desk.err
