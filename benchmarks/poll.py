"""What a poll costs the server: processor time against a bare application, and against goosebit.

One worker each, in turn, in one run; the processor time is the server's own, flushes of what
devices were seen included. Beside it: polls that the database answers (`benchmarks.grants`).
"""

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import grants, load, served
from benchmarks.rows import Row, publish
from tests.service.world import BETTER

ROUNDS, ASKS, PEER_ASKS = 3, 16_000, 400
FLEETS, PEER_FLEETS = (10_000, 1_000_000), (2_000, 20_000, 100_000)
BARE_MAX, GROWTH_MAX = 2.5, 1.2
PEER_TIMES_MIN = 60
PEER = Path(__file__).parents[1] / "build" / "goosebit" / "bin" / "python"
SERVE = [sys.executable, "-m", "benchmarks.served"]


def main() -> int:
    """Measure and publish."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _unchanged(Path(folder))
        rows += _peers(Path(folder), rows)
    return publish("poll", rows + grants.measure())


def _unchanged(folder: Path) -> list[Row]:
    rows, least = [], {}
    for devices in FLEETS:
        work = f"unchanged poll, {devices:,} devices"
        with ExitStack() as running:
            _say(work)
            served.make(folder, devices, BETTER)
            plain = running.enter_context(_served(folder / "bare.log"))
            ours = running.enter_context(_served(folder / "ours.log", folder, devices))
            etag = _etag(ours[1])
            rounds = []
            for _ in range(ROUNDS):
                numbers = random.choices(range(devices), k=ASKS)
                asks = [served.poll(number, BETTER, etag) for number in numbers]
                rounds.append([load.cpu_us(*server, asks, 304) for server in (plain, ours)])
            floor, least[devices] = (min(of) for of in zip(*rounds, strict=True))
            rows += [
                Row(work, "bare application", floor, "us CPU"),
                Row(work, "Fleetdiff", least[devices], "us CPU"),
                Row(work, "/ bare", least[devices] / floor, "", BARE_MAX),
                Row(work, "memory of the server", load.rss_bytes(ours[0]) / 1e6, "MB"),
            ]
        _empty(folder)
    small, large = least.values()
    return [*rows, Row("unchanged poll", "1,000,000 / 10,000", large / small, "", GROWTH_MAX)]


def _peers(folder: Path, ours: list[Row]) -> list[Row]:
    rows = []
    poll_us = next(row.value for row in ours if row.figure == "Fleetdiff")
    for devices in PEER_FLEETS:
        _say(f"goosebit, {devices:,} devices")
        port = load.free_port()
        command = [PEER, Path(__file__).with_name("goosebit_server.py"), str(port), folder]
        with load.server([*command, str(devices)], port, folder / "goosebit.log") as pid:
            rounds = []
            for _ in range(ROUNDS):
                numbers = random.choices(range(devices), k=PEER_ASKS)
                paths = [f"/DEFAULT/controller/v1/{served.device_id(n)}" for n in numbers]
                rounds.append(load.cpu_us(pid, port, [load.request(p) for p in paths], 200))
        _empty(folder)
        work, peer_us = f"goosebit 0.2.12, {devices:,} devices", min(rounds)
        goal = 1 / PEER_TIMES_MIN if devices == 20_000 else None
        rows += [
            Row(work, "poll", peer_us, "us CPU"),
            Row(work, "Fleetdiff / goosebit", poll_us / peer_us, "", goal),
            Row(work, "goosebit / Fleetdiff", peer_us / poll_us, "times"),
        ]
    return rows


@contextmanager
def _served(log: Path, *more: object) -> Iterator[tuple[int, int]]:
    """Run our server, or the bare one; yields its process id and port."""
    port = load.free_port()
    with load.server([*SERVE, str(port), *map(str, more)], port, log) as pid:
        yield pid, port


def _etag(port: int) -> str:
    head = load.Line(port).ask(served.poll(0, BETTER))[1].decode()
    lines = (line.partition(": ") for line in head.split("\r\n"))
    return next(value for name, _, value in lines if name.lower() == "etag")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _say(work: str) -> None:
    print(f"{work} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
