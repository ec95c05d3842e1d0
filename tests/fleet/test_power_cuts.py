"""The demo's story, with the power cut under it: every process is killed once while it works."""

from pathlib import Path
from typing import Any

from demo.cast import Cast, free_port
from demo.story import GATE, Story

# A smaller fleet than the demo's, so a larger first stage and a verdict from fewer devices.
SMALL = {"agents": 26, "stages": "75%,100%", "gate": GATE | {"alpha_halt": 0.05}}


class PowerCuts:
    """Kills the server, and each process of agents, at another point of the first rollout."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.cut: list[str] = []

    def __call__(self, view: dict[str, Any]) -> None:
        victims = ["server", *(name for name in self.cast.processes if name.startswith("agents-"))]
        due = [name for name in victims if name not in self.cut]
        # One cut for every further device that was offered, reported or confirmed.
        moved = view["health"]["pairs"] + sum(s["confirmed"] for s in view["stages"])
        if due and moved > 2 * len(self.cut):
            self.cast.cut_power(due[0])
            self.cast.restart(due[0])
            if due[0] == "server":
                self.cast.await_server()
            self.cut.append(due[0])


def test_the_story_ends_the_same_when_every_process_is_killed_once(tmp_path: Path) -> None:
    cast = Cast(tmp_path, free_port(0), agents_per_process=7)
    lines: list[str] = []
    story = Story(cast, lines.append, **SMALL)
    story.meanwhile = PowerCuts(cast)
    try:
        story.tell()
        # The server, four processes of agents, and the latecomers'.
        assert len(story.meanwhile.cut) == 6, lines
    finally:
        cast.stop()
