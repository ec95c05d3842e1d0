"""Documents that wait for signatures: staged by one person, signed by several on their machines.

A draft is the next version of an offline document. Whoever signs sends nothing but a signature,
over the bytes that this person saw. At the threshold the document is accepted like one that was
uploaded complete. Another document in its place starts without signatures, and nobody can put
one there while a draft waits: it is dropped first, which is one more entry in the audit log.
"""

from datetime import datetime
from hashlib import sha256
from typing import Any

from securesystemslib.signer import Signature
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata

from service.blobs import Blobs
from service.core import audit, errors
from service.core.bodies import NewSignature
from service.db.tables import Draft
from service.publishing.catalog import Reviewed, accept_metadata, refusals, review_metadata
from trust.accept import Signatures, canonical, signatures_of


def stage(
    session: Session, blobs: Blobs, role: str, body: bytes, by: str, now: datetime
) -> dict[str, Any]:
    """Keep the unsigned next version of a document until enough people signed it.

    Raises:
        Refusal: what `accept_metadata` would refuse.
        WrongState: another draft waits.
    """
    reviewed = review_metadata(session, blobs, role, body, now)
    if reviewed.document.signatures:
        raise errors.NotAcceptable("a draft is staged without signatures", role=role)
    draft = session.get(Draft, role)
    if draft is None:
        draft = Draft(role=role, body=body, staged_by=by, staged_at=now)
        session.add(draft)
        digest = sha256(reviewed.document.signed_bytes).hexdigest()
        audit.record(session, "draft.stage", role, now, sha256=digest)
    elif Metadata[Any].from_bytes(draft.body).signed_bytes != reviewed.document.signed_bytes:
        version = reviewed.document.signed.version
        raise errors.WrongState(f"another draft of {role} {version} waits: sign or drop it first")
    return view(session, blobs, draft, now)


def add_signature(
    session: Session, blobs: Blobs, role: str, keyid: str, given: NewSignature, now: datetime
) -> dict[str, Any]:
    """Add one person's signature to a draft; the last one that is needed publishes it.

    Raises:
        NotFound: no draft waits.
        WrongState: it is not the draft that was signed.
        NotAcceptable: the signature is not one of this draft, or of no key of the role.
    """
    draft = draft_of(session, role, lock=True)
    reviewed = review_metadata(session, blobs, role, draft.body, now)
    document = reviewed.document
    if sha256(document.signed_bytes).hexdigest() != given.sha256:
        raise errors.WrongState(f"the draft of {role} was replaced; look at it and sign again")
    document.signatures[keyid] = Signature(keyid, given.sig)
    signed = _signatures(role, reviewed)
    if keyid not in signed.given:
        what = f"this is not a signature of the draft of {role} by a key that may sign it"
        raise errors.NotAcceptable(what, code="E_SIG", role=role)
    # A key that was revoked since it signed counts no more, and is not published either.
    document.signatures = {keyid: document.signatures[keyid] for keyid in signed.given}
    draft.body = canonical(document)
    shown = _shown(draft, document, signed)
    audit.record(session, "draft.sign", role, now, keyid=keyid, sha256=given.sha256)
    if not signed.missing:
        accept_metadata(session, blobs, role, draft.body, now)
    return shown


def drop(session: Session, role: str, now: datetime) -> None:
    """Forget a draft."""
    session.delete(draft_of(session, role, lock=True))
    audit.record(session, "draft.drop", role, now)


def draft_of(session: Session, role: str, *, lock: bool = False) -> Draft:
    """Return the draft of a role, or refuse."""
    return errors.found(session.get(Draft, role, with_for_update=lock), f"draft of {role}")


def view(session: Session, blobs: Blobs, draft: Draft, now: datetime) -> dict[str, Any]:
    """Return what is known about a draft: who signed it, and how many must still."""
    try:
        reviewed = review_metadata(session, blobs, draft.role, draft.body, now)
        signed = _signatures(draft.role, reviewed)
    except errors.Refusal as refusal:
        # What it follows or who may sign it changed since it was staged.
        nobody = Signatures((), (), 0)
        document = Metadata[Any].from_bytes(draft.body)
        return _shown(draft, document, nobody) | {"refused": refusal.detail}
    return _shown(draft, reviewed.document, signed)


def _signatures(role: str, reviewed: Reviewed) -> Signatures:
    with refusals(role):
        return signatures_of(role, reviewed.document, reviewed.delegators)


def _shown(draft: Draft, document: Metadata[Any], signed: Signatures) -> dict[str, Any]:
    return draft.shown("role staged_by staged_at") | {
        "version": document.signed.version,
        "expires_at": document.signed.expires,
        "sha256": sha256(document.signed_bytes).hexdigest(),
        "signed_by": list(signed.given),
        "may_sign": list(signed.open),
        "missing": signed.missing,
        "refused": "",
    }
