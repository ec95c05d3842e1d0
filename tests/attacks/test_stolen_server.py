"""The API process and its database in the hands of a thief: what the publisher still refuses.

The cell of the table that `test_stolen_keys.py` leaves out; it takes the real server and publisher.
"""

from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from service.db.migrate import migrate
from service.db.rollout_tables import Rollout
from service.engine.approvals import plan_of
from tests.attacks.forgeries import MALLORY
from tests.service.publishing import forge_rollout, limit, ordered, pin, troubles
from tests.service.world import BASE, digest, opened, patient
from trust.approval import approval


@pytest.mark.attack("A24")
def test_a_thief_of_the_server_moves_no_more_of_a_fleet_than_its_publisher_was_set_up_for(
    tmp_path: Path,
) -> None:
    """He writes any row, a rollout with an approval too; he holds no approver's key."""
    database = f"sqlite:///{tmp_path / 'fleetdiff.db'}"
    migrate(database)
    chosen = patient(database=database, artifacts=str(tmp_path / "artifacts"))
    with opened(chosen, tmp_path) as made:
        world = pin(made.found(), tmp_path)
        limit(world, tmp_path, CryptoSigner.generate_ed25519(), approval_above_bp=1000)
        forge_rollout(world, world.fleet(20, digest(BASE)))
        with world.app.state.database.writer() as session:
            rollout = session.get_one(Rollout, "forged")
            signed = approval(plan_of(rollout)).sign(MALLORY)
            rollout.approvals = [{"by": "ben", "keyid": signed.keyid, "sig": signed.signature}]
        assert troubles(world.work()) == {("unapproved", "director")}
        assert ordered(world) == 2
