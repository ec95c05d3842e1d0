"""Pipelines, ways back and first installs: every way to a release."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from device_agent import agent
from device_agent.config import AGENT_VERSION
from device_agent.device import LocalDevice
from device_agent.errors import NothingToDo, Rejected
from device_agent.states import Committing
from tests.agent.conftest import Lab
from tests.agent.server_double import digest


def at_r2(lab: Lab) -> Lab:
    lab.server.publish("r1", back_from=("r2",))
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    lab.server.order = lab.server.plan = None
    return lab


def test_a_missing_artifact_leads_to_the_next_pipeline(lab: Lab) -> None:
    patch = lab.server.make_patch("r1", "r2")
    del lab.server.blobs[patch.sha256]
    lab.server.offer("r2", [lab.server.patch("r1", "r2")], [lab.server.full("r2")])
    assert lab.once().kind == "committed"
    assert lab.release_running() == "r2"


def test_a_patch_that_does_not_apply_leads_to_the_next_pipeline(lab: Lab) -> None:
    patch = lab.server.make_patch("r1", "r2")
    rubbish = b"validly signed and no patch at all"
    lab.server.patches["r1", "r2"] = replace(patch, sha256=digest(rubbish), bytes=len(rubbish))
    lab.server.blobs[digest(rubbish)] = rubbish
    lab.server.sign_all()
    lab.server.offer("r2", [lab.server.patch("r1", "r2")], [lab.server.full("r2")])
    assert lab.once().kind == "committed"


def test_the_last_pipelines_failure_is_the_reason(lab: Lab) -> None:
    lab.server.offer("r2")
    del lab.server.blobs[lab.server.releases["r2"].sha256]
    outcome = lab.once()
    assert (outcome.kind, outcome.reason) == ("refused", "E_HTTP")
    assert "No such artifact" in outcome.detail


def test_a_chain_of_patches_is_one_pipeline(lab: Lab) -> None:
    lab.server.publish("r3")
    for pair in (("r1", "r2"), ("r2", "r3")):
        lab.server.make_patch(*pair)
    lab.server.offer("r3", [lab.server.patch("r1", "r2"), lab.server.patch("r2", "r3")])
    assert lab.once().kind == "committed"
    assert lab.release_running() == "r3"


def test_a_chain_with_a_missing_link_is_refused(lab: Lab) -> None:
    lab.server.publish("r3")
    lab.server.make_patch("r2", "r3")
    lab.server.offer("r3", [lab.server.patch("r2", "r3")])
    assert lab.once().reason == "E_NOT_RELEASED"


def test_a_patch_behind_a_full_file_is_applied_to_it(lab: Lab) -> None:
    lab.server.publish("r3")
    lab.server.make_patch("r2", "r3")
    lab.server.offer("r3", [lab.server.full("r2"), lab.server.patch("r2", "r3")])
    assert lab.once().kind == "committed"
    assert lab.release_running() == "r3"


@pytest.mark.attack("M27")
def test_an_ordered_way_back_takes_the_bytes_from_the_spare_slot(lab: Lab) -> None:
    at_r2(lab)
    lab.server.offer("r1", [lab.server.undo("r1")], [lab.server.full("r1")])
    lab.server.asked.clear()
    outcome = lab.once()
    assert (outcome.kind, outcome.reason) == ("rolled_back", "ordered")
    assert lab.release_running() == "r1"
    assert not any("artifacts" in asked.path for asked in lab.server.asked)


def test_a_way_back_without_the_bytes_downloads_them_and_needs_no_trial(lab: Lab) -> None:
    at_r2(lab)
    (lab.config.state_dir / "slots" / "a" / "model").write_bytes(b"damaged")
    lab.config = replace(lab.config, recogniser=("/bin/false",))
    lab.server.offer("r1", [lab.server.undo("r1")], [lab.server.full("r1")])
    assert lab.once().kind == "committed"
    assert lab.release_running() == "r1"


def test_a_person_may_go_back_and_the_device_stays_there(lab: Lab) -> None:
    lab.server.publish("r1", back_from=("r2",))
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    with lab.device() as device:
        agent.roll_back(device)
    assert lab.release_running() == "r1"
    assert lab.server.events[-1]["reason"] == "by_hand"
    assert lab.once() is None
    assert lab.release_running() == "r1"


def test_a_person_may_end_a_trial_that_is_under_way(lab: Lab) -> None:
    lab.server.publish("r1", back_from=("r2",))
    lab.server.offer("r2")
    with lab.device() as device:
        state = device.journal.resume()
        while not isinstance(state, Committing):
            state = agent.advance(device, state)
    assert lab.release_running() == "r2"
    with lab.device() as device:
        agent.roll_back(device)
    assert lab.once() is None
    assert lab.release_running() == "r1"
    assert "failed" not in lab.server.event_kinds()


def test_a_person_may_not_go_back_where_nobody_signed_a_way(lab: Lab) -> None:
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    with lab.device() as device, pytest.raises(Rejected, match="E_DOWNGRADE"):
        agent.roll_back(device)
    assert lab.release_running() == "r2"


def test_a_person_may_not_go_back_to_a_withdrawn_release(lab: Lab) -> None:
    at_r2(lab)
    lab.server.publish("r1", status="withdrawn", back_from=("r2",))
    lab.once()
    with lab.device() as device, pytest.raises(Rejected, match="E_DOWNGRADE"):
        agent.roll_back(device)


@pytest.mark.parametrize("spoil", ["never filled", "changed", "only tried"])
def test_without_a_good_earlier_release_there_is_nothing_to_go_back_to(
    lab: Lab, spoil: str
) -> None:
    if spoil == "changed":
        at_r2(lab)
        (lab.config.state_dir / "slots" / "a" / "model").write_bytes(b"?")
    if spoil == "only tried":
        lab.config = replace(lab.config, recogniser=("/bin/false",))
        lab.server.offer("r2")
        assert lab.once().kind == "refused"
    with lab.device() as device, pytest.raises(NothingToDo):
        agent.roll_back(device)


def test_a_device_without_a_model_takes_the_full_file(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab()
    shutil.rmtree(lab.config.state_dir)
    agent.enroll(lab.config, "token", None)
    assert lab.once() is None
    assert "s" not in lab.server.asked[-1].query
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    assert not lab.server.reports


@pytest.mark.parametrize("moment", ["fetch", "build", "evaluate", "switch", "commit"])
def test_what_an_agent_from_before_there_were_components_left_is_gone_on_with(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    lab.server.offer("r2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalDevice, moment, cut)
        lab.once()
    for trace in lab.config.state_dir.glob("slots/*/components*"):
        shutil.rmtree(trace) if trace.is_dir() else trace.unlink()
    for file in lab.config.state_dir.glob("journal.?"):
        entry = json.loads(file.read_bytes().partition(b"\n")[2])
        entry["state"].get("plan", {}).pop("components", None)
        del entry["memory"]["agent"]
        body = json.dumps(entry).encode()
        file.write_bytes(digest(body).encode() + b"\n" + body)
    assert lab.once().kind == "committed"
    assert lab.release_running() == "r2"
    assert [e["detail"] for e in lab.server.events if e["reason"] == "agent"] == [AGENT_VERSION]
