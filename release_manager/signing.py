"""Signing what waits: fetched, verified, shown as a difference, and only then signed.

What is signed is exactly the version before, which this machine verified from its pinned root,
and the difference that is shown. Nothing but the signature is uploaded, together with the digest
of what it is on, so whatever else the server keeps in its place stays unsigned. The first root
and targets are signed in files, which people carry from one to the next: there is no server yet.
"""

import json
import sys
from argparse import Namespace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata

from release_manager import rollouts, show
from release_manager.client import connect
from release_manager.config import PUBLIC, Settings, replace_file
from release_manager.difference import as_lines, difference
from release_manager.documents import find_draft
from release_manager.errors import Refused, Usage
from release_manager.fleet import read_list
from release_manager.keys import KeyFolder, read_signed
from release_manager.metadata import Desk, desk_of, fetch, newest, utc_now
from release_manager.show import Reply
from release_manager.signers import open_signer, signature_of
from trust.accept import Delegator, accept_family, canonical, delegators, review, signatures_of
from trust.approval import approval, plan_digest
from trust.roles import ONLINE_ROLES, read_family
from trust.sign import holders_of

_DO_NOT_APPROVE = "do not approve anything through this server until you know why"


def sign(args: Namespace, settings: Settings) -> Reply:
    """Sign a document that waits, after showing what it changes.

    ROLE is root, targets or family-MODEL, for a draft on the server; or the root.json or
    targets.json of a ceremony, which is signed in its place. Asks before it signs.

    Example:
      fleetdiff sign family-asr-en-edge --key file:anne.pem
      fleetdiff sign root.json --key "hsm:2?label=anne"
    """
    if args.role.endswith(".json"):
        return _sign_file(args, Path(args.role))
    desk, role = desk_of(settings), args.role
    if role in ONLINE_ROLES:
        raise Usage(f"{role} is not signed by people", "its key is the publisher's")
    repository = fetch(desk)
    held, beside = newest(desk, repository, role), repository.beside(role)
    body = find_draft(desk, role)
    if body is None:
        raise Refused(f"no draft of {role} waits", "see what does: fleetdiff draft list")
    uri = args.key or f"file:{desk.folder.key_file(role)}"
    document, done = _sign(role, body, beside, held, desk.now, uri, args.yes)
    missing = _upload(desk, role, done["keyid"], document)
    return _reply(done, missing, published=not missing)


def approve(args: Namespace, settings: Settings) -> Reply:
    """Approve what a rollout is going to do that others made, after showing all of it.

    With --key the approval is a signature: the server and the publisher ask for one where their
    file of limits lists the keys of approvers. The last approval that it takes starts it.

    Example:
      fleetdiff rollout approve ro_1 --key file:anne.pem
    """
    client = connect(settings)
    plan = client.get(f"/v1/rollouts/{args.id}/plan")["plan"]
    if not isinstance(plan, dict) or plan.get("rollout") != args.id:
        raise Refused(f"the server shows another plan than that of {args.id}", _DO_NOT_APPROVE)
    for line in (f"plan of rollout {args.id}", *as_lines(difference({}, plan))):
        show.note(line)
    _ask(args.yes, "approve this?", "end it if it is wrong: fleetdiff rollout halt")
    body = {"plan": plan_digest(plan)}
    if args.key:
        signed = signature_of(args.key, open_signer(args.key), approval(plan).pae())
        body |= {"keyid": signed.keyid, "sig": signed.signature}
    rollout = client.post(f"/v1/rollouts/{args.id}/approve", body)
    return Reply(rollout, rollouts.text(rollout))


def list_drafts(args: Namespace, settings: Settings) -> Reply:
    """List the documents that wait for signatures.

    Example:
      fleetdiff draft list
    """
    columns = "role version missing signed_by may_sign staged_by staged_at expires_at refused"
    return read_list(settings, "/v1/drafts", columns)


def drop(args: Namespace, settings: Settings) -> Reply:
    """Drop a draft, with the signatures it has.

    They stay good for that very document until another version is published, whoever stages it.

    Example:
      fleetdiff draft drop family-asr-en-edge
    """
    connect(settings).delete(f"/v1/drafts/{args.role}")
    return Reply({"role": args.role, "dropped": True})


def _sign_file(args: Namespace, file: Path) -> Reply:
    """Sign the first root or targets in its file, next to its root."""
    try:
        body = file.read_bytes()
        role = str(json.loads(body)["signed"]["_type"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(f"{file} is no signed document", "give what init --ceremony made") from None
    beside = None
    if role != "root":
        beside = read_signed("root", KeyFolder(file.parent).pinned_root()).signed
    if not args.key:
        raise Usage("the key is not given", "give --key URI")
    document, done = _sign(role, body, beside, None, utc_now(), args.key, args.yes)
    replace_file(file, canonical(document), PUBLIC)
    return _reply(done, done["missing"], published=False)


def _sign(
    role: str,
    body: bytes,
    beside: Delegator | None,
    held: Metadata[Any] | None,
    now: datetime,
    uri: str,
    yes: bool,
) -> tuple[Metadata[Any], dict[str, Any]]:
    """Judge a document, show what a signature would say, ask, and sign.

    Returns:
        The document with the signature, and what was done.
    """
    before = canonical(held) if held else None
    document = review(role, body, beside, before, now)
    if role.startswith("family-"):
        model = role.removeprefix("family-")
        accept_family(model, document.signed, read_family(model, held.signed) if held else None)
    rows = difference(held.signed.to_dict() if held else {}, document.signed.to_dict())
    asked = delegators(document, before, beside)
    missing = signatures_of(role, document, asked).missing
    title = f"{role} {document.signed.version}, signatures missing: {missing}"
    for line in (title, *as_lines(rows)):
        show.note(line)
    _ask(yes, "sign this?", "drop it if it is wrong: fleetdiff draft drop")
    allowed = [key for named in asked for key in holders_of(named, role).keys]
    signer = open_signer(uri, allowed)
    keyid = signer.public_key.keyid
    document.signatures[keyid] = signature_of(uri, signer, document.signed_bytes)
    signed = signatures_of(role, document, asked)
    if keyid not in signed.given:
        raise Refused(f"the key at {uri} made a wrong signature", "check the token or the service")
    done = {"role": role, "version": document.signed.version, "keyid": keyid}
    return document, done | {"missing": signed.missing, "changes": rows}


def _ask(yes: bool, question: str, otherwise: str) -> None:
    if not yes:
        if not sys.stdin.isatty():
            raise Usage("nobody is there to ask", "look at the difference, then give --yes")
        if show.ask(f"{question} [y/N]").lower() not in ("y", "yes"):
            raise Refused("nothing was signed", otherwise)


def _upload(desk: Desk, role: str, keyid: str, document: Metadata[Any]) -> int:
    """Upload a signature and return how many are missing."""
    digest = sha256(document.signed_bytes).hexdigest()
    signed = {"sha256": digest, "sig": document.signatures[keyid].signature}
    try:
        return int(desk.client.put(f"/v1/drafts/{role}/signatures/{keyid}", signed)["missing"])
    except Refused as error:
        # The reply to the last signature may be lost; what it signed is published then.
        if error.status in (404, 409):
            now = newest(desk, fetch(desk), role)
            if now and now.signed_bytes == document.signed_bytes:
                return 0
        raise


def _reply(done: dict[str, Any], missing: int, *, published: bool) -> Reply:
    state = "published" if published else f"missing: {missing}" if missing else "complete"
    done |= {"missing": missing, "published": published}
    return Reply(done, f"signed {done['role']} {done['version']}; {state}")
