"""Who can do what when something is stolen: a test for each "cannot", and for what ends a "can".

The thief owns the path to the device in every case, so he may send, hide and repeat anything.
"""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Targets

from tests.agent.conftest import Lab
from tests.agent.hostile import HONEST, installed, must_hold_out, must_recover, must_refuse
from tests.agent.server_double import FAMILY, MODEL
from tests.attacks import forgeries as forge
from tests.attacks.forgeries import MALLORY, Forge, ordered, spoil
from tests.unit.signed_world import DAY, NOW, Device, SignedWorld, order, refuses, release
from trust import sign
from trust.errors import Untrusted
from trust.verify import check_transition

# The network or the CDN, or the API process with its database: no key at all


class Seen:
    """Everything that was ever signed about a model, and a device that has seen it all."""

    def __init__(self, folder: Path) -> None:
        world = SignedWorld()
        self.device = Device(folder / "first", world.pinned)
        self.states: list[dict[str, bytes]] = []
        self.orders: list[bytes] = []
        withdrawn, back = release("r2", status="withdrawn"), release("r1", rollback_from=("r3",))
        for entry, target in [
            (release("r2"), "r2"),
            (release("r3"), "r1"),
            (withdrawn, "r3"),
            (back, "r3"),
        ]:
            world.publish(entry)
            self.states.append(dict(world.files))
            number = len(self.states)
            self.orders.append(order(release(target), seq=number, timestamp=number))
            self.device.obey(self.device.refresh(world.files), self.orders[-1])
        self.names = sorted({name for files in self.states for name in files})

    def again(self, folder: Path) -> Device:
        device = Device(folder, self.device.pinned)
        device.wipe_cache()
        shutil.copytree(self.device.cache, device.cache, symlinks=True)
        device.floors = self.device.floors
        return device


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("seen"))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_thief_of_the_path_installs_nothing_and_takes_nobody_back(
    seen: Seen, tmp_path: Path, data: st.DataObject
) -> None:
    """Any old file under any name, any old order, with or without the cache."""
    device = seen.again(tmp_path)
    if data.draw(st.booleans()):
        device.wipe_cache()
    bundle = {}
    for name in seen.names:
        files = data.draw(st.sampled_from([{}, *seen.states, seen.states[-1]]))
        other = data.draw(st.sampled_from([name] * 9 + seen.names))
        bundle |= {name: files[other]} if other in files else {}
    told = data.draw(st.sampled_from([*seen.orders, seen.orders[-1]]))
    try:
        trusted = device.refresh(bundle)
        order = device.obey(trusted, told)
        chosen = check_transition(
            trusted, order, NOW, running_sha256=release("r3").sha256, hardware="h1"
        )
    except Untrusted:
        chosen = release("r3")
    assert chosen.name == "r3"  # what runs already
    assert device.floors == seen.device.floors


# The API process and all online keys: snapshot, timestamp and director


def other_hardware(lab: Lab) -> None:
    lab.server.releases["r2"] = replace(lab.server.releases["r2"], hardware=("riscv64",))
    lab.server.sign_all()
    lab.server.offer("r2")


def never_released(lab: Lab) -> None:
    """The signed patch to r3, called the way to r2."""
    lab.server.publish("r3")
    lab.server.make_patch("r1", "r3")
    wrong = lab.server.patch("r1", "r3") | {"to": lab.server.releases["r2"].sha256}
    lab.server.offer("r2", [wrong])


def one_more(family: Targets) -> None:
    family.targets[f"{MODEL}/r9.model"] = deepcopy(family.targets[f"{MODEL}/r2.model"])


ALL_ONLINE: list[tuple[str, Forge, str]] = [
    ("a model nobody signed", ordered(release="r9", sha256="9" * 64), "E_NOT_RELEASED"),
    ("other bytes of a signed release", ordered(sha256="9" * 64), "E_EQUIVOCATION"),
    *(
        (f"a family signed by {key}", spoil("family", one_more, key), "E_SIG")
        for key in ("snapshot", "timestamp", "director")
    ),
    ("targets signed by the director", spoil("targets", lambda t: None, "director"), "E_SIG"),
    ("a root signed by the timestamp", spoil("root", lambda r: None, "timestamp"), "E_SIG"),
    ("what was seen withdrawn", forge.family_of_before, "E_ROLLBACK_META"),
    ("a model of another family", ordered(model="tts"), "E_AUD"),
    ("a model for other hardware", other_hardware, "E_INCOMPAT"),
    ("a combination nobody released", never_released, "E_NOT_RELEASED"),
    ("an order for ever", ordered(expires=NOW.replace(year=2079)), "E_CLOCK"),
    # One release manager of two, and all online keys as well
    ("one of two signatures", forge.half_a_threshold, "E_SIG"),
    ("one of two managers, twice", forge.twin_of_the_family, "E_SIG"),
]


@pytest.mark.parametrize(
    ("change", "code"), [row[1:] for row in ALL_ONLINE], ids=[row[0] for row in ALL_ONLINE]
)
def test_all_online_keys_and_one_manager_cannot_install(lab: Lab, change: Forge, code: str) -> None:
    must_hold_out(lab, change, code)


def test_all_online_keys_cannot_take_a_device_back_without_an_edge(lab: Lab) -> None:
    lab.server.publish("r3")
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    must_hold_out(lab, lambda lab: lab.server.offer("r1"), "E_DOWNGRADE", then="r3")


# A threshold of release managers of one family


