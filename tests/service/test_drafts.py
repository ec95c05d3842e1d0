"""Several people sign one document: staged, signed apart, published at the threshold."""

from functools import partial
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Targets

from service.publishing.drafts import draft_of
from tests.service.world import BASE, BETTER, MODEL, World, digest, outcomes, refused
from trust import sign
from trust.accept import canonical
from trust.sign import Holders

FAMILY = f"family-{MODEL}"
DRAFT, SIGNED = f"/v1/drafts/{FAMILY}", f"/v1/metadata/{FAMILY}"
ANNE, BEN, CARL, DORA, EMIL, EVE = (CryptoSigner.generate_ed25519() for _ in range(6))
MANAGERS = Holders(tuple(s.public_key for s in (ANNE, BEN, CARL)), 2)


def delegate(world: World, family: Holders) -> None:
    """Let the family be signed by these people."""
    current = Metadata[Targets].from_bytes(world.newest_metadata("targets")).signed
    following = sign.next_targets(current, {FAMILY: family}, world.now)
    world.put_metadata("targets", sign.sign(following, [world.signers["targets"]]))


@pytest.fixture
def team(world: World) -> World:
    """A world whose family is signed by two of three people."""
    delegate(world, MANAGERS)
    return world


def release(world: World, name: str = "r1", body: bytes = BASE) -> Metadata[Targets]:
    """Return the unsigned next version of the family, with a release in it."""
    world.upload(body)
    entry = sign.target_of(MODEL, world.release(name, body))
    return sign.next_family(world.family, [entry], world.now)


def stage(world: World, document: Metadata[Any], role: str = FAMILY) -> Any:
    return world.ok("PUT", f"/v1/drafts/{role}", content=sign.sign(document, []))


def signature(world: World, document: Metadata[Any], by: CryptoSigner, role: str = FAMILY) -> Any:
    """Upload a signature and return the reply."""
    sig = by.sign(document.signed_bytes).signature
    body = {"sha256": digest(document.signed_bytes), "sig": sig}
    keyid = by.public_key.keyid
    return world.call("PUT", f"/v1/drafts/{role}/signatures/{keyid}", json=body)


def drafts(world: World) -> list[Any]:
    return list(world.ok("GET", "/v1/drafts")["items"])


def is_published(world: World, version: int = 1) -> bool:
    return bool(world.ok("GET", "/v1/metadata").get(FAMILY, 0) >= version)


def test_a_draft_is_published_by_the_signature_that_reaches_the_threshold(team: World) -> None:
    document = release(team)
    shown = stage(team, document)
    assert (shown["version"], shown["missing"], shown["signed_by"]) == (1, 2, [])
    assert len(shown["may_sign"]) == 3 and shown["staged_by"] == "tester"
    once = signature(team, document, ANNE).json()
    assert (once["missing"], once["signed_by"]) == (1, [ANNE.public_key.keyid])
    assert drafts(team) == [once] and not is_published(team)
    assert signature(team, document, BEN).json()["missing"] == 0
    assert drafts(team) == [] and is_published(team)
    body = team.newest_metadata(FAMILY)
    assert set(Metadata[Targets].from_bytes(body).signatures) == {
        s.public_key.keyid for s in (ANNE, BEN)
    }
    (found,) = team.ok("GET", f"/v1/models/{MODEL}/releases")["items"]
    assert found["name"] == "r1"
    team.tick()
    assert team.newest_metadata("snapshot")


def test_nothing_of_a_draft_can_be_seen_before_it_is_published(team: World) -> None:
    stage(team, release(team))
    refused(team.call("GET", f"/v1/metadata/1.{FAMILY}.json"), 404)
    assert team.ok("GET", f"/v1/models/{MODEL}/releases")["items"] == []
    team.tick()
    assert FAMILY not in str(team.newest_metadata("snapshot"))


@pytest.mark.attack("M33")
def test_one_person_does_not_make_two(team: World) -> None:
    document = release(team)
    stage(team, document)
    for _ in range(3):
        assert signature(team, document, ANNE).json()["missing"] == 1
    assert not is_published(team)


@pytest.mark.attack("M33")
def test_a_signature_of_no_key_of_the_role_is_refused(team: World) -> None:
    document = release(team)
    stage(team, document)
    before = team.rows()
    for stranger in (EVE, *(team.signers[name] for name in ("targets", "family", "director"))):
        found = refused(signature(team, document, stranger), 422, "not-acceptable")
        assert found["code"] == "E_SIG"
    other = release(team, "r2", BETTER)
    wrong = {"sha256": digest(document.signed_bytes)}
    wrong["sig"] = ANNE.sign(other.signed_bytes).signature
    keyid = ANNE.public_key.keyid
    refused(team.call("PUT", f"{DRAFT}/signatures/{keyid}", json=wrong), 422, "not-acceptable")
    assert team.rows()["draft"] == before["draft"]


