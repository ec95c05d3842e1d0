"""Halts, rot, full disks, second agents and long silences: the model that runs goes on running."""

import errno
import os
import re
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent import agent
from device_agent.__main__ import main
from device_agent.errors import Busy, Unavailable
from device_agent.states import Committing, Downloading, Idle
from tests.agent.conftest import Lab
from tests.agent.loopback import Answer, Asked, problem


def test_an_order_that_is_withdrawn_before_the_switch_is_not_followed(lab: Lab) -> None:
    lab.server.offer("r2")
    polls: list[int] = []

    def halt(asked: Asked, answer: Answer) -> Answer:
        if "poll" in asked.path:
            polls.append(1)
            if len(polls) == 1:
                lab.server.offer("r2", hold=True)
        return answer

    lab.server.lie = halt
    assert lab.once() is None
    assert lab.release_running() == "r1"
    assert "activated" not in lab.server.event_kinds()


def test_a_switch_waits_for_the_network(lab: Lab) -> None:
    lab.server.offer("r2")
    polls: list[int] = []

    def fail(asked: Asked, answer: Answer) -> Answer:
        polls.extend([1] if "poll" in asked.path else [])
        return problem(503, "busy", "Busy") if polls == [1, 1] else answer

    lab.server.lie = fail
    with pytest.raises(OSError, match="Busy"):
        lab.once()
    assert lab.release_running() == "r1"
    assert lab.once().kind == "committed"


def test_a_slot_that_rots_before_the_switch_is_not_switched_to(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.server.offer("r2")
    with lab.device() as device:
        real = device.check_in.still_ordered

        def rot(plan: Any) -> bool:
            (lab.config.state_dir / "slots/b/model").write_bytes(b"rotten")
            return real(plan)

        monkeypatch.setattr(device.check_in, "still_ordered", rot)
        outcome = agent.run_once(device)
    assert outcome is not None
    assert (outcome.kind, outcome.reason, lab.release_running()) == ("failed", "E_RESULT", "r1")


def test_a_slot_that_rots_after_the_switch_is_left_again(lab: Lab) -> None:
    lab.server.offer("r2")
    with lab.device() as device:
        state = device.journal.resume()
        while not isinstance(state, Committing):
            state = agent.advance(device, state)
        (lab.config.state_dir / "slots/b/model").write_bytes(b"rotten")
        outcome = agent.run_once(device)
    assert outcome is not None
    assert (outcome.kind, outcome.reason, lab.release_running()) == ("failed", "E_RESULT", "r1")


def test_a_slot_that_is_no_file_any_more_after_the_switch_is_left_again(lab: Lab) -> None:
    lab.server.offer("r2")
    with lab.device() as device:
        state = device.journal.resume()
        while not isinstance(state, Committing):
            state = agent.advance(device, state)
        model = lab.config.state_dir / "slots/b/model"
        model.unlink()
        os.mkfifo(model)
        outcome = agent.run_once(device)
    assert outcome is not None
    assert (outcome.kind, outcome.reason, lab.release_running()) == ("failed", "E_BASE", "r1")


@pytest.mark.attack("D15")
def test_a_full_disk_is_refused_before_the_download_and_tried_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.server.offer("r2")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 0))
        outcome = lab.once()
    assert (outcome.kind, outcome.reason) == ("refused", "E_SPACE")
    assert lab.once().kind == "committed"


