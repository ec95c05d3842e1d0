"""A release of several files: the model and its components change together, or not at all."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent.errors import Unavailable
from device_agent.states import Committing
from tests.agent.conftest import Lab
from tests.agent.hostile import HONEST, installed, lies_about, must_recover, must_refuse
from tests.agent.loopback import Answer, Asked
from tests.agent.server_double import ENGINE, digest

TOKENS, SAME, LARGER = b"tokens of r2", b"a lexicon" * 999, b"a language model" * 9_000
R2 = {"lexicon.txt": SAME, "tokenizer.json": TOKENS}
R3 = {"lexicon.txt": SAME, "lm.bin": LARGER, "tokenizer.json": b"tokens of r3"}


@pytest.fixture
def at_r2(lab: Lab) -> Lab:
    """A device that runs r2 with its components, and r3 with others on offer."""
    server = lab.server
    server.publish("r2", components=R2, back_from=("r3",))
    server.publish("r3", components=R3)
    server.offer("r2")
    assert lab.once().kind == "committed"
    server.offer("r3")
    server.asked.clear()
    server.events.clear()
    return lab


def fetched(lab: Lab) -> list[str]:
    return [a.path.rsplit("/", 1)[-1] for a in lab.server.asked if "/artifacts/" in a.path]


def slot(lab: Lab, name: str = "current") -> Path:
    return lab.config.state_dir / name


def must_run(lab: Lab, release: str) -> None:
    assert (lab.release_running(), lab.components_running()) == (
        release,
        lab.server.components.get(release, {}),
    )


def test_the_model_and_its_components_are_switched_to_together(at_r2: Lab) -> None:
    must_run(at_r2, "r2")
    assert at_r2.once().kind == "committed"
    must_run(at_r2, "r3")
    check = ["sha256sum", "--check", "--strict", "--quiet", "../components.sha256"]
    subprocess.run(check, cwd=slot(at_r2) / "components", check=True)


def test_what_the_device_has_is_not_fetched_again(at_r2: Lab) -> None:
    assert at_r2.once().kind == "committed"
    names = [digest(R3["lm.bin"]), digest(R3["tokenizer.json"])]
    assert sorted(fetched(at_r2)[:3]) == sorted([at_r2.server.releases["r3"].sha256, *names])
    assert digest(SAME) not in fetched(at_r2)
    (applied,) = [e for e in at_r2.server.events if e["kind"] == "applied"]
    files = [at_r2.server.models["r3"], R3["lm.bin"], R3["tokenizer.json"]]
    assert applied["bytes"] == sum(map(len, files))


def test_a_component_that_only_the_spare_slot_has_is_not_fetched_either(at_r2: Lab) -> None:
    assert at_r2.once().kind == "committed"
    at_r2.server.publish("r4", components=R2 | {"another.txt": TOKENS})
    at_r2.server.offer("r4")
    at_r2.server.asked.clear()
    assert at_r2.once().kind == "committed"
    must_run(at_r2, "r4")
    assert not {digest(TOKENS), digest(SAME)} & set(fetched(at_r2))


def test_a_release_without_components_leaves_those_of_the_last_behind(at_r2: Lab) -> None:
    at_r2.server.publish("r4")
    at_r2.server.offer("r4")
    assert at_r2.once().kind == "committed"
    must_run(at_r2, "r4")


def test_the_engine_is_told_where_the_components_are(at_r2: Lab) -> None:
    check = '[ "$5" = --components ] && cd "$6" && sha256sum --check --quiet ../components.sha256'
    engine = at_r2.folder / "engine"
    engine.write_text(ENGINE.replace("#!/bin/sh", f"#!/bin/sh\n({check}) || exit 9"))
    assert at_r2.once().kind == "committed"
    (told,) = [r for r in at_r2.server.reports if r["new_model"] == digest(at_r2.running())]
    assert told["old"]["sub"] == told["new"]["sub"] == 20


def test_an_engine_of_a_model_without_components_is_told_of_none(lab: Lab) -> None:
    engine = lab.folder / "engine"
    engine.write_text(ENGINE.replace("#!/bin/sh", "#!/bin/sh\n[ $# = 4 ] || exit 9"))
    lab.server.offer("r2")
    assert lab.once().kind == "committed"


@pytest.mark.attack("M49")
def test_m49_a_component_that_was_cut_off_goes_on_where_it_stopped(at_r2: Lab) -> None:
    before, half = installed(at_r2), len(LARGER) // 2
    at_r2.server.lie = lies_about(
        digest(LARGER), lambda answer: replace(answer, body=LARGER[:half], declare=len(LARGER))
    )
    with pytest.raises(Unavailable):
        at_r2.once()
    assert installed(at_r2) == before
    must_run(at_r2, "r2")
    at_r2.server.asked.clear()
    must_recover(at_r2, "r3")
    (again,) = [a for a in at_r2.server.asked if digest(LARGER) in a.path]
    assert again.headers["range"] == f"bytes={half}-"
    must_run(at_r2, "r3")


def withhold(name: str) -> Callable[[Lab], Any]:
    return lambda lab: lab.server.blobs.pop(digest(R3[name]))


def swap(name: str, body: bytes) -> Callable[[Lab], Any]:
    """Serve another body for a component."""

    def lie(asked: Asked, answer: Answer) -> Answer:
        return Answer(200, body) if digest(R3[name]) in asked.path else answer

    return lambda lab: setattr(lab.server, "lie", lie)


@pytest.mark.attack("M49")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        *((withhold(name), "E_HTTP") for name in ("lm.bin", "tokenizer.json")),
        (swap("tokenizer.json", TOKENS), "E_HASH"),  # the one of r2, which is as long
        (swap("tokenizer.json", TOKENS + b"!"), "E_SIZE"),
        (swap("tokenizer.json", TOKENS[:-1]), "E_SIZE"),
        (swap("lm.bin", bytes(len(LARGER))), "E_HASH"),
    ],
)
def test_m49_without_one_of_its_components_nothing_of_a_release_is_activated(
    at_r2: Lab, change: Callable[[Lab], Any], code: str
) -> None:
    blobs = dict(at_r2.server.blobs)
    change(at_r2)
    must_refuse(at_r2, code)
    must_run(at_r2, "r2")
    at_r2.server.lie, at_r2.server.blobs = HONEST, blobs
    at_r2.server.offer("r3")
    must_recover(at_r2, "r3")
    must_run(at_r2, "r3")


@pytest.mark.attack("M49")
def test_m49_a_server_cannot_name_other_components(at_r2: Lab) -> None:
    assert at_r2.server.plan is not None
    at_r2.server.plan["components"] = []
    assert at_r2.once().kind == "committed"
    must_run(at_r2, "r3")


@pytest.mark.attack("M49")
@pytest.mark.parametrize("harm", ["changed", "gone", "more"])
def test_m49_components_that_changed_since_the_trial_are_not_switched_to(
    at_r2: Lab, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    with at_r2.device() as device:
        original = device.check_in.still_ordered

    def harmed(check_in: Any, plan: Any) -> bool:
        do_harm(slot(at_r2, "slots/a"), harm)
        return True

    monkeypatch.setattr(type(original.__self__), "still_ordered", harmed)
    outcome = at_r2.once()
    assert (outcome.kind, outcome.reason) == ("failed", "E_RESULT")
    must_run(at_r2, "r2")


def do_harm(where: Path, harm: str) -> None:
    file = where / "components" / "lexicon.txt"
    if harm == "more":
        file.with_name("extra").write_bytes(b"not ours")
        return
    file.unlink()
    if harm == "changed":  # and as long
        file.write_bytes(SAME[:-1] + b"X")


@pytest.mark.parametrize("harm", ["changed", "gone", "more"])
def test_a_set_that_is_damaged_after_the_switch_is_left_for_the_old_one(
    at_r2: Lab, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    real = Committing.step

    def harmed(state: Committing, device: Any) -> Any:
        do_harm(slot(at_r2), harm)
        return real(state, device)

    monkeypatch.setattr(Committing, "step", harmed)
    outcome = at_r2.once()
    assert (outcome.kind, outcome.reason) == ("failed", "E_RESULT")
    must_run(at_r2, "r2")


def test_model_and_components_go_back_together(at_r2: Lab) -> None:
    assert at_r2.once().kind == "committed"
    at_r2.server.asked.clear()
    at_r2.server.offer("r2", [at_r2.server.undo("r2")])
    assert at_r2.once().kind == "rolled_back"
    must_run(at_r2, "r2")
    assert not fetched(at_r2)


@pytest.mark.parametrize("harm", ["changed", "gone", "more"])
def test_a_device_does_not_go_back_to_a_set_that_is_no_longer_whole(at_r2: Lab, harm: str) -> None:
    assert at_r2.once().kind == "committed"
    do_harm(slot(at_r2, "slots/b"), harm)
    at_r2.server.offer("r2", [at_r2.server.undo("r2")])
    must_refuse(at_r2, "E_NO_PIPELINE")
    must_run(at_r2, "r3")
    at_r2.server.offer("r2", [at_r2.server.undo("r2")], [at_r2.server.full("r2")])
    must_recover(at_r2, "r2")
    must_run(at_r2, "r2")


@pytest.mark.parametrize("harm", ["changed", "gone", "more"])
def test_a_device_whose_components_are_damaged_does_not_say_that_the_release_runs(
    at_r2: Lab, harm: str
) -> None:
    released = {r.sha256 for r in at_r2.server.releases.values()}
    with at_r2.device() as device:
        assert device.slots.active_sha256(fresh=False) in released
        do_harm(slot(at_r2), harm)
        assert device.slots.active_sha256(fresh=False) not in released, "and at once"
    at_r2.server.offer("r2")
    must_recover(at_r2, "r2")
    must_run(at_r2, "r2")


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"0  lexicon.txt\n", None])
def test_a_damaged_list_of_components_is_no_reason_to_stop(at_r2: Lab, body: bytes | None) -> None:
    file = slot(at_r2) / "components.sha256"
    file.unlink() if body is None else file.write_bytes(body)
    at_r2.server.offer("r2")
    must_recover(at_r2, "r2")
    must_run(at_r2, "r2")


def test_a_model_that_came_without_its_components_is_installed_with_them(lab: Lab) -> None:
    """As on a device that was born with the model file alone."""
    lab.server.publish("r1", components=R2)
    with pytest.raises(Unavailable, match="without its components"):
        lab.once()
    assert lab.running() == lab.server.models["r1"], "what runs goes on running"
    lab.server.offer("r1")
    must_recover(lab, "r1")
    must_run(lab, "r1")


@pytest.mark.attack("M49")
def test_m49_a_device_does_not_go_back_to_a_model_without_its_components(lab: Lab) -> None:
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    lab.server.publish("r1", components=R2, back_from=("r2",))
    lab.server.offer("r1", [lab.server.undo("r1")])
    must_refuse(lab, "E_NO_PIPELINE")
    must_run(lab, "r2")


@pytest.mark.attack("M50")
def test_m50_a_release_that_ran_here_and_now_has_other_components_is_refused(at_r2: Lab) -> None:
    at_r2.server.publish("r2", components=R3, back_from=("r3",))
    at_r2.server.offer("r3")
    must_refuse(at_r2, "E_EQUIVOCATION")
    assert (at_r2.release_running(), at_r2.components_running()) == ("r2", R2)


def test_there_must_be_room_for_what_is_fetched(
    at_r2: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, spare = len(R3["tokenizer.json"]), at_r2.config.limits.spare_bytes
    model = at_r2.server.models["r3"]
    freed = len(at_r2.server.models["r1"])  # what the spare slot holds is written over
    needed = 2 * len(model) - freed + tokens + len(LARGER) + spare
    usage = shutil.disk_usage("/")
    for free, reason in ((needed - 1, "E_SPACE"), (needed, "")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        at_r2.server.offer("r3")
        assert at_r2.once().reason == reason
    must_run(at_r2, "r3")
