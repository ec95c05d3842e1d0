"""Rows of the table as a device meets them: forged, old or hidden documents from its own server."""

from functools import partial

import pytest

from tests.agent.conftest import Lab
from tests.agent.hostile import must_hold_out
from tests.agent.loopback import Answer
from tests.agent.server_double import FAMILY, MODEL
from tests.attacks import forgeries as forge
from tests.attacks.forgeries import TOP, Forge, blob, in_bundle, ordered, payload, spoil

PATHS = [
    f"{MODEL}/../x.model", "a/b/c", "%2e%2e/x", f"{MODEL}/r2\0.model", f"{MODEL}/-r2.model",
    f"{MODEL}/{'r' * 300}.model", f"{MODEL}/\u04332.model", "/etc/passwd", "tts/r2.model",
]  # fmt: skip
MEMBERSHIP = "application/vnd.fleetdiff.membership+json"
BOMB, ENDLESS = "[" * 60_000, " " * 1_500_000

ROWS: list[tuple[str, Forge, str]] = [
    ("M01", blob(lambda b: Answer(200, b[:-1] + bytes([b[-1] ^ 1]))), "E_HASH"),
    ("M02", blob(lambda b: Answer(chunks=(b"x" * 65_536 for _ in range(99)))), "E_SIZE"),
    ("M02 and says so", blob(lambda b: Answer(200, b + b"x")), "E_SIZE"),
    ("M04 timestamp", in_bundle("timestamp.json", ENDLESS), "E_SIZE"),
    ("M04 root", in_bundle("2.root.json", ENDLESS), "E_SIZE"),
    ("M04 order", in_bundle("order", ENDLESS), "E_SIZE"),
    ("M05 timestamp", in_bundle("timestamp.json", BOMB), "E_SIG E_SIZE"),
    ("M05 root", in_bundle("2.root.json", BOMB), "E_SIG"),
    ("M05 order", in_bundle("order", BOMB), "E_SIZE"),
    ("M06", forge.inflating, "E_HTTP"),
    ("M07", spoil("timestamp", lambda signed: None, "mallory"), "E_SIG"),
    ("M08", forge.old_body("snapshot"), "E_MIX"),
    ("M09", forge.old_body(FAMILY), "E_MIX"),
    ("M10", partial(forge.older_state, wipe=False), "E_ROLLBACK_META"),
    ("M11", partial(forge.older_state, wipe=True), "E_ROLLBACK_META"),
    *((f"M13 {role}", spoil(role, forge.expired), "E_FREEZE") for role in (*TOP, "family")),
    ("M19", forge.after_a_hold(back=2), "E_REPLAY"),
    ("M20", forge.after_a_hold(back=1), "E_REPLAY"),
    ("M21 device", ordered(device="d2"), "E_AUD"),
    ("M21 nobody", ordered(device=""), "E_AUD"),
    ("M21 model", ordered(model="tts"), "E_AUD"),
    ("M22", ordered(device="who-this-device-was-before"), "E_AUD"),
    *((f"M23 {role}", forge.order_by(role), "E_SIG") for role in (*TOP, "family")),
    *((f"M23 {r} posing", forge.order_by(r, posing=True), "E_SIG") for r in (*TOP, "family")),
    ("M24", payload(lambda p: p, MEMBERSHIP), "E_SIG"),
    ("M24 relabelled", payload(lambda p: p, MEMBERSHIP, forge.PAYLOAD_TYPE), "E_SIG"),
    ("M25", forge.new_director, "E_SIG"),
    ("M28 withdrawn", forge.status("withdrawn"), "E_WITHDRAWN"),
    ("M28 retired", forge.status("retired"), "E_WITHDRAWN"),
    ("M28 removed", spoil("family", forge.without_r2), "E_NOT_RELEASED"),
    ("M29", forge.family_of_before, "E_ROLLBACK_META"),
    ("M32", spoil("root", forge.keys_of_mallory, "mallory"), "E_SIG"),
    ("M33", forge.half_a_threshold, "E_SIG"),
    ("M34 family", forge.twin_of_the_family, "E_SIG"),
    ("M34 timestamp", forge.twin_of_the_timestamp, "E_SIG"),
    *((f"M37 {ascii(p)[:20]}", spoil("family", forge.named(p)), "E_NOT_RELEASED") for p in PATHS),
    ("M36", spoil("family", forge.named("tts/r2.model")), "E_NOT_RELEASED"),
    ("M40", spoil("snapshot", forge.without_family), "E_SIG E_NOT_RELEASED"),
    ("M41 root", ordered(root=2), "E_FREEZE"),
    ("M41 timestamp", ordered(timestamp=99), "E_FREEZE"),
    ("M42 twice", payload(lambda p: p.replace(b'"seq":', b'"seq":1,"seq":')), "E_SIG"),
    ("M42 trailing", payload(lambda p: p + b" "), "E_SIG"),
    ("M42 mark", payload(lambda p: b"\xef\xbb\xbf" + p), "E_SIG"),
    ("M42 unknown", payload(lambda p: p[:-1] + b',"z":1}'), "E_SIG"),
    ("M42 float", payload(lambda p: p.replace(b'"v":1', b'"v":1.0')), "E_SIG"),
    ("M42 1e400", payload(lambda p: p.replace(b'"v":1', b'"v":1e400')), "E_SIG"),
    ("M42 2^60", payload(lambda p: p.replace(b'"seq":', b'"seq":1152921504606846976')), "E_SIG"),
    ("M49 a link", forge.half_a_chain, "E_HTTP"),
    ("M49 a component", forge.component(b""), "E_SIZE"),
    ("M49 a component of another", forge.component(b"of r2"), "E_HASH"),
    ("M49 a component not listed", spoil("family", forge.unlisted), "E_NOT_RELEASED"),
    ("M49 the canary", forge.no_shard, "E_HTTP"),
    ("M52 delegations", spoil("targets", forge.nine_decoys), "E_SIG"),
    ("M52 files", spoil("family", forge.many_files), "E_SIZE"),
]


@pytest.mark.parametrize(
    ("change", "codes"),
    [pytest.param(*row, id=name, marks=pytest.mark.attack(name.split()[0])) for name, *row in ROWS],
)
def test_a_device_holds_out(lab: Lab, change: Forge, codes: str) -> None:
    must_hold_out(lab, change, *codes.split())


@pytest.mark.attack("M26")
def test_m26_a_device_does_not_go_back_where_nobody_signed_a_way(lab: Lab) -> None:
    lab.server.publish("r3")
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    must_hold_out(lab, lambda lab: lab.server.offer("r1"), "E_DOWNGRADE", then="r3")
