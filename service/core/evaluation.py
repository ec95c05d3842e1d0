"""What a release manager measured on the whole canary set, taken out of what devices report. Pure.

Which shard a device hears is luck. Where the maker of a release heard both models on all of them,
the luck is known: taken out of each pair, it leaves their mean as it is, with less noise
(a control variate).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.core.canary import UNIT, Gate


def known_changes(
    gate: Gate, said: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Return by how much more than all shards each is to change, by its id, in `UNIT`s.

    They add up to nothing and none is above the clip, for which all shrink alike: so whatever was
    signed can make a change look smaller, and never turns it around.

    Args:
        gate: of the rollout.
        said: the evaluation of the release.
        shards: of the manifest that it is about.
    """
    rows = zip(said["old"], said["new"], shards, strict=True)
    each = {s["id"]: UNIT * (new - old) / s["ref_words"] for old, new, s in rows}
    mean, clip = sum(each.values()) / len(each), gate.clip * UNIT
    widest = max(abs(change - mean) for change in each.values())
    kept = min(1.0, clip / (widest or clip))
    return {shard: round((change - mean) * kept) for shard, change in each.items()}