def test_a_threshold_of_managers_still_needs_an_order(lab: Lab) -> None:
    assert lab.once() is None
    before = installed(lab)
    lab.server.publish("r9")
    assert lab.once() is None
    lab.server.offer("r9")
    lab.server.order = None
    must_refuse(lab, "E_NOT_RELEASED")
    lab.server.offer("r9")
    lab.server.order = lab.server.sign_order(lab.server.releases["r2"])
    lab.server.events.clear()
    must_refuse(lab, "E_NOT_RELEASED")
    assert installed(lab) == before


def another_family(lab: Lab) -> None:
    """Mallory holds the keys of the family tts."""
    server = lab.server
    before, tts = server.documents["targets"].signed, {"family-tts": MALLORY.public_key}
    server.put("targets", sign.next_targets(before, tts, server.now))


def for_this_family(lab: Lab) -> None:
    another_family(lab)
    spoil("family", one_more, "mallory")(lab)


def in_the_other_family(lab: Lab) -> None:
    """A path of this family in the file of the other, which snapshot lists as it should."""
    another_family(lab)
    server = lab.server
    tts = deepcopy(server.documents["family"])
    one_more(tts.signed)
    body = sign.sign(tts, [MALLORY])
    files = {"targets.json": server.bodies["targets"], "family-tts.json": body}
    files |= {f"{FAMILY}.json": server.bodies["family"]}
    before = server.documents["snapshot"].signed
    server.put("snapshot", sign.next_snapshot(before, files, server.now))
    forge.stamp(server)
    server.files[f"{tts.signed.version}.family-tts.json"] = body
    ordered(release="r9")(lab)


@pytest.mark.attack("M36")
def test_the_managers_of_one_family_sign_nothing_for_another(lab: Lab) -> None:
    must_hold_out(lab, for_this_family, "E_SIG")


@pytest.mark.attack("M36")
def test_what_one_family_lists_of_another_is_not_released(lab: Lab) -> None:
    in_the_other_family(lab)
    must_refuse(lab, "E_NOT_RELEASED")
    lab.server.offer("r2")
    must_recover(lab)


# A threshold of targets, of root; an old timestamp key


def test_a_threshold_of_targets_does_not_survive_the_rotation_of_root(lab: Lab) -> None:
    server, new = lab.server, CryptoSigner.generate_ed25519()
    assert lab.once() is None

    def rotate(root: Root) -> None:
        root.keys[new.public_key.keyid] = new.public_key
        root.roles["targets"].keyids = [new.public_key.keyid]

    stolen = server.keys["targets"]
    spoil("root", rotate)(lab)
    server.keys["targets"], server.keys["stolen"] = new, stolen
    spoil("targets")(lab)
    server.order = server.plan = None
    assert lab.once() is None
    kept = deepcopy(server.documents)

    def redelegate(targets: Targets) -> None:
        assert targets.delegations is not None and targets.delegations.roles is not None
        targets.delegations.keys[MALLORY.public_key.keyid] = MALLORY.public_key
        targets.delegations.roles[FAMILY].keyids = [MALLORY.public_key.keyid]

    spoil("targets", redelegate, "stolen")(lab)
    spoil("family", one_more, "mallory")(lab)
    must_refuse(lab, "E_SIG")
    for role in ("targets", "family"):
        kept[role].signed.version = server.documents[role].signed.version + 1
        server.put(role, kept[role])
    server.sign_all()
    server.offer("r2")
    must_recover(lab)


def test_root_keys_can_do_all_except_to_devices_that_pin_another_root(lab: Lab) -> None:
    """The one cell without a "cannot": what helps is a new root, pinned by hand."""
    before = installed(lab)
    other = SignedWorld()
    lab.server.offer("r2")
    lab.server.lie = HONEST
    lab.server.files = {"2.root.json": other.pinned, **lab.server.files}
    must_refuse(lab, "E_SIG", "E_ROLLBACK_META")
    assert installed(lab) == before


def test_an_old_timestamp_key_with_its_root_hidden_lives_no_longer_than_the_family(
    tmp_path: Path,
) -> None:
    """And an honest order, which names the new root, ends it at once."""
    world = SignedWorld()
    device = Device(tmp_path, world.pinned)
    hidden = dict(world.files)
    for after in (0 * DAY, sign.LIFETIME["family"]):
        world.now = NOW + after
        world.sign_timestamp()
        stale = {**hidden, "timestamp.json": world.files["timestamp.json"]}
        if after:
            refuses(device, stale, "E_FREEZE", now=world.now)
            continue
        trusted = device.refresh(stale)
        with pytest.raises(Untrusted, match="E_FREEZE"):
            device.obey(trusted, order(release("r2"), root=2))
        device.obey(trusted, order(release("r2")))  # unless the director's key is stolen as well


# One device


def test_what_one_device_is_told_moves_no_other(lab: Lab) -> None:
    """Neither as it is, nor with the name changed under the signature."""
    lab.server.offer("r2", device="d2")
    must_refuse(lab, "E_AUD")
    lab.server.events.clear()
    forge.payload(lambda p: p.replace(b'"d2"', b'"d1"'))(lab)
    assert lab.server.order is not None
    envelope = json.loads(lab.server.order)
    lab.server.offer("r2", device="d2")
    signature = json.loads(lab.server.order)["signatures"]
    lab.server.order = json.dumps(envelope | {"signatures": signature}).encode()
    must_refuse(lab, "E_SIG")
