"""A fleet in one process: the real server, thousands of agents, a clock that nobody waits for.

    fleet = Fleet(world, phones, Faults(cut=0.01, lost=0.02), seed=7)
    fleet.run(hours=12)
    assert all(fleet.why_not(target).values())

Whatever happens is an event in one queue: a device takes a step, the server beats, the publisher
makes a round. Requests go to the app as bytes, past sockets only. All that is left to chance is
drawn from the seed, so the same seed tells the same story.
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from device_agent import agent
from device_agent.errors import Rejected, Unavailable
from device_agent.states import BEFORE_THE_SWITCH, Idle
from service.app import flush_seen
from service.db.rollout_tables import Deployment
from service.engine.tick import tick
from service.signing import orders
from tests.fleet.direct import Direct
from tests.fleet.faults import CALM, Faults, Killed
from tests.fleet.simulated import REQUEST_S, PowerCut, SimulatedDevice
from tests.service.world import START, World

HOUR = 3600.0
BOOT_S = 30.0
EVENTS_AT_ONCE = 1000  # before the event loop forgets timers that are over
ROUND_S = 1.0  # after a device began to wait for its order


class Fleet:
    """The devices of a world, and what happens to them.

    Attributes:
        bad: releases by digest, and by how much they raise the word error rate.
        log: what happened, in order: the second, who, and what.
        polls: minute -> polls that were answered in it.
        bytes_sent: bytes of artifacts that devices got.
        watch: called after every event, to look at what must hold at any instant.
    """

    def __init__(
        self,
        world: World,
        known: Sequence[tuple[str, str]],
        running: str,
        faults: Faults = CALM,
        *,
        seed: int = 0,
        liars: dict[int, type[SimulatedDevice]] | None = None,
        tick_s: float = 60,
    ) -> None:
        self.world, self.faults, self.tick_s = world, faults, tick_s
        self.rng = random.Random(seed)
        random.seed(seed)  # of the jitter of server and agents
        self.now_s, self.bytes_sent = 0.0, 0
        self.bad: dict[str, float] = {}
        self.log: list[tuple[float, int, str]] = []
        self.polls: Counter[int] = Counter()
        self.watch: Callable[[], None] = lambda: None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._queued, self._round_due = 0, False
        self.direct = Direct(world.app)
        kinds = liars or {}
        self.devices = [
            kinds.get(number, SimulatedDevice)(self, number, one, running, self._clock_of(number))
            for number, one in enumerate(known)
        ]
        slow = self.rng.sample(range(len(known)), round(faults.slow * len(known)))
        self._slow = frozenset(slow)
        period_s = world.app.state.settings.poll_after_s
        for device in self.devices:
            self.at(self.rng.random() * period_s, self._turning(device))
        self.at(0, self._beat)

    def _clock_of(self, number: int) -> Callable[[], datetime]:
        skewed = self.rng.random() < self.faults.skewed
        wrong = self.faults.skew * self.rng.uniform(-1, 1) if skewed else timedelta(0)
        return lambda: self.world.now + wrong

    def at(self, delay_s: float, happens: Callable[[], None]) -> None:
        """Let something happen so many seconds from now."""
        self._queued += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._queued, happens))

    def close(self) -> None:
        """Let go of what the simulation holds."""
        self.direct.close()

    def run(self, hours: float) -> None:
        """Let so many hours pass."""
        end = self.now_s + hours * HOUR
        while self._queue[0][0] <= end:
            self.direct.within(lambda: self._pass(end))
        self.now_s = end
        self.world.now = START + timedelta(seconds=end)

    def _pass(self, end: float) -> None:
        """Let some of what happens until then happen."""
        for _ in range(EVENTS_AT_ONCE):
            if self._queue[0][0] > end:
                return
            self.now_s, _, happens = heapq.heappop(self._queue)
            self.world.now = START + timedelta(seconds=self.now_s)
            happens()
            self.watch()

    # What the devices stand on.

    def ask(
        self, device: SimulatedDevice, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        device.took_s += REQUEST_S
        if any(first <= self.now_s < last for first, last in self.faults.outages):
            raise Unavailable("the server cannot be reached")
        fate = self._chance(self.faults.lost)
        if fate is not None and fate < 0.5:
            raise Unavailable("the request is lost")
        if path.startswith("artifacts/") and self._chance(self.faults.missing) is not None:
            raise Rejected("E_HTTP", "404 not found")
        answer = self.direct.send(method, path, headers, body)
        if path.startswith("poll"):
            self.polls[int(self.now_s // 60)] += 1
        elif path.startswith("artifacts/"):
            self._deliver(device, len(answer[2]))
        self.spend(device)
        if fate is not None:
            raise Unavailable("the answer is lost")
        return answer

    def spend(self, device: SimulatedDevice) -> None:
        if self._chance(self.faults.cut) is not None:
            raise PowerCut

    def errors(self, device: SimulatedDevice, sha256: str) -> int:
        # The same model on the same audio makes the same errors, however often it is heard.
        rate = 0.10 + self.bad.get(sha256, 0.0)
        luck = random.Random(f"{device.number} {sha256 if sha256 in self.bad else ''}")
        return sum(luck.random() < rate for _ in range(device.words))

    def _chance(self, of: float) -> float | None:
        """Return None if it does not come so, else a number from 0 to 1."""
        drawn = self.rng.random() if of else 1.0
        return drawn / of if drawn < of else None

    def _deliver(self, device: SimulatedDevice, size: int) -> None:
        self.bytes_sent += size
        rate = self.faults.slow_bytes_s
        if device.number in self._slow:
            limits = device.config.limits
            device.took_s += size / rate
            if rate < limits.rate_bytes_s_min and size / rate > limits.rate_window_s:
                raise Unavailable(f"{rate} bytes in a second is too slow", code="E_SLOW")

    # What happens.

    def _turning(self, device: SimulatedDevice) -> Callable[[], None]:
        return lambda: self._turn(device)

    def _turn(self, device: SimulatedDevice) -> None:
        """Do once what `device_agent.agent.run` does in its loop."""
        before, limits, device.took_s = device.state, device.config.limits, 0.0
        try:
            device.state = agent.advance(device, before)
        except PowerCut:
            device.failures, device.took_s = 0, BOOT_S
            device.state = self._booted(device)
            spread = random.random() * limits.start_spread_s
            delay = spread if isinstance(device.state, Idle) else 0.0
            self._note(device, "power cut")
        except OSError as error:
            device.failures += 1
            if device.failures > limits.retries_max and isinstance(before, BEFORE_THE_SWITCH):
                device.state = device.journal.save(Idle())
            delay = agent.trouble_delay_s(device, device.state, error, device.failures)
        else:
            rests = agent.rests(before, device.state)
            device.failures, delay = 0, agent.poll_delay_s(device) if rests else 0.0
        device.ran.add(device.slots.here)
        if device.state != before:
            self._note(device, type(device.state).__name__)
        self.at(device.took_s + delay, self._turning(device))
        wake = self.world.app.state.wake
        if wake.is_set() and not self._round_due:
            self._round_due = True
            self.at(ROUND_S, self._round)

    def _booted(self, device: SimulatedDevice) -> Any:
        with mock.patch.object(self, "spend", lambda _device: None):
            return device.journal.resume()

    def _note(self, device: SimulatedDevice, what: str) -> None:
        self.log.append((self.now_s, device.number, what))

    def _beat(self) -> None:
        """Do what the server's heartbeat does."""
        self.at(self.tick_s, self._beat)
        flush_seen(self.world.app.state)
        timeout = timedelta(seconds=self.world.app.state.settings.deployment_timeout_s)
        tick(self.world.app.state.database, self.world.now, timeout)
        self._round()

    def _round(self) -> None:
        """Let the publisher make a round, which may be its last; another one is started then."""
        self._round_due = False
        self.world.app.state.wake.clear()
        give, dies = orders._give, self._chance(self.faults.kills) is not None
        lasts = self.rng.randrange(2) if dies else math.inf

        def given(*args: Any) -> None:
            nonlocal lasts
            lasts -= 1
            if lasts < 0:
                raise Killed
            give(*args)

        try:
            with mock.patch.object(orders, "_give", given):
                self.world.work()
        except Killed:
            self.log.append((self.now_s, -1, "publisher killed"))

    # What became of it.

    def running(self) -> Counter[str]:
        """Return how many devices really run which bytes."""
        return Counter(device.slots.here for device in self.devices)

    def rollout(self) -> dict[str, Any]:
        """Return the one rollout, as people see it."""
        found: dict[str, Any] = self.world.ok("GET", "/v1/rollouts")["items"][0]
        return found

    def deployments(self) -> list[Deployment]:
        """Return every deployment as the server has it."""
        with self.world.app.state.database.reader() as session:
            return list(session.query(Deployment).order_by(Deployment.created_at, Deployment.id))

    def why_not(self, target: str) -> dict[int, str]:
        """Return device -> why it does not run the target, by `explain`; "" if that names nothing.

        After it, what became of its last attempt, if that is over.
        """
        ended = {d.device_id: f"{d.state} {d.reason}" for d in self.deployments() if d.reason}
        reasons = {}
        for device in self.devices:
            if device.slots.here != target:
                told = self.world.ok("GET", f"/v1/devices/{device.device_id}/explain")
                reason, way = ended.get(device.device_id, ""), told["under_way"]
                if way and (trouble := way["trouble"]):
                    reason = f"{way['state']} {trouble['reason']}"
                hold = (told["stopped_by"] or {"hold": "under way" if way else ""})["hold"]
                reasons[device.number] = f"{hold}, {reason}".strip(", ") if hold else ""
        return reasons

    def peak_to_mean(self, from_s: float, to_s: float, buckets: int = 20) -> float:
        """Return the highest rate of polls over the mean one, in parts of a time."""
        width = (to_s - from_s) / buckets
        counts = Counter(int((60 * m + 30 - from_s) // width) for m in self.polls.elements())
        rates = [counts[n] for n in range(buckets)]
        return max(rates) * buckets / sum(rates)
