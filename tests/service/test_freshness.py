"""Expiry and the publisher's troubles: a state of health, metrics, and alerts on them."""

import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import update
from starlette.testclient import TestClient

from service.app import create_app
from service.db.tables import MetadataFile
from service.publishing.freshness import ALARM_DAYS, SILENT
from tests.real.installed import command
from tests.service.programs import eventually
from tests.service.publishing import FAMILY, newest, write
from tests.service.world import World, refused

ALERTS = Path(__file__).parents[2] / "deploy" / "alerts.yaml"


def ready(world: World) -> Any:
    reply = world.client.get("/readyz")
    assert reply.status_code == 200
    return reply.json()


def gauges(world: World) -> dict[str, float]:
    reply = world.call("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def ends_in(world: World, role: str, left: timedelta) -> None:
    row = {"role": role, "version": newest(world, role)}
    write(world, update(MetadataFile).filter_by(**row).values(expires_at=world.now + left))


def test_what_is_signed_and_awake_is_ready(pinned: World) -> None:
    assert ready(pinned) == {"status": "ready", "reasons": []}
    told = pinned.ok("GET", "/v1/health")["publisher"]
    assert (told["state"], told["reasons"]) == ("ok", [])


@pytest.mark.parametrize("role", ["root", "targets", FAMILY, "snapshot", "timestamp"])
def test_each_role_is_announced_at_its_own_alarm(pinned: World, role: str) -> None:
    alarm = timedelta(days=ALARM_DAYS[role.partition("-")[0]][0])
    ends_in(pinned, role, alarm)
    assert ready(pinned)["status"] == "ready"
    ends_in(pinned, role, alarm - timedelta(seconds=1))
    assert ready(pinned) == {"status": "degraded", "reasons": ["expires_soon"]}
    told = pinned.ok("GET", "/v1/health")["publisher"]
    assert told["state"] == "degraded" and told["reasons"][0]["role"] == role
    page = pinned.client.get("/status", auth=("me", pinned.token)).text
    assert f"{role} expires in" in page and page.count("must sign it again") == 1
    assert gauges(pinned)[f'fleetdiff_metadata_expiry_seconds{{role="{role}"}}'] == round(
        alarm.total_seconds() - 1
    )


def test_what_has_expired_is_said_first(pinned: World) -> None:
    ends_in(pinned, FAMILY, timedelta(days=1))
    ends_in(pinned, "root", timedelta(0))
    told = pinned.ok("GET", "/v1/health")["publisher"]
    assert told["state"] == "expired"
    assert [reason["reason"] for reason in told["reasons"]] == ["expired", "expires_soon"]
    assert ready(pinned)["reasons"] == ["expired", "expires_soon"]


def test_a_publisher_that_falls_silent_is_noticed(pinned: World) -> None:
    pinned.now += SILENT - timedelta(seconds=15)
    assert ready(pinned)["status"] == "ready"
    pinned.now += timedelta(seconds=30)
    assert ready(pinned)["reasons"] == ["publisher_silent"]
    assert gauges(pinned)["fleetdiff_publisher_round_age_seconds"] >= SILENT.total_seconds()
    pinned.work()
    assert ready(pinned)["status"] == "ready"
    assert gauges(pinned)["fleetdiff_publisher_round_age_seconds"] == 0


def test_a_trouble_of_the_publisher_is_a_state_of_health_until_it_ends(pinned: World) -> None:
    version = newest(pinned, FAMILY)
    with pinned.app.state.database.reader() as session:
        signed = session.get_one(MetadataFile, (FAMILY, version)).body
    row = update(MetadataFile).filter_by(role=FAMILY, version=version)
    write(pinned, row.values(body=signed.replace(b'"seq":2', b'"seq":8')))
    pinned.work()
    assert ready(pinned)["reasons"] == ["refused"]
    assert gauges(pinned)["fleetdiff_publisher_troubles"] == 1
    (reason,) = pinned.ok("GET", "/v1/health")["publisher"]["reasons"]
    assert reason["role"] == FAMILY and "E_SIG" in reason["detail"]
    write(pinned, row.values(body=signed))
    pinned.work()
    assert ready(pinned)["status"] == "ready"


def test_a_server_that_nothing_was_published_to_has_metrics_too(unpublished: World) -> None:
    assert gauges(unpublished) == {
        "fleetdiff_sums_disagree": 0,
        "fleetdiff_artifacts_undeleted": 0,
    }
    assert ready(unpublished)["reasons"] == ["publisher_silent"]


@pytest.mark.attack("A29")
def test_the_metrics_ask_for_a_token_unless_they_are_configured_open(pinned: World) -> None:
    refused(pinned.client.get("/metrics"), 401)
    refused(pinned.call("GET", "/metrics", token=pinned.token_with("devices:read")), 403)
    assert pinned.call("GET", "/metrics", token=pinned.token_with("telemetry:read")).is_success
    settings = pinned.app.state.settings.model_copy(update={"metrics": "open"})
    with TestClient(create_app(settings, ticking=False)) as client:
        assert "fleetdiff_metadata_expiry_seconds" in client.get("/metrics").text


@pytest.mark.attack("A28")
@pytest.mark.attack("T12")
def test_nothing_that_a_device_says_of_itself_becomes_a_label(pinned: World) -> None:
    before = set(gauges(pinned))
    for number in range(3):
        long = {f"{letter * 100}{number}": letter * 250 for letter in "ab"}
        phone = pinned.enroll(f"{'s' * 120}{number}", hardware=f"h{number}", attributes=long)
        phone.say("note", reason="r" * 60, detail="\n# TYPE x counter\nx 1" * 20)
        phone.poll()
        for junk in ({"k" * 200: 1}, {"runtime": "r" * 5000}, {"scorer": f"wer/{number}"}):
            refused(phone.request("POST", "/canary-reports", json=junk), 422)
    refusals = {'fleetdiff_canary_reports_total{outcome="invalid-request"}'}
    assert set(gauges(pinned)) - before == refusals


def test_a_store_that_hangs_holds_one_thread_however_many_ask_without_a_token(
    pinned_sqlite: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty questions that need no credential would leave no thread to a poll."""
    world, ends, asked = pinned_sqlite, threading.Event(), []

    def hang() -> None:
        asked.append(1)
        ends.wait(10)

    monkeypatch.setattr(world.app.state.blobs, "ready", hang)
    with ThreadPoolExecutor(1) as one:
        first = one.submit(world.client.get, "/healthz")
        eventually(lambda: asked, "the store is asked")
        replies = [world.client.get(path) for path in ("/healthz", "/readyz") * 3]
        ends.set()
        assert {reply.status_code for reply in [*replies, first.result()]} == {200}
    assert len(asked) == 1
    monkeypatch.setattr(world.app.state.blobs, "ready", lambda: Path("/nowhere/x").read_bytes())
    assert [world.client.get(path).status_code for path in ("/healthz", "/readyz")] == [500] * 2


def test_whoever_asks_if_the_server_is_ready_learns_no_name(pinned: World) -> None:
    ends_in(pinned, FAMILY, timedelta(0))
    assert FAMILY.removeprefix("family-") not in pinned.client.get("/readyz").text


def test_the_alerts_are_at_the_days_of_the_code_and_over_metrics_that_exist(pinned: World) -> None:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    days: dict[str, list[int]] = {role: [] for role in ALARM_DAYS}
    for rule in rules:
        if found := re.fullmatch(r'.*role=~?"(.*)"} < (\d+) \* 86400', rule):
            for role in found[1].split("|"):
                days[role.partition("-")[0]].append(int(found[2]))
    assert {role: tuple(found) for role, found in days.items()} == ALARM_DAYS
    assert f"> {SILENT.seconds // 60} * 60" in " ".join(rules)
    refused(pinned.client.post("/device/v1/canary-reports"), 401)  # a counter begins with one
    rollout = pinned.start_rollout("r2", "all")
    assert not any("paused" in name for name in gauges(pinned))
    pinned.ok("POST", f"/v1/rollouts/{rollout}/pause")
    assert gauges(pinned)['fleetdiff_rollouts_paused{reason="operator"}'] == 1
    named = {name for rule in rules for name in re.findall(r"fleetdiff_\w+", rule)}
    assert named == {name.partition("{")[0] for name in gauges(pinned)}


@pytest.mark.parametrize(
    ("reason", "minutes", "rings"),
    [
        ("budget", 4, []),
        ("budget", 6, ["FleetdiffRolloutPaused"]),
        ("operator", 23 * 60, []),
        ("operator", 25 * 60, ["FleetdiffRolloutPausedForADay"]),
        ("budget", 25 * 60, ["FleetdiffRolloutPaused", "FleetdiffRolloutPausedForADay"]),
    ],
)
def test_a_paused_rollout_rings(
    tmp_path: Path, reason: str, minutes: int, rings: list[str]
) -> None:
    test: dict[str, Any] = {"interval": "1m", "promql_expr_test": []}
    series = f'fleetdiff_rollouts_paused{{reason="{reason}"}}'
    test["input_series"] = [{"series": series, "values": "1x1600"}]
    for name in ("FleetdiffRolloutPaused", "FleetdiffRolloutPausedForADay"):
        firing = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
        found = [{"labels": "{}", "value": 1}] if name in rings else []
        asked = {"expr": firing, "eval_time": f"{minutes}m", "exp_samples": found}
        test["promql_expr_test"].append(asked)
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}))
    promtool = command("prometheus", "promtool")
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_alerts_and_the_metrics(pinned_sqlite: World) -> None:
    promtool = command("prometheus", "promtool")
    rules = [promtool, "check", "rules", str(ALERTS)]
    assert (
        "15 rules found" in subprocess.run(rules, capture_output=True, text=True, check=True).stdout
    )
    text = pinned_sqlite.call("GET", "/metrics").text
    check = [promtool, "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
