"""The trial: which model is heard when and how often, what is remembered, and what is told."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent.canary import run_trial
from device_agent.engine import Counts, Engine, Shard
from device_agent.errors import Busy, Rejected
from device_agent.plan import Canary
from tests.agent.conftest import Lab
from tests.agent.server_double import digest
from tests.agent.test_canary import SHARD

ASKED = Canary("a" * 64, 9, "03", "b" * 64, 8)


class Heard:
    """An engine in memory: which model was run, in which order, and for how long at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.runtime = "x/1"
        self.deaf: set[str] = set()
        self.known: dict[str, Counts] = {}
        self.took_ms = 1
        self.takes_s = 0.0
        self.now_s = 0.0
        self.left_s: list[float] = []
        monkeypatch.setattr("device_agent.canary.run_engine", self.run)
        monkeypatch.setattr("device_agent.canary.time.monotonic", lambda: self.now_s)

    def run(self, engine: Engine, model: Path, folder: Path, shard: Shard) -> Counts:
        self.runs.append(model.name)
        self.left_s.append(engine.timeout_s)
        self.now_s += min(self.takes_s, engine.timeout_s)
        if self.takes_s > engine.timeout_s:
            raise Rejected("E_SLOW", "too long")
        if model.name in self.deaf:
            raise Rejected("E_ENGINE", "crashed")
        split = {"sub": 20, "del": 0, "ins": 0}
        return Counts(split, self.took_ms, "wer/1", self.runtime)

    def trial(self, old: str, new: str, *, old_first: bool = True, **asked: Any) -> Any:
        models = (digest(old.encode()), Path(old)), (digest(new.encode()), Path(new))
        engine, ask = Engine((), 100), replace(ASKED, **asked)
        trial = run_trial(engine, models, SHARD, Path("c"), self.known, ask, old_first=old_first)
        if trial:
            self.known = trial.kept
        return trial


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


def test_the_order_is_as_drawn(heard: Heard) -> None:
    assert heard.trial("r1", "r2", old_first=False).old_first is False
    assert heard.runs == ["r2", "r1"]


def test_a_model_that_was_heard_before_is_not_heard_again(heard: Heard) -> None:
    heard.trial("r1", "r2", old_first=True)
    assert heard.trial("r2", "r3", old_first=False).old_first is True
    assert heard.runs == ["r1", "r2", "r3"]


def test_another_runtime_makes_earlier_counts_worthless(heard: Heard) -> None:
    heard.trial("r1", "r2", old_first=True)
    heard.runtime = "x/2"
    trial = heard.trial("r2", "r3", old_first=True)
    assert heard.runs[2:] == ["r3", "r2"]
    assert (trial.old_first, trial.old.runtime) == (False, "x/2")


def test_the_counts_of_the_base_are_kept_for_as_long_as_they_are_asked_for(heard: Heard) -> None:
    base = digest(b"r1")
    assert heard.trial("r1", "r2").base is None
    for number in range(2, 20):
        trial = heard.trial(f"r{number}", f"r{number + 1}", base=base)
        assert trial.base.errors == 20
    assert len(heard.known) <= 8
    # It costs no pass: each model was heard once.
    assert len(heard.runs) == 20


def test_a_base_that_was_never_heard_here_is_left_out(heard: Heard) -> None:
    assert heard.trial("r2", "r3", base=digest(b"r1")).base is None
    assert heard.runs == ["r2", "r3"]


def test_a_base_that_was_heard_in_another_way_is_left_out(heard: Heard) -> None:
    heard.trial("r1", "r2")
    heard.runtime = "x/2"
    assert heard.trial("r2", "r3", base=digest(b"r1")).base is None


def test_in_the_control_arm_the_old_model_is_heard_again(heard: Heard) -> None:
    trial = heard.trial("r1", "r2", arm="control")
    assert heard.runs == ["r1", "r2", "r1"]
    assert trial.again.errors == 20
    assert heard.trial("r1", "r2").again is None


@pytest.mark.parametrize("old_first", [True, False])
def test_one_limit_holds_for_the_whole_trial(heard: Heard, old_first: bool) -> None:
    heard.takes_s = 40
    assert heard.trial("r1", "r2", old_first=old_first, arm="control").again is None
    assert heard.left_s == [50, 60, 20]


def test_a_slow_release_is_refused_whoever_is_heard_first(heard: Heard) -> None:
    heard.takes_s = 51
    with pytest.raises(Rejected, match="E_SLOW"):
        heard.trial("r1", "r2", old_first=False)
    # The running model took its half of the time and no more.
    heard.left_s.clear()
    with pytest.raises(Rejected, match="E_SLOW"):
        heard.trial("r1", "r2", old_first=True)
    assert heard.left_s == [50, 50]


