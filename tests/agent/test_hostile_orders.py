"""Old, foreign and hidden orders and metadata, told to a device by its own server."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from device_agent.errors import Unavailable
from tests.agent.conftest import Lab
from tests.agent.hostile import HONEST, change_bundle, must_recover, must_refuse
from tests.agent.loopback import Answer, problem


@pytest.mark.attack("M38")
@pytest.mark.parametrize(
    "made_for",
    [{"hardware": ("riscv64",)}, {"format": "onnx"}, {"min_agent": "0.1.1"}],
)
def test_m38_a_release_that_is_not_made_for_the_device_is_refused(
    lab: Lab, made_for: dict[str, Any]
) -> None:
    lab.config = replace(lab.config, formats=("safetensors", "gguf"))
    fits = lab.server.releases["r2"]
    lab.server.releases["r2"] = replace(fits, **made_for)
    lab.server.sign_all()
    lab.server.offer("r2")
    must_refuse(lab, "E_INCOMPAT")
    lab.server.releases["r2"] = fits
    lab.server.sign_all()
    must_recover(lab)


@pytest.mark.attack("M50")
def test_m50_a_release_that_ran_here_and_now_has_other_bytes_is_refused(lab: Lab) -> None:
    """Also the one that the device was born with, once the family told its name."""
    server = lab.server
    assert lab.once() is None
    honest = server.releases["r1"]
    server.models["r1"] = server.models["r2"] + b"and more"
    server.publish("r1")
    server.offer("r1")
    must_refuse(lab, "E_EQUIVOCATION")
    server.releases["r1"] = honest
    server.sign_all()
    server.offer("r2")
    must_recover(lab)


@pytest.mark.attack("M44")
def test_m44_a_server_that_drips_is_told_of_it_once_it_answers(lab: Lab) -> None:
    limits = replace(lab.config.limits, request_s_max=0.7)
    lab.config, usual = replace(lab.config, limits=limits), lab.config
    lab.server.offer("r2")
    drip = Answer(chunks=[b" "] * 100, declare=1000, pause_s=0.02)
    lab.server.lie = lambda asked, answer: drip if "poll" in asked.path else answer
    for _ in range(2):
        with pytest.raises(Unavailable):
            lab.once()
    lab.config = usual
    must_recover(lab)
    notes = [e["reason"] for e in lab.server.events if e["kind"] == "note"]
    assert notes == ["E_SLOW"]


@pytest.mark.attack("M45")
def test_a_damaged_metadata_cache_heals(lab: Lab) -> None:
    assert lab.once() is None
    for file in (lab.config.state_dir / "tuf").glob("*.json"):
        file.write_text("{")
    lab.server.offer("r2")
    outcomes = [outcome.kind for outcome in (lab.once(), lab.once()) if outcome]
    assert outcomes in (["committed"], ["refused", "committed"])
    assert lab.release_running() == "r2"


@pytest.mark.attack("M31")
def test_a_new_root_is_followed(lab: Lab) -> None:
    assert lab.once() is None
    root = lab.server.documents["root"]
    root.signed.version = 2
    lab.server.put("root", root)
    lab.server.sign_all()
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    lab.once()
    assert lab.server.asked[-1].query["root"] == "2"


@pytest.mark.attack("M18")
def test_an_answer_that_never_changes_is_noticed_when_its_metadata_expires(lab: Lab) -> None:
    lab.server.offer("r2", hold=True)
    assert lab.once() is None
    lab.server.lie = lambda asked, answer: replace(answer, status=304, body=b"")
    assert lab.once() is None
    assert not lab.server.events
    lab.server.now += timedelta(days=4)
    assert lab.once() is None
    lab.server.lie = HONEST
    lab.server.sign_all()
    lab.server.now -= timedelta(days=4)
    lab.once()
    assert [(e["kind"], e["reason"]) for e in lab.server.events] == [("note", "E_FREEZE")]
    assert lab.release_running() == "r1"


def test_a_304_to_an_unconditional_question_is_no_answer(lab: Lab) -> None:
    lab.server.lie = lambda asked, answer: replace(answer, status=304, body=b"")
    with pytest.raises(OSError, match="without a condition"):
        lab.once()


@pytest.mark.attack("M41")
def test_m41_a_device_whose_next_root_is_withheld_goes_on_and_obeys_nothing_newer(
    lab: Lab,
) -> None:
    """As TUF has it: no root N+1 means that N is in force. The order tells that it is not."""
    server = lab.server
    server.offer("r2", hold=True)
    root = server.documents["root"]
    root.signed.version = 2
    server.put("root", root)
    withhold = change_bundle(lambda bundle: bundle["metadata"].pop("2.root.json"))
    server.lie = withhold
    assert lab.once() is None
    server.sign_all()
    server.offer("r2")
    must_refuse(lab, "E_FREEZE")
    must_recover(lab)


@pytest.mark.attack("M41")
@pytest.mark.parametrize("status", [403, 408, 500, 503])
def test_m41_a_poll_that_fails_is_asked_again(lab: Lab, status: int) -> None:
    lab.server.offer("r2")
    lab.server.lie = lambda asked, answer: problem(status, "no", "No")
    with pytest.raises(Unavailable):
        lab.once()
    assert lab.release_running() == "r1"
    must_recover(lab)
