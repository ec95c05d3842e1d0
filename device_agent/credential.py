"""Who a device is to its server: the credential in force and the one before it.

The server renews a credential now and then, and takes both until the new one is first used. The
device keeps both for good, in one file that is replaced at once: no power cut loses them, and a
server that was set back to before the renewal still knows the other one.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from device_agent.disk import write_durably

CREDENTIAL = "credential.json"


@dataclass(frozen=True)
class Credential:
    """Who this device is to its server, as enrollment or the last renewal said."""

    device_id: str
    credential: str
    before: str = ""


def keep(folder: Path, credential: Credential) -> None:
    """Write a credential to its file, readable by its owner only, in one step."""
    write_durably(folder / CREDENTIAL, json.dumps(asdict(credential)).encode(), mode=0o600)
