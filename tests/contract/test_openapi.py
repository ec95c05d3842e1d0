"""The OpenAPI documents in `openapi/` are those of the code."""

import json
from pathlib import Path

import pytest

from service.api.contract import AUDIENCES, documents

FOLDER = Path(__file__).parents[2] / "openapi"


@pytest.mark.parametrize("name", AUDIENCES)
def test_the_document_is_current(name: str) -> None:
    text = json.dumps(documents()[name], indent=2, sort_keys=True) + "\n"
    assert (FOLDER / name).read_text() == text, "run `make openapi` and commit the result"


def test_the_two_audiences_share_no_route() -> None:
    admin, device = (set(documents()[name]["paths"]) for name in ("admin.json", "device.json"))
    assert not admin & device
    assert all(path.startswith("/device/v1/") for path in device)
