"""The diagram of the cycle, read from the signatures in `states`: it cannot be out of date.

python -m device_agent.diagram        prints the block of docs/architecture.md
"""

import sys
from typing import get_args, get_type_hints

from device_agent import states

BEGIN = "<!-- states:begin -->"
END = "<!-- states:end -->"


def arrows() -> list[tuple[str, str, str]]:
    """Return every arrow as (from, method, to), in the order of the cycle."""
    return [
        (state.__name__, method, target.__name__)
        for state in get_args(states.State)
        for method in ("step", "refused")
        if hasattr(state, method)
        for returned in [get_type_hints(getattr(state, method))["return"]]
        for target in get_args(returned) or (returned,)
    ]


def mermaid() -> str:
    """Return the Mermaid block, with the markers that the documentation keeps around it."""
    label = {"step": "", "refused": ": refused"}
    lines = [f"    {source} --> {to}{label[method]}" for source, method, to in arrows()]
    body = ["```mermaid", "stateDiagram-v2", "    [*] --> Idle", *lines, "```"]
    return "\n".join([BEGIN, *body, END])


if __name__ == "__main__":
    sys.stdout.write(mermaid() + "\n")