@pytest.mark.attack("A16")
def test_a_draft_that_was_replaced_after_a_signature_has_lost_it(team: World) -> None:
    first, other = release(team), release(team, "r2", BETTER)
    stage(team, first)
    assert signature(team, first, ANNE).json()["missing"] == 1
    body = sign.sign(other, [])
    refused(team.call("PUT", DRAFT, content=body), 409, "wrong-state")
    assert team.call("DELETE", DRAFT).status_code == 204
    refused(signature(team, first, BEN), 404)
    assert stage(team, other)["missing"] == 2
    # Who signed the first one, or signs what is no longer there, has signed nothing.
    refused(signature(team, first, BEN), 409, "wrong-state")
    assert drafts(team)[0]["missing"] == 2
    assert signature(team, other, BEN).json()["missing"] == 1
    assert not is_published(team)


@pytest.mark.attack("A16")
def test_a_draft_that_somebody_changed_in_the_database_is_not_signed_any_more(
    team: World,
) -> None:
    first, other = release(team), release(team, "r2", BETTER)
    stage(team, first)
    assert signature(team, first, ANNE).json()["missing"] == 1
    other.signatures = {ANNE.public_key.keyid: ANNE.sign(first.signed_bytes)}
    with team.app.state.database.writer() as session:
        draft_of(session, FAMILY).body = canonical(other)
    assert drafts(team)[0]["missing"] == 2
    assert signature(team, other, BEN).json()["missing"] == 1
    assert not is_published(team)


def test_staging_the_same_again_keeps_what_was_signed(team: World) -> None:
    document = release(team)
    stage(team, document)
    signature(team, document, ANNE)
    assert stage(team, document)["missing"] == 1


def test_a_draft_is_staged_without_signatures(team: World) -> None:
    body = sign.sign(release(team), [ANNE])
    refused(team.call("PUT", DRAFT, content=body), 422, "not-acceptable")
    assert drafts(team) == []


@pytest.mark.attack("A15")
def test_what_could_never_be_published_is_not_staged(team: World) -> None:
    def changed(**fields: Any) -> bytes:
        document = sign.next_family(None, [], team.now)
        for name, value in fields.items():
            setattr(document.signed, name, value)
        return sign.sign(document, [])

    missing = sign.next_family(
        None, [sign.target_of(MODEL, team.release("r9", b"never uploaded"))], team.now
    )
    nested = sign.next_targets(None, {"director": BEN.public_key}, team.now).signed.delegations
    for body, status in (
        (changed(version=2), 409),
        (changed(expires=team.now.replace(year=2036)), 422),
        (changed(expires=team.now), 422),
        (changed(delegations=nested), 422),
        (sign.sign(missing, []), 422),
        (b"{}", 422),
        (b" " + changed(), 422),
    ):
        refused(team.call("PUT", DRAFT, content=body), status)
    refused(team.call("PUT", "/v1/drafts/family-tts", content=changed()), 422)
    assert drafts(team) == []


def test_a_draft_that_another_version_overtook_is_gone(team: World) -> None:
    document = release(team)
    stage(team, document)
    signature(team, document, ANNE)
    overtaking = sign.sign(release(team, "r2", BETTER), [BEN, CARL])
    team.put_metadata(FAMILY, overtaking)
    assert drafts(team) == []
    refused(signature(team, document, BEN), 404)
    late = refused(team.call("PUT", DRAFT, content=sign.sign(document, [])), 409)
    assert late["type"].endswith("not-the-next-version")


def test_a_signature_of_a_key_that_was_revoked_meanwhile_does_not_count(team: World) -> None:
    document = release(team)
    stage(team, document)
    signature(team, document, ANNE)
    delegate(team, Holders(tuple(s.public_key for s in (BEN, CARL, EVE)), 2))
    assert drafts(team)[0]["missing"] == 2
    assert signature(team, document, BEN).json()["missing"] == 1
    assert signature(team, document, EVE).json()["missing"] == 0
    found = Metadata[Targets].from_bytes(team.newest_metadata(FAMILY)).signatures
    assert ANNE.public_key.keyid not in found


