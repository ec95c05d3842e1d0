"""The demo's story, with the power cut under it: the server and every agent are killed once."""

from pathlib import Path
from typing import Any

from demo.cast import Cast, free_port
from demo.story import GATE, Story

# A smaller fleet than the demo's, so a larger first stage and a verdict from fewer devices.
SMALL = {"agents": 26, "stages": "75%,100%", "gate": GATE | {"alpha_halt": 0.05}}


class PowerCuts:
    """Kills the server, and each agent, at another point of a rollout."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.cut: list[str] = []

    def __call__(self, view: dict[str, Any]) -> None:
        victims = ["server", *(name for name in self.cast.processes if name.startswith("agents-"))]
        due = [name for name in victims if name not in self.cut]
        # One cut for every further device that was offered, reported or confirmed.
        moved = view["health"]["pairs"] + sum(s["confirmed"] for s in view["stages"])
        if due and moved > len(self.cut):
            self.cast.cut_power(due[0])
            self.cast.restart(due[0])
            if due[0] == "server":
                self.cast.await_server()
            self.cut.append(due[0])


def test_the_story_ends_the_same_when_the_server_and_every_agent_are_killed_once(
    tmp_path: Path,
) -> None:
    cast = Cast(tmp_path, free_port(0), agents_per_process=1)
    lines: list[str] = []
    story = Story(cast, lines.append, **SMALL)
    story.meanwhile = PowerCuts(cast)
    try:
        story.tell()
        assert len(story.meanwhile.cut) == 1 + len(story.names), lines
    finally:
        cast.stop()