def test_a_release_beside_known_counts_has_all_the_time(heard: Heard) -> None:
    heard.trial("r1", "r2")
    heard.takes_s = 99
    assert heard.trial("r2", "r3").old_first is True


@pytest.mark.parametrize("old_first", [True, False])
def test_a_running_model_that_is_deaf_does_not_keep_its_successor_out(
    heard: Heard, old_first: bool
) -> None:
    heard.deaf = {"r1"}
    assert heard.trial("r1", "r2", old_first=old_first) is None


@pytest.mark.parametrize("old_first", [True, False])
def test_a_new_model_that_is_deaf_is_refused(heard: Heard, old_first: bool) -> None:
    heard.deaf = {"r2"}
    with pytest.raises(Rejected):
        heard.trial("r1", "r2", old_first=old_first)


def test_a_device_of_the_control_arm_tells_of_the_old_model_twice(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab(new_errors=30)
    lab.server.asks = {"arm": "control"}
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    (report,) = lab.server.reports
    r1 = lab.server.releases["r1"].sha256
    assert (report["old_model"], report["new_model"]) == (r1, r1)
    assert report["old"] == report["new"]
    assert report["gate"] == "activated"


def test_a_device_of_the_control_arm_still_refuses_a_broken_release(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab(new_errors=90)
    lab.server.asks = {"arm": "control"}
    lab.server.offer("r2")
    assert lab.once().reason == "E_GATE"
    (report,) = lab.server.reports
    assert (report["gate"], report["new"]["sub"]) == ("refused", 20)


@pytest.mark.parametrize("asks", [{"arm": "both"}, {"arm": None}, {"base": "r1"}])
def test_an_arm_or_a_base_that_is_none_is_refused(lab: Lab, asks: dict[str, Any]) -> None:
    lab.server.asks = asks
    lab.server.offer("r2")
    assert lab.once().reason == "E_PLAN"


def test_the_third_release_is_compared_with_the_base_of_its_chain(lab: Lab) -> None:
    lab.server.publish("r3", errors=35)
    lab.server.offer("r2")
    lab.once()
    lab.server.asks = {"base": lab.server.releases["r1"].sha256}
    lab.server.offer("r3")
    lab.once()
    first, second = lab.server.reports
    assert "base" not in first
    assert (second["base"]["sub"], second["new"]["sub"]) == (20, 35)


def test_a_report_tells_the_hour_and_no_more(lab: Lab) -> None:
    lab.server.now = lab.server.now.replace(minute=59, second=58)
    lab.server.offer("r2")
    lab.once()
    (report,) = lab.server.reports
    assert report["window_start"] == f"{lab.server.now:%Y-%m-%dT%H}:00:00Z"


def test_a_report_counts_the_utterances_that_changed(lab: Lab) -> None:
    engine = lab.folder / "engine"
    text = engine.read_text()
    # As many utterances have an error as the model makes; the last is the insertion.
    engine.write_text(
        text.replace(
            "set=", "each=$(seq 49 | awk -v e=$errors '{printf \"%d,\", $1 <= e}')1\nset=", 1
        ).replace(
            '"milliseconds":1}\' "$set"', '"milliseconds":1,"by_utterance":[%s]}\' "$set" "$each"'
        )
    )
    lab.server.publish("r3", errors=25)
    lab.server.offer("r3")
    assert lab.once().kind == "committed"
    (report,) = lab.server.reports
    assert (report["worse_utts"], report["better_utts"]) == (5, 0)


def test_a_trial_waits_until_its_owner_lets_it_begin(lab: Lab) -> None:
    leave = lab.folder / "leave"
    lab.config = replace(lab.config, may_try=("/usr/bin/test", "-e", str(leave)))
    lab.server.offer("r2")
    for _ in range(3):
        with pytest.raises(Busy, match="no trial now"):
            lab.once()
    assert (lab.release_running(), lab.server.reports) == ("r1", [])
    leave.touch()
    assert lab.once().kind == "committed"


def test_an_owners_command_that_does_not_answer_is_a_no(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.device.LEAVE_S_MAX", 0.05)
    lab.config = replace(lab.config, may_try=("/bin/sleep", "30"))
    lab.server.offer("r2")
    with pytest.raises(Busy, match="did not say"):
        lab.once()


def test_an_expired_set_is_refused_before_a_model_is_heard(lab: Lab) -> None:
    manifest = json.loads(lab.server.blobs[lab.server.canary.sha256])
    body = json.dumps({**manifest, "expires": "2020-01-01T00:00:00Z"}).encode()
    lab.server.blobs[digest(body)] = body
    lab.server.canary = replace(lab.server.canary, sha256=digest(body), bytes=len(body))
    lab.server.sign_all()
    lab.server.offer("r2")
    assert lab.once().reason == "E_CANARY"
    assert lab.server.reports == []
