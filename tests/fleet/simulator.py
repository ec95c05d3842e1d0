"""A fleet in one process: the real server, thousands of agents, a clock that nobody waits for.

    fleet = Fleet(world, phones, Faults(cut=0.01, lost=0.02), seed=7)
    fleet.run(hours=12)
    assert all(fleet.why_not(target).values())

Whatever happens is an event in one queue: a device takes a step, the server beats, the publisher
makes a round. Requests go to the app as bytes, past sockets only. All that is left to chance is
drawn from the seed, so the same seed tells the same story.
"""

import asyncio
import heapq
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from device_agent import agent
from device_agent.errors import Rejected, Unavailable
from device_agent.states import BEFORE_THE_SWITCH, Idle
from service.app import flush_seen
from service.db.rollout_tables import OPEN, Deployment
from service.fleet.holds import Hold
from service.fleet.tick import tick
from service.signing import orders
from tests.fleet.faults import CALM, Faults, Killed
from tests.fleet.simulated import REQUEST_S, PowerCut, SimulatedDevice
from tests.service.world import START, World

HOUR = 3600.0
BOOT_S = 30.0
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
        self.now_s, self.bytes_sent, self.requests = 0.0, 0, 0
        self.bad: dict[str, float] = {}
        self.log: list[tuple[float, int, str]] = []
        self.polls: Counter[int] = Counter()
        self.watch: Callable[[], None] = lambda: None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._queued, self._round_due = 0, False
        self._loop = asyncio.new_event_loop()
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
        self._loop.close()

    def run(self, hours: float) -> None:
        """Let so many hours pass."""
        end = self.now_s + hours * HOUR
        while self._queue[0][0] <= end:
            self.now_s, _, happens = heapq.heappop(self._queue)
            self.world.now = START + timedelta(seconds=self.now_s)
            happens()
            self.watch()
        self.now_s = end
        self.world.now = START + timedelta(seconds=end)

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
        answer = self.send(method, path, headers, body)
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

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request to the device API and return status, headers and body of the answer."""
        self.requests += 1
        route, _, query = path.partition("?")
        got: list[Any] = []

        unread = [body]

        async def receive() -> dict[str, Any]:
            if not unread:  # nobody hangs up
                await asyncio.get_running_loop().create_future()
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        async def send(message: Any) -> None:
            got.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": f"/device/v1/{route}",
            "raw_path": f"/device/v1/{route}".encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("fleet.example", 80),
        }
        app = self.world.app
        # Nobody else writes to this database: what others changed is known, always.
        app.state.database.entries.heard(time.monotonic())
        self._loop.run_until_complete(app(scope, receive, send))
        told = {name.decode().lower(): value.decode() for name, value in got[0]["headers"]}
        return got[0]["status"], told, b"".join(part.get("body", b"") for part in got[1:])

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
        """Return device -> why it does not run the target, as a poll is told; "" if by nothing."""
        said = {d.device_id: d.reason for d in self.deployments() if d.state not in OPEN}
        reasons = {}
        for device in self.devices:
            if device.slots.here == target:
                continue
            query = f"poll?root=1&t=0&s={device.slots.here}"
            bearer = {"authorization": f"Bearer {device.client.credential}"}
            hold = str(json.loads(self.send("GET", query, bearer)[2])["hold"] or "")
            reason = said.get(device.device_id, "") if hold == Hold.BACKOFF else hold
            reasons[device.number] = reason
        return reasons

    def peak_to_mean(self, from_s: float, to_s: float, buckets: int = 20) -> float:
        """Return the highest rate of polls over the mean one, in parts of a time."""
        width = (to_s - from_s) / buckets
        counts = Counter(int((60 * m + 30 - from_s) // width) for m in self.polls.elements())
        rates = [counts[n] for n in range(buckets)]
        return max(rates) * buckets / sum(rates)
