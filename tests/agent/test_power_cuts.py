"""The power goes away at every moment that can be told apart, and the device comes to the same end.

A moment is a call with an effect: a flush to the disk, a rename, a link, a removal, a request, a
start of the engine. Each is cut before and after it. A cut before a flush tears the file in the
middle, because what was not flushed may be half there.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent import agent, canary
from device_agent.client import Client
from device_agent.errors import NothingToDo, Rejected
from tests.agent.conftest import Lab

GOOD, BAD = 20, 90  # errors of the new model; the old one makes 20 of 400
ENDS = ("committed", "refused", "failed", "rolled_back")
EFFECTS = [
    (os, "replace"),
    (os, "symlink"),
    (os, "link"),
    (os, "rmdir"),
    (os, "unlink"),
    (os, "fsync"),
    (Client, "poll"),
    (Client, "post"),
    (Client, "fetch"),
    (canary, "run_engine"),
]


class PowerCut(BaseException):
    """Nothing catches it, as nothing catches the real one."""


class Fuse:
    """Counts moments and blows at one of them."""

    def __init__(self) -> None:
        self.blows_at = 0
        self.moments = 0
        self.thread = threading.get_ident()

    def tick(self) -> None:
        self.moments += 1
        if self.moments == self.blows_at:
            raise PowerCut

    def around(self, owner: Any, name: str) -> Callable[..., Any]:
        real = getattr(owner, name)

        def cut(*values: Any, **named: Any) -> Any:
            if threading.get_ident() != self.thread:
                return real(*values, **named)
            try:
                self.tick()
            except PowerCut:
                if name == "fsync":
                    tear(values[0])
                raise
            result = None if name == "fsync" else real(*values, **named)
            self.tick()
            return result

        return cut


def tear(descriptor: int) -> None:
    file = Path(f"/proc/self/fd/{descriptor}").resolve()
    if file.is_file():
        os.truncate(file, file.stat().st_size // 2)


@contextmanager
def fused(blows_at: int) -> Iterator[Fuse]:
    fuse = Fuse()
    fuse.blows_at = blows_at
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in EFFECTS:
            patch.setattr(owner, name, fuse.around(owner, name))
        yield fuse


class Story:
    """The same device, born again for every cut, and what must be true in the end."""

    def __init__(self, lab: Lab, kind: str, release: str, reports: int) -> None:
        self.lab, self.kind, self.release, self.reports = lab, kind, release, reports
        self.begin = lab.reborn
        self.begin()

    def live(self, blows_at: int) -> int:
        """One process's life, cut at a moment (0: never); how many moments it had."""
        with fused(blows_at) as fuse:
            try:
                self.lab.once()
            except PowerCut:
                self.must_be_whole()
                return blows_at
            return fuse.moments

    def must_be_whole(self) -> None:
        """What runs is one release with exactly its components, whenever one looks."""
        components = self.lab.server.components.get(self.lab.release_running(), {})
        assert self.lab.components_running() == components

    def must_end_well(self) -> None:
        for _ in range(2):
            self.lab.once()
        server = self.lab.server
        assert self.lab.release_running() == self.release
        self.must_be_whole()
        kinds = server.event_kinds()
        assert [kind for kind in kinds if kind in ENDS] == [self.kind], kinds
        assert len(set(kinds)) == len(kinds), kinds
        numbers = [event["seq"] for event in server.events]
        assert numbers == list(range(numbers[0], numbers[0] + len(kinds)))
        assert len({r["report_id"] for r in server.reports}) == self.reports
        with self.lab.device() as device:
            assert device.slots.active_sha256(fresh=True) in device.journal.memory.good
            assert type(device.journal.state).__name__ == "Idle"
            assert not list((self.lab.config.state_dir / "downloads").iterdir())


SETS = {
    "r2": {"lexicon.txt": b"words", "tokenizer.json": b"old"},
    "r3": {"lexicon.txt": b"words", "lm.bin": b"a language model", "tokenizer.json": b"new"},
}


def of_several_files(lab: Lab, kind: str) -> Story:
    """From r2 to r3, which share one component of three, or back again."""
    server = lab.server
    server.publish("r2", back_from=("r3",), components=SETS["r2"])
    server.publish("r3", errors=BAD if kind == "refused" else GOOD, components=SETS["r3"])
    server.offer("r2")
    assert lab.once().kind == "committed"
    server.offer("r3")
    if kind == "rolled_back":
        assert lab.once().kind == "committed"
        server.offer("r2", [server.undo("r2")])
    release = "r3" if kind == "committed" else "r2"
    return Story(lab, kind, release, reports=int(kind != "rolled_back"))


@pytest.fixture(params=["good", "bad", "back", "withdrawn", "committed", "refused", "rolled_back"])
def story(request: pytest.FixtureRequest, new_lab: Callable[..., Lab]) -> Story:
    lab = new_lab(new_errors=BAD if request.param == "bad" else GOOD)
    if request.param in ("committed", "refused", "rolled_back"):
        return of_several_files(lab, request.param)
    server = lab.server
    server.make_patch("r1", "r2")
    server.publish("r1", back_from=("r2",))
    server.offer("r2", [server.patch("r1", "r2")])
    if request.param == "good":
        return Story(lab, "committed", "r2", reports=1)
    if request.param == "bad":
        return Story(lab, "refused", "r1", reports=1)
    assert lab.once().kind == "committed"
    if request.param == "withdrawn":
        lab.config = replace(lab.config, on_withdrawn="previous_slot")
        server.publish("r2", status="withdrawn")
    server.offer("r1", [server.undo("r1")])
    return Story(lab, "rolled_back", "r1", reports=0)


def test_a_cut_at_any_moment_changes_nothing_in_the_end(story: Story) -> None:
    story.begin()
    moments = story.live(0)
    story.must_end_well()
    assert moments > 30
    for moment in range(1, moments + 1):
        story.begin()
        assert story.live(moment) == moment
        story.must_end_well()


@pytest.mark.parametrize("first", (7, 31, 55, 79))
def test_a_second_cut_during_the_recovery_changes_nothing(story: Story, first: int) -> None:
    for second in range(2, 40, 7):
        story.begin()
        story.live(first)
        story.live(second)
        story.must_end_well()


def test_who_goes_back_by_hand_after_a_cut_finds_a_whole_set_or_none(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab()
    server = lab.server
    server.publish("r2", back_from=("r3",), components=SETS["r2"])
    server.publish("r3", components=SETS["r3"])
    server.publish("r4", components=SETS["r2"] | {"tokenizer.json": b"newest"})
    for release in ("r2", "r3"):
        server.offer(release)
        assert lab.once().kind == "committed"
    server.offer("r4")
    story = Story(lab, "committed", "r4", reports=1)
    found = set()
    for moment in range(1, story.live(0) + 1):
        story.begin()
        story.live(moment)
        with lab.device() as device, suppress(NothingToDo, Rejected):
            agent.roll_back(device)
        story.must_be_whole()
        found.add(lab.release_running())
    assert found == {"r2", "r3", "r4"}
