"""Devices that say what is not so; everything else about them is the agent."""

from typing import Any

from device_agent.plan import Plan
from tests.fleet.simulated import SimulatedDevice

OTHER = "0f" * 32


class SaysSo(SimulatedDevice):
    """Says that it took the release, and goes on with the old one."""

    def switch(self, plan: Plan) -> bool:
        self._say(plan, "activated")
        return True

    def commit(self, plan: Plan) -> bool:
        return True


class RunsOther(SaysSo):
    """Says that it took the release, and runs bytes that nobody released."""

    def switch(self, plan: Plan) -> bool:
        self.slots.here = OTHER
        return super().switch(plan)


class GoesBack(SimulatedDevice):
    """Takes the release, says so, and some polls later is on the old one again, silently."""

    stays = 3

    def check(self) -> Plan | None:
        came = len(self.ran) > 1
        self.stays -= came
        if came and self.stays == 0:
            self.slots.here, self.slots.other = self.slots.other, self.slots.here
            self.journal.remember(etag="")
        return super().check()


class Repeats(SimulatedDevice):
    """Sends all that it ever said again with every poll, the last first, beside what is new."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.told: list[Any] = []
        given = self.client.post

        def post(path: str, document: Any) -> bytes:
            self.told.append((path, document))
            answer: bytes = given(path, document)
            return answer

        self.client.post, self._given = post, given

    def check(self) -> Plan | None:
        for path, document in reversed(self.told):
            self._given(path, document)
        return super().check()


class SaysBetter(SimulatedDevice):
    """Reports that the new model makes no error at all."""

    def heard(self, plan: Plan) -> tuple[int, int]:
        return super().heard(plan)[0], 0
