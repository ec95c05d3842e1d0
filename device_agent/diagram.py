"""The diagram of the cycle, read from the signatures in `states`: it cannot be out of date.

python -m device_agent.diagram        prints the block of docs/architecture.md
"""

import sys
from typing import get_args, get_type_hints

from device_agent import states

BEGIN = "<!-- states:begin -->"
END = "<!-- states:end -->"


def arrows() -> list[tuple[str, str, str]]:
    """Return every arrow as (from, function, to), in the order of the cycle."""
    found = []
    for name in "check download apply evaluate switch commit roll_back report".split():
        hints = get_type_hints(getattr(states, name))
        source, targets = hints["state"], hints["return"]
        for target in get_args(targets) or (targets,):
            found.append((source.__name__, name, target.__name__))
    return found


def mermaid() -> str:
    """Return the Mermaid block, with the markers that the documentation keeps around it."""
    lines = [f"    {source} --> {target}: {name}" for source, name, target in arrows()]
    body = ["```mermaid", "stateDiagram-v2", "    [*] --> Idle", *lines, "```"]
    return "\n".join([BEGIN, *body, END])


if __name__ == "__main__":
    sys.stdout.write(mermaid() + "\n")
