"""The world of the cycle: the disk, the network and the engine of one device.

    state_dir/  lock  credential.json (0600)  cycle.0/.1  memory.0/.1  outbox.0/.1
                current -> slots/a   slots/a  slots/b   downloads/  canary/  tuf/

Every method may be run again after a power cut: it looks at what is there, most of all at digests,
and does what is left. The running model is only ever read; what is new goes into the spare slot.
Nothing here is global: one process may run many devices, each in a folder of its own.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from device_agent.canary import (
    MANIFEST,
    Engine,
    gate_refuses,
    read_manifest,
    report_of,
    run_trial,
)
from device_agent.check_in import CheckIn
from device_agent.client import Client
from device_agent.config import Config
from device_agent.errors import Rejected
from device_agent.journal import Journal, Record, sync_folder
from device_agent.memory import Notebook
from device_agent.outbox import Event, Outbox
from device_agent.plan import Plan, Step
from device_agent.slots import Mark, Slots, hash_file
from device_agent.states import Reporting
from neural_diff.apply import apply as apply_patches
from neural_diff.errors import Corrupt, NeuralDiffError, WrongBase
from trust.order import write_time

logger = logging.getLogger(__name__)

# What this device found out by itself: the same bytes would be found wanting again.
LOCAL_VERDICTS = frozenset({"E_GATE", "E_ENGINE", "E_SLOW", "E_STATE_LOOP"})


class LocalDevice:
    """A real device; `states.Device` says what each method is for."""

    def __init__(
        self,
        config: Config,
        device_id: str,
        credential: str,
        lock: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._lock = lock
        folder = config.state_dir
        self._downloads = folder / "downloads"
        self._canary = folder / "canary"
        self.config = config
        self.device_id = device_id
        try:
            self.journal = Journal(folder / "cycle", config.limits.saves_max)
            self.outbox = Outbox(
                folder / "outbox",
                config.limits.outbox_items_max,
                config.limits.batch_items_max,
                lambda: write_time(clock()),
            )
            self.notebook = Notebook(folder / "memory")
            for path in (self._downloads, self._canary):
                path.mkdir(exist_ok=True)
            self.slots = Slots(folder)
            self.client = Client(config, credential)
            self.check_in = CheckIn(
                config, device_id, self.client, self.slots, self.notebook, self.outbox, clock
            )
        except BaseException:
            os.close(lock)
            raise

    def __enter__(self) -> "LocalDevice":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the state folder back."""
        os.close(self._lock)

    def check(self) -> Plan | None:
        """Ask the server for news."""
        plan = self.check_in.ask()
        if plan is not None:
            logger.info("offer of release %s by %s", plan.release, plan.deployment)
        return plan

    def spare_holds(self, sha256: str) -> bool:
        """Read the spare slot and compare."""
        return self.slots.spare_holds(sha256)

    def fetch(self, plan: Plan, pipeline: int) -> None:
        """Download what is missing of a pipeline and of the canary."""
        steps = plan.pipelines[pipeline]
        self._event(plan, Event("downloading"))
        self.flush()  # A long download should be seen while it lasts.
        wanted = {step.sha256 for way in plan.pipelines for step in way}
        for path in self._downloads.iterdir():
            if path.name.removesuffix(".part") not in wanted:
                path.unlink()
        if not self.slots.spare_holds(plan.sha256):
            self.slots.require_space(self._space_for(plan, steps))
            for step in steps:
                self._fetch_blob(step.sha256, step.bytes, self._downloads / step.sha256)
        if self._wants_trial(plan):
            self._fetch_canary(plan)

    def build(self, plan: Plan, pipeline: int) -> None:
        """Write the new model into the spare slot and confirm its digest."""
        steps = plan.pipelines[pipeline]
        if not self.slots.spare_holds(plan.sha256):
            self._write(steps, self.slots.clear_spare())
        spare = self.slots.spare
        if hash_file(self.slots.file(spare)) != plan.sha256:
            self.slots.clear_spare()
            raise Rejected("E_RESULT", f"the result is not release {plan.release}")
        self.slots.set_mark(spare, Mark(plan.sha256, plan.release, good=False))
        self._event(plan, Event("applied", bytes=sum(step.bytes for step in steps)))
        self._clear_downloads()

    def evaluate(self, plan: Plan) -> None:
        """Hear both models on this device's shard, queue the report, and judge."""
        new = self.slots.file(self.slots.spare)
        if not self.slots.spare_holds(plan.sha256):
            raise Rejected("E_RESULT", f"the spare slot no longer holds release {plan.release}")
        old = self.slots.active_file()
        if not self._wants_trial(plan) or plan.canary is None or old is None:
            logger.info("release %s is taken without a trial", plan.release)
            return
        folder = self._canary_folder(plan)
        shard = read_manifest((folder / MANIFEST).read_bytes(), plan.canary.shard_sha256)
        limit = min(plan.gate.timeout_s, self.config.limits.recogniser_s_max)
        draw = sha256(f"{self.device_id}|{plan.release}".encode()).digest()[0]
        trial = run_trial(
            Engine(self.config.recogniser, limit),
            ((plan.base, old), (plan.sha256, new)),
            shard,
            folder,
            Record(self._canary / "counts"),
            old_first=draw % 2 == 0,
        )
        if trial is None:
            self._event(plan, Event("note", reason="E_ENGINE", detail="the old model is not heard"))
            return
        refused = gate_refuses(trial.old.errors, trial.new.errors, shard.ref_words)
        self.notebook.write(self.notebook.memory.with_attempt(plan.release, plan.deployment))
        attempt = self.notebook.memory.attempt[2]
        self.outbox.add_report(
            report_of(trial, shard, plan, self.device_id, attempt, refused=refused)
        )
        if refused:
            found = f"{trial.new.errors} errors where the running model makes {trial.old.errors}"
            raise Rejected("E_GATE", f"{found}, on {shard.ref_words} words")

    def still_ordered(self, plan: Plan) -> bool:
        """Ask once more, unless the switch is done already."""
        if self.slots.active_sha256(fresh=True) == plan.sha256:
            return True
        return self.check_in.still_ordered(plan)

    def switch(self, plan: Plan) -> None:
        """Make the spare slot the active one, if its bytes are still the right ones."""
        if self.slots.active_sha256(fresh=True) != plan.sha256:
            if not self.slots.spare_holds(plan.sha256):
                raise Rejected("E_RESULT", f"the spare slot no longer holds {plan.release}")
            self.slots.switch()
        self._event(plan, Event("activated"))

    def commit(self, plan: Plan) -> bool:
        """Mark the active slot good if its bytes, read now, are the ordered ones."""
        active = self.slots.active
        if active is None or self.slots.active_sha256(fresh=True) != plan.sha256:
            return False
        self.slots.set_mark(active, Mark(plan.sha256, plan.release, good=True))
        return True

    def restore(self, sha256: str) -> None:
        """Make the slot with these bytes the active one; empty means no model at all."""
        if not sha256:
            self.slots.empty()
        elif self.slots.active_sha256(fresh=True) != sha256:
            if not self.slots.spare_holds(sha256):
                raise Rejected("E_BASE", f"neither slot holds {sha256[:12]}")
            self.slots.switch()

    def report(self, outcome: Reporting) -> None:
        """Queue an outcome, remember what follows from it, and clear the downloads away."""
        bad = outcome.kind in ("refused", "failed")
        fetched = sum(path.stat().st_size for path in self._downloads.iterdir()) if bad else 0
        log = logger.warning if bad else logger.info
        log("%s %s %s: %s", outcome.kind, outcome.deployment, outcome.reason, outcome.detail)
        self.outbox.add_event(
            f"{outcome.about} {outcome.deployment} {outcome.kind} {outcome.reason}",
            Event(outcome.kind, outcome.deployment, outcome.reason, outcome.detail, fetched),
        )
        memory = self.notebook.memory
        if outcome.reason in LOCAL_VERDICTS:
            memory = memory.without(outcome.deployment)
        self.notebook.write(replace(memory, etag="", refusals=memory.refusals + 1 if bad else 0))
        self._clear_downloads()

    def flush(self) -> None:
        """Send what is queued; what cannot be sent now stays for a later cycle."""
        try:
            self.outbox.flush(self.client)
        except OSError as error:
            logger.info("%d reports wait: %s", len(self.outbox), error)

    def _event(self, plan: Plan, event: Event) -> None:
        key = f"{plan.order_seq} {plan.deployment} {event.kind} {event.reason}"
        self.outbox.add_event(key, replace(event, deployment=plan.deployment))

    def _wants_trial(self, plan: Plan) -> bool:
        """A way back is not tried: the model it leaves may be the one that cannot be heard."""
        back = (plan.base, plan.sha256) in self.notebook.memory.back_edges
        return bool(self.config.recogniser and plan.canary and plan.base) and not back

    def _space_for(self, plan: Plan, steps: tuple[Step, ...]) -> int:
        missing = sum(s.bytes for s in steps if not (self._downloads / s.sha256).exists())
        largest = max(plan.bytes, *(step.to_bytes for step in steps))
        spare = self.slots.file(self.slots.spare)
        freed = spare.stat().st_size if spare.exists() else 0
        return missing + max(0, largest - freed) + self.config.limits.spare_bytes

    def _fetch_blob(self, sha256: str, length: int, target: Path) -> None:
        if target.exists():
            return
        part = self._downloads / f"{sha256}.part"
        self.client.fetch(sha256, length, part)
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
        sync_folder(target.parent)

    def _canary_folder(self, plan: Plan) -> Path:
        assert plan.canary is not None
        return self._canary / f"{plan.canary.set[:32]}-{plan.canary.shard_sha256[:32]}"

    def _fetch_canary(self, plan: Plan) -> None:
        assert plan.canary is not None
        limits, canary = self.config.limits, plan.canary
        if canary.set_bytes > limits.canary_set_bytes_max:
            raise Rejected("E_CANARY", f"a canary manifest of {canary.set_bytes} bytes")
        if canary.shard_bytes > limits.shard_bytes_max:
            raise Rejected("E_CANARY", f"a canary shard of {canary.shard_bytes} bytes")
        folder = self._canary_folder(plan)
        for other in self._canary.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        self._fetch_blob(canary.set, canary.set_bytes, folder / MANIFEST)
        shard = read_manifest((folder / MANIFEST).read_bytes(), canary.shard_sha256)
        if shard.bytes != canary.shard_bytes:
            raise Rejected("E_CANARY", f"{shard.file} has other sizes in plan and manifest")
        self._fetch_blob(canary.shard_sha256, canary.shard_bytes, folder / shard.file)

    def _write(self, steps: tuple[Step, ...], target: Path) -> None:
        files = [self._downloads / step.sha256 for step in steps]
        base = self.slots.active_file()
        if steps[0].op == "full":
            base, files = files[0], files[1:]
        if base is None:
            raise Rejected("E_BASE", "a patch, and no model to apply it to")
        if not files:
            base.replace(target)
            sync_folder(target.parent)
            return
        try:
            apply_patches(base, files, target)
        except NeuralDiffError as error:
            codes = {WrongBase: "E_BASE", Corrupt: "E_RESULT"}
            raise Rejected(codes.get(type(error), "E_PATCH"), str(error)) from error

    def _clear_downloads(self) -> None:
        for path in self._downloads.iterdir():
            path.unlink()
