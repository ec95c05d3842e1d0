"""What became of deployments, added up from their rows: what each stage must say at any time."""

from collections import defaultdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.rollout_tables import COUNTED, OPEN, Deployment, Stage
from service.db.session import Database

NAMES = ("in_flight", *COUNTED["forward"], *COUNTED["back"])
Tally = dict[tuple[str, int], dict[str, int]]


def kept(session: Session) -> Tally:
    """Return rollout, stage -> what the stage says."""
    stages = session.scalars(select(Stage).execution_options(populate_existing=True))
    return {(one.rollout_id, one.number): one.shown(" ".join(NAMES)) for one in stages}


def counted(session: Session) -> Tally:
    """Return the same, from the deployments."""
    found = {key: dict.fromkeys(NAMES, 0) for key in kept(session)}
    way, state = Deployment.direction, Deployment.state
    for rollout, stage, direction, outcome in session.execute(
        select(Deployment.rollout_id, Deployment.stage, way, state)
    ):
        if direction == "forward" and outcome in OPEN:
            found[rollout, stage]["in_flight"] += 1
        elif outcome in COUNTED[direction]:
            found[rollout, stage][outcome] += 1
    return found


def sent(session: Session) -> tuple[dict[str, int], dict[str, int]]:
    """Return rollout -> bytes, as its stages say, and as its deployments do."""
    both = []
    for table in (Stage, Deployment):
        found: dict[str, int] = defaultdict(int)
        for rollout, size in session.execute(select(table.rollout_id, table.bytes_sent)):
            found[rollout] += size
        both.append({rollout: size for rollout, size in found.items() if size})
    return both[0], both[1]


def check(database: Database) -> None:
    """Whatever a test did, stages say what became of their deployments."""
    with database.reader() as session:
        assert kept(session) == counted(session)
        stages, deployments = sent(session)
        assert stages == deployments


def recount(session: Session) -> None:
    """Let the stages say what the deployments do, for who makes those by hand."""
    session.flush()
    for key, counts in counted(session).items():
        stage = session.get_one(Stage, key)
        for name, number in counts.items():
            setattr(stage, name, number)
        ours = session.query(Deployment).filter_by(rollout_id=key[0], stage=key[1])
        stage.bytes_sent = sum(one.bytes_sent for one in ours)
    session.flush()
