"""Requests made up from the OpenAPI documents: what comes back is documented, and never a 5xx."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.api import webhooks
from service.api.contract import documents
from service.db.migrate import migrate
from tests.service.world import BASE, MODEL, World, digest, opened, patient

EXAMPLES = 6  # of each kind, for each operation
CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
FIXED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database = f"sqlite:///{tmp_path / 'fleetdiff.db'}"
    migrate(database)
    chosen = patient(database=database, artifacts=str(tmp_path / "artifacts"))
    with opened(chosen, tmp_path) as world:
        yield world.found()


def try_operation(
    world: World, token: str, operation: Any, mode: GenerationMode, **known: Any
) -> int:
    """Send made-up requests for one operation; returns how many."""
    sent = 0

    @FIXED
    @given(case=operation.as_strategy(generation_mode=mode, **known))
    def run(case: Any) -> None:
        nonlocal sent
        asked = case.as_transport_kwargs(base_url="http://testserver")
        headers = dict(asked["headers"]) | {"Authorization": f"Bearer {token}"}
        body = {"content": asked["data"]} if asked.get("data") is not None else {}
        if "json" in asked:
            body = {"json": asked["json"]}
        reply = world.client.request(
            asked["method"],
            asked["url"],
            params=asked.get("params"),
            headers=headers,
            follow_redirects=False,
            **body,
        )
        sent += 1
        case.validate_response(reply, checks=CHECKS)

    with suppress(Unsatisfiable):  # nothing that its schema would call wrong
        run()
    return sent


@pytest.mark.parametrize("name", ["admin.json", "device.json"])
def test_no_made_up_request_gets_an_answer_that_is_not_documented(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "STREAM_LOOKS", 0)  # a stream would last an hour
    rollout = world.ready()
    phone = world.enroll("serial-1", runs=digest(BASE))
    phone.offered()
    token = world.token if name == "admin.json" else phone.credential
    spare = world.enroll("serial-2").id
    told = {"webhooks_to": ("https://hooks.example/",), "webhooks_key": SecretStr("k" * 32)}
    world.app.state.settings = world.app.state.settings.model_copy(update=told)
    hook = world.ok("POST", "/v1/webhooks", json={"url": "https://hooks.example/"})
    real = {
        "model": MODEL,
        "rollout_id": rollout,
        "device_id": spare,
        "name": "all",
        "sha256": digest(BASE),
        "role": f"family-{MODEL}",
        "keyid": digest(BASE),
        "filename": "timestamp.json",
        "webhook_id": hook["id"],
        "source": "r1",
        "target": "r2",
        "release": "r2",
        "token_id": world.token_with("devices:read")[3:19],
    }
    schema = schemathesis.openapi.from_dict(documents()[name])
    sent: dict[str, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        names = [parameter.name for parameter in operation.path_parameters]
        known = {"path_parameters": {n: real[n] for n in names}} if names else {}
        tries = [(GenerationMode.NEGATIVE, {}), (GenerationMode.POSITIVE, {})]
        if names and not operation.path.endswith("/wait"):
            tries.append((GenerationMode.POSITIVE, known))
        sent[operation.label] = sum(
            try_operation(world, token, operation, mode, **more) for mode, more in tries
        )
    assert sent and all(sent.values()), sent
