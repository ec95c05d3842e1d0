"""What a release manager measured on the whole canary set, taken out of what devices report. Pure.

Which shard a device hears is luck. Where the maker of a release heard both models on all of them,
the luck is known: taken out of each pair, it leaves their mean as it is, with less noise
(a control variate).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.core.canary import UNIT, Gate


def known_change(
    gate: Gate, said: Mapping[str, Any], shards: Sequence[Mapping[str, Any]], shard: str
) -> int:
    """Return by how much more than all shards one is to change, in `UNIT`s.

    Over the shards these add up to nothing and none is above the clip, for which all shrink alike:
    so whatever was signed can make a change look smaller, and never turns it around.

    Args:
        gate: of the rollout.
        said: the evaluation of the release.
        shards: of the manifest that it is about.
        shard: the id of one of them.
    """
    rows = zip(said["old"], said["new"], shards, strict=True)
    each: dict[str, float] = {s["id"]: UNIT * (new - old) / s["ref_words"] for old, new, s in rows}
    mean, clip = sum(each.values()) / len(each), gate.clip * UNIT
    widest = max(abs(change - mean) for change in each.values())
    return round((each[shard] - mean) * min(1.0, clip / (widest or clip)))
