"""A device looks at the conditions of a plan itself, by its own clock, before it downloads."""

import os
import stat
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from device_agent.errors import Unavailable
from device_agent.states import Downloading
from tests.agent.conftest import Lab

WINDOW = {"start_min": 60, "end_min": 5 * 60}


@pytest.fixture(autouse=True)
def in_kolkata() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "IST-5:30"
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


def offered(lab: Lab, **conditions: Any) -> None:
    lab.server.offer("r2")
    lab.server.plan["conditions"] = conditions


def fetched(lab: Lab) -> bool:
    return any("artifacts" in request.path for request in lab.server.asked)


def refused_to_begin(lab: Lab, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        lab.once()
    assert not fetched(lab) and lab.release_running() == "r1"


def probe(lab: Lab, said: str) -> tuple[str, ...]:
    path: Path = lab.folder / "probe"
    path.write_text(f"#!/bin/sh\n{said}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (str(path),)


def test_nothing_is_downloaded_outside_of_the_window_by_the_devices_own_clock(lab: Lab) -> None:
    offered(lab, window=WINDOW)
    lab.server.now = lab.server.now.replace(hour=19, minute=29)  # 00:59 there
    refused_to_begin(lab, "00:59 is outside of the window")
    lab.server.now += timedelta(minutes=1)
    assert lab.once().kind == "committed"


def test_a_download_that_was_cut_off_does_not_go_on_outside_of_the_window(lab: Lab) -> None:
    offered(lab, window=WINDOW)
    lab.server.now = lab.server.now.replace(hour=19, minute=31)
    with lab.device() as device:
        plan = device.check()
        assert plan is not None
        device.journal.save(Downloading(plan, 0))
    lab.server.now = lab.server.now.replace(hour=23, minute=30)  # 05:00 there
    refused_to_begin(lab, "05:00 is outside")


@pytest.mark.parametrize(
    ("conditions", "attributes", "why"),
    [
        ({"networks": ["fast", "slow"]}, {"network": "metered"}, "not fast or slow"),
        ({"networks": ["fast"]}, {}, "not fast"),
        ({"idle": True}, {"network": "fast"}, "not idle"),
        ({"charging": True}, {}, "not charging"),
    ],
)
def test_what_a_device_cannot_tell_is_not_so(
    new_lab: Any, conditions: Any, attributes: Any, why: str
) -> None:
    lab = new_lab(attributes=attributes)
    offered(lab, **conditions)
    refused_to_begin(lab, why)


@pytest.mark.parametrize(
    "said", ["echo metered charging", "exit 1", "sleep 60", "echo fast; false"]
)
def test_a_probe_that_says_otherwise_or_fails_keeps_the_device_waiting(
    new_lab: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.surroundings.PROBE_S_MAX", 0.2)
    lab = new_lab(attributes={"network": "fast"})
    lab.config = lab.config.__class__(**vars(lab.config) | {"probe": probe(lab, said)})
    offered(lab, networks=["fast"])
    refused_to_begin(lab, "not fast")


def test_the_server_is_told_where_a_device_is_and_again_only_when_that_changes(lab: Lab) -> None:
    lab.config = lab.config.__class__(
        **vars(lab.config) | {"probe": probe(lab, "echo idle metered")}
    )
    assert lab.once() is None and lab.once() is None
    (said,) = lab.server.capacities
    assert said["surroundings"] == {
        "utc_offset_s": 19800,
        "network": "metered",
        "idle": True,
        "charging": False,
    }
    os.environ["TZ"] = "IST-6:30"  # summer
    time.tzset()
    assert lab.once() is None
    assert lab.server.capacities[-1]["surroundings"]["utc_offset_s"] == 23400
