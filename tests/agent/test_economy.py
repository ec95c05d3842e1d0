"""What a device asks for: one conditional question while nothing changes, else one bundle."""

from pathlib import Path

from tests.agent.conftest import Lab


def asked(lab: Lab) -> list[tuple[str, str, bool]]:
    """Every request since the last call: what was asked for, and whether on a condition."""
    found = [
        (request.method, request.path.split("/")[3], "if-none-match" in request.headers)
        for request in lab.server.asked
    ]
    lab.server.asked.clear()
    return found


def changed(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_an_unchanged_poll_is_one_conditional_request_and_touches_no_file(lab: Lab) -> None:
    assert lab.once() is None
    with lab.device() as device:
        asked(lab)
        before = changed(lab.config.state_dir)
        for _ in range(3):
            assert device.check() is None
        assert asked(lab) == [("GET", "poll", True)] * 3
        assert changed(lab.config.state_dir) == before


def test_a_poll_says_nothing_that_the_server_does_not_need(lab: Lab) -> None:
    assert lab.once() is None and lab.once() is None
    poll = lab.server.asked[-1]
    needed = {"host", "authorization", "if-none-match", "accept-encoding"}
    assert (poll.headers.keys(), poll.query.keys(), poll.body) == (needed, {"s", "root", "t"}, b"")


def test_a_changed_poll_brings_the_metadata_the_order_and_the_plan_in_one_answer(lab: Lab) -> None:
    assert lab.once() is None
    root = lab.server.documents["root"]
    for version in (2, 3):
        root.signed.version = version
        lab.server.put("root", root)
    lab.server.sign_all()
    lab.server.make_patch("r1", "r2")
    lab.server.offer("r2", [lab.server.patch("r1", "r2")])
    asked(lab)
    assert lab.once().kind == "committed"
    found = asked(lab)
    assert found[0] == ("GET", "poll", True)
    polls = [request for request in found if request[1] == "poll"]
    # The offer; right before the switch, whether it still stands; after it, as the proof.
    assert polls == [("GET", "poll", True), ("GET", "poll", True), ("GET", "poll", False)]
    others = [request[1] for request in found if request[1] != "poll"]
    assert others.count("artifacts") == 3  # the patch, the canary's manifest and its shard
    assert set(others) == {"artifacts", "events", "canary-reports"}
