"""One device through the whole cycle, on an honest server."""

from tests.agent.conftest import Lab


def test_nothing_happens_while_nothing_is_ordered(lab: Lab) -> None:
    assert lab.once() is None
    assert lab.release_running() == "r1"


def test_a_full_file_is_downloaded_tried_and_committed(lab: Lab) -> None:
    lab.server.offer("r2")
    outcome = lab.once()
    assert (outcome.kind, lab.release_running()) == ("committed", "r2")
    assert lab.server.event_kinds() == "downloading applied activated committed".split()
    (report,) = lab.server.reports
    assert report["old"] == {"sub": 20, "del": 0, "ins": 1}
    assert report["gate"] == "activated"


def test_a_patch_is_applied_to_the_running_model(lab: Lab) -> None:
    lab.server.make_patch("r1", "r2")
    lab.server.offer("r2", [lab.server.patch("r1", "r2")])
    assert lab.once().kind == "committed"
    assert lab.running() == lab.server.models["r2"]
