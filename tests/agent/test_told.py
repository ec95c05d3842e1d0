"""What a device tells that plans are made of: the way it went, the way it could not, its room."""

import shutil
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from device_agent.device import room_told
from tests.agent.conftest import Lab
from tests.agent.server_double import digest

GB = 1 << 30


def at_r4(lab: Lab) -> Lab:
    """Bring a device from r1 to r4 by two patches, each of a few bytes, which it may go back."""
    server = lab.server
    for before, name in (("r1", "r3"), ("r3", "r4")):
        data = bytearray(server.models[before])
        for place in range(40, 400, 40):
            data[place] += 1
        server.models[name] = bytes(data)
    server.publish("r1", back_from=("r3", "r4"))
    server.publish("r3", back_from=("r4",))
    server.publish("r4")
    for pair in (("r1", "r3"), ("r3", "r4")):
        server.make_patch(*pair)
    server.offer("r4", [server.patch("r1", "r3"), server.patch("r3", "r4")])
    assert lab.once().kind == "committed"
    return lab


def back(lab: Lab, source: str, target: str) -> dict[str, Any]:
    """The step that undoes the patch between two releases."""
    release = lab.server.releases[source]
    return lab.server.patch(source, target) | {
        "op": "back",
        "to": release.sha256,
        "to_bytes": release.bytes,
    }


def said(lab: Lab, kind: str) -> list[tuple[str, str]]:
    return [(e["reason"], e["detail"]) for e in lab.server.events if e["kind"] == kind]


def named(lab: Lab, *pairs: tuple[str, str]) -> str:
    return " ".join(lab.server.patches[pair].sha256[:16] for pair in pairs)


def test_a_device_tells_by_which_patches_it_came(lab: Lab) -> None:
    at_r4(lab)
    assert said(lab, "applied") == [("", f"patch {named(lab, ('r1', 'r3'), ('r3', 'r4'))}")]


def test_a_device_tells_that_it_took_the_full_file(lab: Lab) -> None:
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    assert said(lab, "applied") == [("", "full")]


def test_a_device_tells_which_way_it_could_not_go_and_why(lab: Lab) -> None:
    patch = lab.server.make_patch("r1", "r2")
    rubbish = b"validly signed and no patch at all"
    lab.server.patches["r1", "r2"] = replace(patch, sha256=digest(rubbish), bytes=len(rubbish))
    lab.server.blobs[digest(rubbish)] = rubbish
    lab.server.sign_all()
    lab.server.offer("r2", [lab.server.patch("r1", "r2")], [lab.server.full("r2")])
    assert lab.once().kind == "committed"
    assert said(lab, "note") == [("E_PATCH", f"patch {named(lab, ('r1', 'r2'))}")]
    assert said(lab, "applied") == [("", "full")]


def test_patches_are_undone_in_the_order_in_which_they_must_be(lab: Lab) -> None:
    at_r4(lab)
    (lab.config.state_dir / "slots" / "a" / "model").unlink()
    ways = [lab.server.undo("r1")], [back(lab, "r3", "r4"), back(lab, "r1", "r3")]
    lab.server.offer("r1", *ways, [lab.server.full("r1")])
    assert lab.once().kind == "committed"
    assert lab.release_running() == "r1"
    assert said(lab, "applied")[-1] == ("", f"back {named(lab, ('r3', 'r4'), ('r1', 'r3'))}")


@pytest.mark.attack("M27")
def test_no_patch_is_undone_that_leads_elsewhere_nor_beside_other_steps(lab: Lab) -> None:
    at_r4(lab)
    server = lab.server
    for steps in (
        [back(lab, "r1", "r3")],
        [back(lab, "r3", "r4")],
        [server.full("r4"), back(lab, "r3", "r4"), back(lab, "r1", "r3")],
        [back(lab, "r3", "r4"), back(lab, "r1", "r3"), server.patch("r1", "r3")],
        [{**back(lab, "r3", "r4"), "to": server.releases["r1"].sha256}],
    ):
        server.offer("r1", steps)
        assert lab.once().reason == "E_NOT_RELEASED", steps
    assert lab.release_running() == "r4"


def test_undoing_makes_nobody_go_back_where_the_family_signs_no_way(lab: Lab) -> None:
    lab.server.make_patch("r1", "r2")
    lab.server.offer("r2", [lab.server.patch("r1", "r2")])
    assert lab.once().kind == "committed"
    lab.server.offer("r1", [back(lab, "r1", "r2")])
    assert lab.once().reason == "E_DOWNGRADE"
    assert lab.release_running() == "r2"


# --- room


def test_a_device_tells_once_what_it_has_for_an_update(lab: Lab) -> None:
    for _ in range(3):
        lab.once()
    (has,) = lab.server.capacities
    assert has["memory_bytes"] > 0 and has["goes_back"] is True
    free = shutil.disk_usage(lab.config.state_dir).free
    assert 0 <= has["room_bytes"] <= free


def test_a_disk_that_fills_up_is_told_and_one_that_empties_is_told_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_free(free: int) -> Any:
        disk = SimpleNamespace(free=free)
        monkeypatch.setattr("device_agent.device.shutil.disk_usage", lambda _: disk)
        lab.server.now += timedelta(minutes=15)
        lab.once()
        return [has["room_bytes"] for has in lab.server.capacities]

    first = with_free(5 * GB)
    assert first == [4 * GB]
    assert with_free(9 * GB) == first, "twice as much is no news"
    assert with_free(3 * GB) == [4 * GB, 2 * GB]
    assert with_free(9 * GB) == [4 * GB, 2 * GB, 8 * GB]
    assert with_free(0) == [4 * GB, 2 * GB, 8 * GB, 0]


@pytest.mark.parametrize(
    ("free", "told", "says"),
    [(0, 0, 0), (-5, 0, 0), (-5, 8, 0), (1, 0, 1), (9, 8, 8), (31, 8, 8), (32, 8, 32), (7, 8, 4)],
)
def test_room_is_never_told_as_more_than_there_is(free: int, told: int, says: int) -> None:
    assert room_told(free, told) == says
    assert room_told(free, told) <= max(free, 0)