def test_a_draft_whose_role_vanished_says_so(team: World) -> None:
    stage(team, release(team))
    targets = sign.next_targets(None, {"director": team.public["director"]}, team.now)
    targets.signed.version = 3
    team.put_metadata("targets", sign.sign(targets, [team.signers["targets"]]))
    (shown,) = drafts(team)
    assert "not delegated" in shown["refused"]
    assert team.call("DELETE", DRAFT).status_code == 204


@pytest.mark.attack("M32")
def test_a_root_is_published_when_the_old_and_the_new_holders_signed(team: World) -> None:
    old = Metadata[Root].from_bytes(team.newest_metadata("root")).signed
    changes = {"root": Holders((DORA.public_key, EMIL.public_key), 2)}
    document = sign.next_root(old, changes, team.now)
    shown = stage(team, document, "root")
    assert (shown["missing"], len(shown["may_sign"])) == (3, 3)
    assert signature(team, document, DORA, "root").json()["missing"] == 2
    assert signature(team, document, EMIL, "root").json()["missing"] == 1
    refused(signature(team, document, EVE, "root"), 422)
    assert team.ok("GET", "/v1/metadata")["root"] == 1
    assert signature(team, document, team.signers["root"], "root").json()["missing"] == 0
    assert team.ok("GET", "/v1/metadata")["root"] == 2


def test_two_who_sign_at_the_same_time_publish_once(team: World) -> None:
    document = release(team)
    stage(team, document)
    calls = [partial(signature, team, document, by) for by in (ANNE, BEN, CARL)]
    statuses = outcomes(calls)
    assert statuses[:2] == [200, 200] and statuses[2] in (404, 409)
    assert is_published(team) and drafts(team) == []
    assert len(team.rows()["release"]) == 1


def test_reading_and_writing_drafts_take_their_scopes(team: World) -> None:
    document = release(team)
    body = sign.sign(document, [])
    reader, other = team.token_with("releases:read"), team.token_with("rollouts:write")
    refused(team.call("PUT", DRAFT, token=reader, content=body), 403)
    stage(team, document)
    refused(team.call("DELETE", DRAFT, token=reader), 403)
    refused(team.call("GET", DRAFT, token=other), 403)
    reply = team.call("GET", DRAFT, token=reader)
    assert reply.content == body
    refused(team.call("GET", "/v1/drafts/timestamp"), 422)


def test_targets_that_would_leave_a_published_family_unsigned_are_refused(team: World) -> None:
    """Every device would refuse the family from then on: first it is signed by those who stay."""
    document = release(team)
    team.put_metadata(FAMILY, sign.sign(document, [ANNE, BEN]))
    current = Metadata[Targets].from_bytes(team.newest_metadata("targets")).signed
    for family in (
        Holders((CARL.public_key, DORA.public_key), 2),
        Holders((ANNE.public_key, CARL.public_key, DORA.public_key), 2),
        Holders((ANNE.public_key, BEN.public_key, CARL.public_key), 3),
    ):
        following = sign.next_targets(current, {FAMILY: family}, team.now)
        for path, by in (("drafts", []), ("metadata", [team.signers["targets"]])):
            body = sign.sign(following, by)
            found = refused(team.call("PUT", f"/v1/{path}/targets", content=body), 422)
            assert found["code"] == "E_SIG" and "first let those sign" in found["detail"]
    team.family = document.signed
    again = sign.next_family(team.family, [], team.now)
    team.put_metadata(FAMILY, sign.sign(again, [ANNE, CARL]))
    delegate(team, Holders((ANNE.public_key, CARL.public_key, DORA.public_key), 2))


def test_a_root_that_would_leave_targets_unsigned_is_refused(team: World) -> None:
    old = Metadata[Root].from_bytes(team.newest_metadata("root")).signed
    document = sign.next_root(old, {"targets": DORA.public_key}, team.now)
    body = sign.sign(document, [team.signers["root"]])
    found = refused(team.call("PUT", "/v1/metadata/root", content=body), 422)
    assert "first let those sign targets again" in found["detail"]


def test_who_staged_signed_and_dropped_is_written_down(team: World) -> None:
    document = release(team)
    stage(team, document)
    signature(team, document, ANNE)
    team.call("DELETE", DRAFT)
    entries = team.ok("GET", "/v1/audit", params={"limit": 100})["items"]
    told = [(e["action"], e["details"]) for e in entries if e["object"] == FAMILY]
    what = {"sha256": digest(document.signed_bytes)}
    keyid = {"keyid": ANNE.public_key.keyid}
    assert told == [("draft.stage", what), ("draft.sign", what | keyid), ("draft.drop", {})]
