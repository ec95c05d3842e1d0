"""The plot, and what must be true in it: any deviation is an `OffScript`.

A base model is published and a fleet enrolls. A sparse update teaches it four names; it spreads
stage by stage on the evidence of real recordings. A hashed update on top teaches four more, and
devices that come late reach it by a chain of two patches. A third update is a mistake: it is
halted in its first stage, and every device it reached goes back, with nobody at the desk.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from demo.cast import BASE, MODEL, SPEECH, Cast, OffScript
from demo.hearing import Heard, hear

COHORT = "homes"
STAGES = "50%,100%"
# A gate for a fleet of dozens: one device may weigh more, and nobody in it lies.
GATE = {
    "clip": 0.06,
    "hostile_count": 0,
    "hostile_share": 0,
    "alpha_halt": 0.02,
    "pairs_halt_least": 8,
    "pairs_promote_least": 8,
    "control_share": 0,
    "sigma": 0.055,  # of a shard's change, as make bench-seeds measures it
    "pairs_expected": 15,
}
PATCH_SHARE_MAX = 0.10
ROLLOUT_S_MAX = 150
LATE = 4


@dataclass
class Update:
    """One update of the story, and what came of it."""

    release: str
    title: str
    file: Path
    patch: Path
    rollout: dict[str, Any] = field(default_factory=dict)
    heard: Heard | None = None

    @property
    def patch_share(self) -> float:
        """Bytes of the patch against bytes of the whole model file."""
        return self.patch.stat().st_size / self.file.stat().st_size


@dataclass
class Story:
    """The story as it is told; `say` prints a line."""

    cast: Cast
    say: Callable[[str], None]
    agents: int = 60
    stages: str = STAGES
    gate: dict[str, float] = field(default_factory=lambda: dict(GATE))
    updates: list[Update] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    heard_base: Heard | None = None
    meanwhile: Callable[[dict[str, Any]], None] = lambda _view: None

    def tell(self) -> None:
        """Play everything; raises OffScript where it goes another way."""
        self.open()
        self.enroll(self.agents, "speaker")
        self.sparse()
        self.hashed()
        self.mistake()

    def open(self) -> None:
        """Make keys, start the server, publish the base and the canary set."""
        cast = self.cast
        cast.fleetdiff("init", "--dev")
        cast.make_token()
        cast.start_server()
        self.say(f"server on {cast.url} (open it to watch)")
        cast.fleetdiff("init", "--publish")
        cast.fleetdiff("model", "create", MODEL)
        cast.fleetdiff("canary", "publish", MODEL, SPEECH / "canary")
        cast.fleetdiff("release", "publish", MODEL, "r1", BASE)
        cast.fleetdiff("cohort", "create", COHORT, "--model", MODEL, "--filter", "hardware=speaker")
        self.heard_base = hear(BASE)
        self.say(f"r1 published: {_kb(BASE.stat().st_size)}, {self.heard_base.line()}")

    def enroll(self, count: int, prefix: str) -> None:
        """Start new devices with the base from the factory, and wait until all checked in."""
        names = [f"{prefix}-{number:02}" for number in range(count)]
        token = self.cast.fleetdiff("device", "token", "--model", MODEL, "--uses", str(count))
        self.cast.write_devices(names)
        self.cast.start_devices(names, token["token"])
        self.names += names
        self.until(lambda: len(self.running()) == len(self.names), f"{count} devices check in")
        self.say(f"{count} devices enrolled, {len(self.names)} in the fleet")

    def sparse(self) -> None:
        """Publish the sparse update and watch it spread."""
        target, patch = SPEECH / "updates" / "ledecky.safetensors", self.patch_file("r1", "r2")
        self.cast.fleetdiff("diff", "make", BASE, target, "-o", patch)
        update = Update("r2", "sparse: ledecky, kalisz, dressel, osaka", target, patch)
        self.publish(update)
        self.spread(update)
        self.learnt(update, self.heard_base, "ledecky")

    def hashed(self) -> None:
        """Publish the hashed update on top; devices that come late need a chain of two."""
        before, result = self.updates[-1], self.cast.folder / "r3.safetensors"
        patch = self.patch_file("r2", "r3")
        buckets = SPEECH / "updates" / "biles.buckets.safetensors"
        words = ("--buckets", buckets, before.file, "-o", patch, "--result", result)
        self.cast.fleetdiff("diff", "make", *words)
        update = Update("r3", "hashed: biles, duplantis, ingebrigtsen, thiam", result, patch)
        self.publish(update)
        self.enroll(LATE, "latecomer")
        self.spread(update)
        self.learnt(update, before.heard, "biles")
        both = before.patch.stat().st_size + patch.stat().st_size
        for device in self.devices():
            if device["serial"].startswith("latecomer"):
                last = self.cast.get(f"/v1/devices/{device['id']}")["deployments"][0]
                _must(last["bytes_sent"] == both, f"{device['serial']} did not take two patches")
        self.say(f"{LATE} latecomers went r1 > r2 > r3 by two patches, {_kb(both)}")

    def mistake(self) -> None:
        """Publish the mistake, and see it halted and undone without anybody's help."""
        before = self.updates[-1]
        target, patch = SPEECH / "updates" / "mistake.safetensors", self.patch_file("r3", "r4")
        self.cast.fleetdiff("diff", "make", before.file, target, "-o", patch)
        update = Update("r4", "mistake: ten times the learning rate", target, patch)
        self.publish(update)
        rollout = self.start(update)
        view = self.watch(rollout, "halted")
        update.rollout, update.heard = view, hear(target)
        good = sha256(before.file.read_bytes()).hexdigest()
        self.until(lambda: set(self.running().values()) == {good}, "every device is back on r3", 60)
        self.until(lambda: self.settled(rollout), "every way back is confirmed by a poll", 60)
        update.rollout = self.cast.get(f"/v1/rollouts/{rollout}")
        self.check_halt(update, good)

    def check_halt(self, update: Update, good: str) -> None:
        """Check that the mistake stopped where it was, and that no byte of it is left."""
        first, second = update.rollout["stages"]
        _must(second["offered"] + second["confirmed"] == 0, "the second stage was touched")
        touched = {
            device["id"]: self.cast.get(f"/v1/devices/{device['id']}")["deployments"]
            for device in self.devices()
        }
        mine = [d for ds in touched.values() for d in ds if d["rollout_id"] == update.rollout["id"]]
        forward = {d["id"] for d in mine if d["direction"] == "forward"}
        _must(len(forward) < len(self.names), "devices outside of the first stage were touched")
        _must(first["rolled_back"] > 0, "no device had to go back: the gate alone caught it")
        for name in self.names:
            found = sha256(self.cast.active_file(name).read_bytes()).hexdigest()
            _must(found == good, f"{name} holds {found[:12]}, not r3")
        self.say(
            f"r4 halted in stage 1 ({update.rollout['halt_reason']}): {first['rolled_back']} "
            f"went back to r3, {len(self.names) - len(forward)} devices never heard of it"
        )

    def publish(self, update: Update) -> None:
        """Sign and upload a release with its patch; the signing is what publishes."""
        _must(update.patch_share <= PATCH_SHARE_MAX, f"{update.patch} is too large")
        words = ("release", "publish", MODEL, update.release, update.file, "--patch", update.patch)
        self.cast.fleetdiff(*words)
        size, whole = update.patch.stat().st_size, update.file.stat().st_size
        share = f"{update.patch_share:.1%} of {_kb(whole)}"
        self.say(f"{update.release} published ({update.title}): patch {_kb(size)}, {share}")
        self.updates.append(update)

    def start(self, update: Update) -> str:
        """Start a rollout and return its id."""
        gate = [word for name, value in self.gate.items() for word in ("--gate", f"{name}={value}")]
        words = ("rollout", "start", MODEL, update.release, "--cohort", COHORT)
        view = self.cast.fleetdiff(*words, "--stages", self.stages, *gate)
        return str(view["id"])

    def spread(self, update: Update) -> None:
        """Roll an update out to its end, and check that the whole fleet runs its exact bytes."""
        rollout = self.start(update)
        update.rollout = self.watch(rollout, "completed")
        wanted = sha256(update.file.read_bytes()).hexdigest()
        _must(set(self.running().values()) == {wanted}, f"not every device runs {update.release}")
        for name in self.names:
            found = sha256(self.cast.active_file(name).read_bytes()).hexdigest()
            _must(found == wanted, f"{name} holds other bytes than it says")

    def learnt(self, update: Update, before: Heard | None, tag: str) -> None:
        """Check what the update taught: the new names better, the old words within error."""
        assert before is not None
        update.heard = heard = hear(update.file)
        self.say(f"{update.release} on the whole pool: {heard.line()}")
        new, old = before.wer(tag), heard.wer(tag)
        _must(old < 0.6 * new, f"{update.release} did not learn {tag}: {new:.1%} to {old:.1%}")
        change, error = heard.change_since(before, "old")
        _must(change < 2 * error, f"old words got worse: {change:+.2%} +- {error:.2%}")

    def watch(self, rollout: str, expected: str) -> dict[str, Any]:
        """Tell what happens in a rollout until it ends; it must end as expected."""
        deadline = time.monotonic() + ROLLOUT_S_MAX
        told = ""
        while time.monotonic() < deadline:
            try:
                view: dict[str, Any] = self.cast.get(f"/v1/rollouts/{rollout}")
            except OSError:  # the server may be killed on purpose; it comes back
                time.sleep(0.3)
                continue
            line = _progress(view)
            if line != told:
                self.say(line)
                told = line
            self.meanwhile(view)
            if view["state"] in ("completed", "halted", "canceled", "paused"):
                _must(view["state"] == expected, f"{view['release']} is {view['state']}: {view}")
                return view
            time.sleep(0.3)
        raise OffScript(f"rollout {rollout} did not end in {ROLLOUT_S_MAX} s: {told}")

    def settled(self, rollout: str) -> bool:
        """Whether every device that took a halted release was seen back by its own poll."""
        stages = self.cast.get(f"/v1/rollouts/{rollout}")["stages"]
        return all(stage["offered"] == 0 for stage in stages) and bool(stages[0]["rolled_back"])

    def devices(self) -> list[dict[str, Any]]:
        """Return every device as the server knows it."""
        items: list[dict[str, Any]] = self.cast.get("/v1/devices?limit=500")["items"]
        return items

    def running(self) -> dict[str, str]:
        """Return device -> digest of what it runs, by its own last poll."""
        return {d["serial"]: d["running_sha256"] for d in self.devices() if d["running_sha256"]}

    def until(self, true: Callable[[], bool], what: str, limit_s: float = 90) -> None:
        """Wait for something that must happen."""
        deadline = time.monotonic() + limit_s
        while not true():
            _must(time.monotonic() < deadline, f"waited {limit_s:.0f} s in vain until {what}")
            time.sleep(0.3)

    def patch_file(self, source: str, target: str) -> Path:
        """Return where the patch between two releases is written."""
        return self.cast.folder / f"{source}_{target}.ndiff"


def _progress(view: dict[str, Any]) -> str:
    stage = view["stages"][view["stage"] - 1]
    health = view["health"]
    heard = ""
    if health["old_wer_bp"] is not None:
        heard = f", WER {health['old_wer_bp'] / 100:.1f} > {health['new_wer_bp'] / 100:.1f} %"
        heard += f" on {health['pairs']} devices"
    confirmed, refused = (sum(s[n] for s in view["stages"]) for n in ("confirmed", "refused"))
    out = f", {refused} refused" if refused else ""
    return (
        f"  {view['release']} {view['state']}, stage {view['stage']}/{len(view['stages'])}: "
        f"{confirmed}/{stage['devices']} confirmed{out}{heard}"
    )


def _kb(size: int) -> str:
    return f"{size / 1000:.0f} kB"


def _must(true: bool, otherwise: str) -> None:
    if not true:
        raise OffScript(otherwise)
