"""The device's credential: renewed by the server, kept through power cuts, never lost."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from device_agent import agent
from device_agent.credential import read_credential
from device_agent.errors import Misconfigured, Unavailable
from tests.agent.conftest import Lab
from tests.agent.loopback import REFUSED, Answer, Asked, problem
from tests.agent.server_double import CREDENTIAL

NEW = "fc_0123456789abcdef_" + "n" * 43


class Renewing:
    """A server that renews the credential and takes the old one until the new one is used."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.offers, self.valid, self.proxy = lab, NEW, {CREDENTIAL}, False
        self.sent: list[str] = []
        lab.server.lie = self
        lab.server.offer("r2")

    def __call__(self, asked: Asked, _answer: Answer) -> Answer:
        sent = asked.headers.get("authorization", "").removeprefix("Bearer ")
        self.sent.append(sent)
        if sent not in self.valid:
            ours = {} if self.proxy else REFUSED
            return problem(401, "unauthorized", "A valid credential is required", **ours)
        if sent == NEW:
            self.valid = {NEW}
        asked.headers["authorization"] = f"Bearer {CREDENTIAL}"
        found = self.lab.server.answer(asked)
        if asked.path.endswith("/poll") and sent == CREDENTIAL and self.offers:
            self.valid.add(self.offers)
            found.headers["Next-Credential"] = self.offers
        return found


def file_of(lab: Lab) -> Any:
    return json.loads((lab.config.state_dir / agent.CREDENTIAL).read_bytes())


def test_a_new_credential_is_kept_before_it_is_used(lab: Lab) -> None:
    server = Renewing(lab)
    with lab.device() as device:
        agent.run_once(device)
        kept = {"credential": NEW, "before": CREDENTIAL, "proven": NEW, "refused": 0}
        assert file_of(lab) == {"device_id": "d1"} | kept
        assert (lab.config.state_dir / agent.CREDENTIAL).stat().st_mode & 0o777 == 0o600
    assert server.sent[0] == CREDENTIAL and set(server.sent[1:]) == {NEW}
    lab.once()
    assert server.sent[-1] == NEW and server.valid == {NEW}
    assert lab.release_running() == "r2"


@pytest.mark.parametrize("junk", ["", "a\x7fb", "x" * 257, "\xe9"])
def test_what_is_no_credential_is_not_kept(lab: Lab, junk: str) -> None:
    Renewing(lab).offers = junk
    lab.once()
    assert file_of(lab)["credential"] == CREDENTIAL


def test_a_server_set_back_to_before_the_renewal_still_knows_its_device(lab: Lab) -> None:
    server = Renewing(lab)
    lab.once()
    server.valid, server.offers = {CREDENTIAL}, ""
    for _ in range(3):  # each by a process of its own, as a timer starts them
        with pytest.raises(Unavailable, match="401"):
            lab.once()
    lab.once()
    assert server.sent[-4:] == [NEW, NEW, NEW, CREDENTIAL]
    assert file_of(lab)["credential"] == CREDENTIAL
    assert file_of(lab)["before"] == NEW, "nothing is forgotten"
    server.offers = NEW.replace("n", "m")
    lab.once()
    assert file_of(lab)["credential"] == server.offers and file_of(lab)["before"] == CREDENTIAL


@pytest.mark.attack("A07")
@pytest.mark.parametrize("proxy", [False, True])
def test_a_refusal_that_passes_makes_no_device_show_its_old_credential(
    lab: Lab, proxy: bool
) -> None:
    """It would raise the alarm that two hold it. A proxy may say no for as long as it likes."""
    server = Renewing(lab)
    lab.once()
    server.valid, server.proxy, good = set(), proxy, server.valid
    for _ in range(7 if proxy else 2):
        with pytest.raises(Unavailable, match="401"):
            lab.once()
    server.valid, before = good, len(server.sent)
    lab.once()
    assert CREDENTIAL not in server.sent[1:] and len(server.sent) > before
    assert file_of(lab)["credential"] == NEW and file_of(lab)["refused"] == 0


@pytest.mark.attack("A07")
def test_false_credentials_do_not_push_out_the_one_that_brought_an_order(lab: Lab) -> None:
    """Somebody in the network with a broken TLS hands out one after the other, and goes away."""
    server = Renewing(lab)
    server.offers = ""
    lab.once()
    assert file_of(lab)["proven"] == CREDENTIAL
    for number in range(5):
        told = f"fc_{'0' * 16}_{number}"

        def lie(asked: Asked, answer: Answer, told: str = told) -> Answer:
            return Answer(
                200, b'{"metadata": {}, "order": null, "plan": null}', {"Next-Credential": told}
            )

        lab.server.lie = lie
        lab.once()
        assert file_of(lab)["credential"] == told
    lab.server.lie, server.valid = server, {CREDENTIAL}
    for _ in range(6):
        with pytest.raises(Unavailable, match="401"):
            lab.once()
    lab.once()
    assert file_of(lab)["credential"] == CREDENTIAL


def test_a_refused_credential_alone_is_sent_again(lab: Lab) -> None:
    server = Renewing(lab)
    server.valid = set()
    with lab.device() as device:
        for _ in range(3):
            with pytest.raises(Unavailable, match="401"):
                agent.run_once(device)
    assert server.sent == [CREDENTIAL] * 3


class PowerCut(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("after", [False, True])
def test_no_power_cut_loses_the_credential(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str, moment: int, after: bool
) -> None:
    server, left = Renewing(lab), [moment]
    real: Callable[..., Any] = getattr(os, name)

    def cut(*values: Any, **named: Any) -> Any:
        # The first renewal is the first thing that a polling device writes.
        if left[0] == 0:
            left[0] = -1
            if after:
                real(*values, **named)
            raise PowerCut
        left[0] -= 1
        return real(*values, **named)

    with lab.device() as device, monkeypatch.context() as patch:
        patch.setattr(os, name, cut)
        with pytest.raises(PowerCut):
            agent.run_once(device)
    assert file_of(lab)["credential"] in server.valid
    lab.once()
    assert lab.release_running() == "r2" and file_of(lab)["credential"] == NEW


def test_a_file_from_before_renewals_is_still_read(lab: Lab) -> None:
    path = lab.config.state_dir / agent.CREDENTIAL
    path.write_text(json.dumps({"device_id": "d1", "credential": CREDENTIAL, "root_sha256": ""}))
    assert read_credential(lab.config.state_dir).credential == CREDENTIAL
    path.write_text("{}")
    with pytest.raises(Misconfigured, match="damaged"):
        read_credential(lab.config.state_dir)