@pytest.mark.attack("D15")
def test_a_disk_that_fills_up_in_the_middle_is_transient(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.server.make_patch("r1", "r2")
    lab.server.offer("r2", [lab.server.patch("r1", "r2")])

    def full(*values: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("device_agent.device.apply_patches", full)
        with pytest.raises(OSError, match="No space"):
            lab.once()
    assert lab.release_running() == "r1"
    assert lab.once().kind == "committed"


@pytest.mark.attack("D14")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_model_that_is_no_regular_file_is_refused_and_not_read(lab: Lab, kind: str) -> None:
    model = lab.config.state_dir / "slots" / "a" / "model"
    model.unlink()
    if kind == "link":
        model.symlink_to(lab.folder / "factory.model")
    elif kind == "pipe":
        os.mkfifo(model)
    else:
        model.mkdir()
    lab.server.offer("r2")
    outcome = lab.once()
    assert (outcome.kind, outcome.reason) == ("refused", "E_BASE")


def test_a_server_that_has_published_nothing_yet_is_no_attack(lab: Lab) -> None:
    files, lab.server.files = lab.server.files, {}
    assert lab.once() is None
    assert not lab.server.events
    lab.server.files = files
    lab.server.offer("r2")
    assert lab.once().kind == "committed"


@pytest.mark.attack("M47")
def test_a_second_agent_on_one_folder_is_turned_away(lab: Lab) -> None:
    with lab.device(), pytest.raises(Busy, match="another agent"), lab.device():
        pass


def test_unsent_reports_do_not_keep_the_device_from_polling(lab: Lab) -> None:
    lab.server.lie = lambda asked, answer: (
        problem(503, "busy", "Busy") if "events" in asked.path else answer
    )
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    with lab.device() as device:
        assert len(device.outbox) > 0
    lab.server.lie = lambda asked, answer: answer
    assert lab.once() is None
    with lab.device() as device:
        assert len(device.outbox) == 0
    assert lab.server.event_kinds() == "downloading applied activated committed".split()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def test_the_loop_rides_out_trouble_and_stops_when_told(lab: Lab) -> None:
    limits = replace(lab.config.limits, retry_s=0.001, poll_s_min=0.0, poll_s_max=0.01)
    lab.config = replace(lab.config, limits=limits)
    lab.server.offer("r2")
    troubles = iter(range(5))

    def trouble(asked: Asked, answer: Answer) -> Answer:
        return answer if next(troubles, None) is None else problem(502, "bad-gateway", "Bad")

    lab.server.lie = trouble
    stop = threading.Event()
    with lab.device() as device:
        thread = threading.Thread(target=agent.run, args=(device, stop))
        thread.start()
        wait_for(lambda: "committed" in lab.server.event_kinds())
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def test_a_switch_is_shown_by_a_poll_at_once_and_not_a_period_later(lab: Lab) -> None:
    lab.server.offer("r2")
    stop = threading.Event()
    new = lab.server.releases["r2"].sha256
    with lab.device() as device:
        thread = threading.Thread(target=agent.run, args=(device, stop))
        thread.start()
        try:
            wait_for(lambda: any(asked.query.get("s") == new for asked in lab.server.asked))
        finally:
            stop.set()
            thread.join(10)
    assert not thread.is_alive()


def test_a_download_that_never_ends_is_given_back_for_a_fresh_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(lab.config.limits, retry_s=0.0, retries_max=3)
    lab.config = replace(lab.config, limits=limits)
    lab.server.offer("r2")
    stop = threading.Event()
    with lab.device() as device:
        saved: list[str] = []
        real = device.journal.save

        def save(state: Any) -> Any:
            saved.append(type(state).__name__)
            if isinstance(state, Idle):
                stop.set()
            return real(state)

        def never(*values: Any) -> None:
            raise Unavailable("reset")

        monkeypatch.setattr(device.journal, "save", save)
        monkeypatch.setattr(device.client, "fetch", never)
        agent.run(device, stop)
    assert saved == [Downloading.__name__, Idle.__name__]


def test_refusals_in_a_row_slow_the_polling_down(lab: Lab) -> None:
    lab.server.offer("r2", device="d2")
    delays = []
    for _ in range(3):
        with lab.device() as device:
            agent.run_once(device)
            delays.append(agent.poll_delay_s(device))
    assert delays[0] > 100 and delays[1] > 200 and delays[2] > 400


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")  # as `write` says it: of no file


def test_a_full_disk_is_named_with_what_is_free_and_what_to_do(
    lab: Lab, toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.server.offer("r2")
    told = rf"No space left on device, [0-9]+ bytes are free; make room there: '{lab.folder}/state'"
    with lab.device() as device, monkeypatch.context() as patched:
        patched.setattr(device.client, "fetch", full)
        with pytest.raises(OSError, match=told):
            agent.run_once(device)
        assert re.search(told, device.journal.memory.trouble)
    monkeypatch.setattr(os, "fsync", full)
    assert main(["once", "--config", str(toml)]) == 75
    said = capsys.readouterr().err
    assert re.search(told, said) and said.count("make room") == 1
