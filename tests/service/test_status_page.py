import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from service.app import create_app
from service.core import access
from service.core.rollout_limits import RolloutLimits
from service.dashboard import pages
from service.db.rollout_tables import Rollout
from service.db.session import Database
from service.engine import approvals, cohorts, rollouts
from service.settings import Settings
from tests.service import status_story
from tests.service.status_story import NOW

EVIL = '<script>alert("x")</script>\r\nSet-Cookie: a=b'


def serve(folder: Path, status_page: str = "open") -> TestClient:
    settings = Settings.from_environ(
        {},
        database=f"sqlite:///{folder / 'fleet.db'}",
        artifacts=str(folder / "artifacts"),
        status_page=status_page,
    )
    app = create_app(settings, ticking=False, durable=False)
    app.state.clock = lambda: NOW
    status_story.create_tables(app.state.database)
    return TestClient(app)


def database(client: TestClient) -> Database:
    found = client.app.state.database  # type: ignore[attr-defined]
    assert isinstance(found, Database)
    return found


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serve(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serve(tmp_path_factory.mktemp("told")) as made:
        with database(made).writer() as session:
            status_story.fill(session)
        yield made


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[TestClient]:
    with serve(tmp_path, "token") as made:
        yield made


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_an_empty_server_tells_a_newcomer_the_next_commands(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "fleetdiff init --dev" in page.text
    assert "fleetdiff model create asr-en-edge" in page.text
    assert "Not published yet" in page.text


@pytest.mark.parametrize(
    ("known", "command"),
    [
        ("model", "fleetdiff release publish asr-en-edge r1 r1.safetensors"),
        ("release", "fleetdiff device token --model asr-en-edge"),
        ("device", "fleetdiff rollout start asr-en-edge r2 --cohort everyone"),
    ],
)
def test_each_first_step_leads_to_the_next(client: TestClient, known: str, command: str) -> None:
    with database(client).writer() as session:
        status_story.add_model(session)
        if known != "model":
            release = status_story.add_release(session, "r1", 1)
        if known == "device":
            status_story.add_devices(session, release, 1)
    assert command in client.get("/status").text


def test_the_story_of_a_fleet_is_told(told: TestClient) -> None:
    text = text_of(told.get("/").text)
    for sentence in (
        "asr-en-edge 400 devices",
        "Waiting: 32 devices of class h1 reported; a verdict needs about",
        "The canary halted it: word error rate +3.0 points (clipped) on 43 devices.",
        "41 of 43 devices are back on the release they came from. 2 devices on the way back.",
        "Complete: every device of the cohort has an outcome.",
        "9 under way",
        "between +1.42 and +3.00, mean of 43, each clipped at ±3",
        "Signed metadata is in order",
    ):
        assert sentence in text
    assert "fleetdiff init" not in text


def test_the_headline_counts_what_the_rollouts_say(told: TestClient) -> None:
    tile = '<h2>(.*?)</h2><p class="value">(.*?)</p>'
    tiles = dict(re.findall(tile, told.get("/status").text))
    assert tiles["Devices"] == "400"
    assert tiles["On the newest good release"] == "24.8 %"
    assert tiles["Live rollouts"] == "1"
    assert tiles["Bytes saved"] == "96.7 %"


def test_the_newest_rollout_comes_first_and_only_old_ones_are_folded(told: TestClient) -> None:
    cards = told.get("/status").text.split("<article")[1:]
    assert [re.findall(r"</svg>(\w+)</span>", card)[0] for card in cards] == [
        "running",
        "halted",
        "completed",
    ]
    assert ["<details" in card and " open>" in card for card in cards] == [True, True, False]


def test_every_chart_is_well_formed_and_named(told: TestClient) -> None:
    found = re.findall(r"<svg.*?</svg>", told.get("/status").text, re.DOTALL)
    assert len(found) > 40
    for svg in found:
        chart = ET.fromstring(svg)
        assert chart.find("title") is not None or chart.get("aria-hidden") == "true"


def one_rollout(session: Session, name: str = "n") -> Rollout:
    """Make a draft; everything that can be named is named so."""
    status_story.add_model(session, name)
    release = status_story.add_release(session, name, 1, name)
    status_story.add_devices(session, release, 1)
    cohort = cohorts.create_cohort(session, "c", name, None, {"hardware": ["h0"]}, NOW)
    cohort.name = name
    session.flush()
    return rollouts.create_rollout(
        session,
        model=name,
        release=name,
        cohort=name,
        stages=status_story.STAGES,
        gate={},
        on_halt="keep",
        actor="mina",
        now=NOW,
    )


@pytest.mark.attack("A22")
def test_names_cannot_become_markup_or_headers(client: TestClient) -> None:
    with database(client).writer() as session:
        made = one_rollout(session, EVIL)
        rollouts.start(session, made.id, EVIL, NOW)
        rollouts.halt(session, made.id, EVIL, EVIL, NOW)
    for path in ("/", "/status"):
        answer = client.get(path)
        assert "<script>alert" not in answer.text
        assert answer.text.count("&lt;script&gt;alert") > 8
        assert "set-cookie" not in answer.headers


def test_nothing_comes_from_elsewhere_and_nothing_is_remembered(told: TestClient) -> None:
    page = told.get("/")
    without_comments = re.sub(r"(?m)^\s*//.*$", "", page.text)
    assert "//" not in without_comments, "an address of elsewhere"
    targets = re.findall(r"\b(?:src|href|action|data|url)\s*[=(]\s*['\"]?([^'\"\s)]+)", page.text)
    assert [t for t in targets if not t.startswith("data:image/svg+xml,")] == []
    assert re.findall(r"fetch\(([^,]+),", page.text) == ['"status"']
    assert "set-cookie" not in page.headers


def test_the_policy_allows_just_this_style_and_this_script(told: TestClient) -> None:
    page = told.get("/")
    policy = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert not re.search(r"\s(style|on\w+)=", page.text), "the policy would refuse it"
    for name, value in pages.HEADERS.items():
        assert page.headers[name] == told.get("/status").headers[name] == value


def test_an_unchanged_fragment_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/status")
    etag = first.headers["etag"]
    again = client.get("/status", headers={"If-None-Match": f'"other", W/{etag}'})
    assert (again.status_code, again.content) == (304, b"")
    with database(client).writer() as session:
        status_story.add_model(session)
    changed = client.get("/status", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_the_page_holds_the_fragment_and_its_tag(told: TestClient) -> None:
    fragment, page = told.get("/status"), told.get("/").text
    assert fragment.text in page
    assert fragment.headers["etag"].strip('"') in page


def basic(password: str, user: str = "anyone") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def token_with(client: TestClient, scope: str) -> str:
    with database(client).writer() as session:
        return access.create_token(session, "t", [scope], timedelta(days=1), NOW)[1]


@pytest.mark.parametrize("path", ["/", "/status"])
def test_a_token_with_the_scope_opens_the_page(guarded: TestClient, path: str) -> None:
    token = token_with(guarded, "telemetry:read")
    for user in ("anyone", ""):
        assert guarded.get(path, headers=basic(token, user)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/status"])
def test_whoever_has_no_good_token_is_asked_for_one(guarded: TestClient, path: str) -> None:
    good = token_with(guarded, "telemetry:read")
    refused: list[dict[str, str]] = [
        {},
        basic(""),
        basic("fd_0000"),
        basic(good[:-1] + ("A" if good[-1] != "A" else "B")),
        basic(token_with(guarded, "devices:read")),
        {"Authorization": f"Bearer {good}"},
        {"Authorization": "Basic"},
        {"Authorization": "Basic ===="},
        {"Authorization": "Basic /w=="},
    ]
    for headers in refused:
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == 401, headers
        assert answer.headers["www-authenticate"].startswith('Basic realm="fleetdiff"')
        assert "telemetry:read" in answer.json()["detail"]
        assert good not in answer.text and "Devices" not in answer.text


def test_an_expired_token_is_refused(guarded: TestClient) -> None:
    headers = basic(token_with(guarded, "telemetry:read"))
    guarded.app.state.clock = lambda: NOW + timedelta(days=2)  # type: ignore[attr-defined]
    assert guarded.get("/", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("hours", "tone"), [(48, "ok"), (24, "ok"), (23, "wait"), (1, "wait"), (0, "halt")]
)
def test_expiry_is_announced_a_day_ahead(client: TestClient, hours: int, tone: str) -> None:
    with database(client).writer() as session:
        status_story.add_metadata(session, NOW + timedelta(hours=hours))
    assert f'<p id="publisher" class="publisher {tone}">' in client.get("/status").text


def test_a_rollout_that_waits_for_approval_says_for_whose(client: TestClient) -> None:
    bounds = {"first_share_bp": 10_000, "step_share_bp": 10_000, "soak_s": 0}
    limits = RolloutLimits(**bounds, approval_above_bp=0)
    with database(client).writer() as session:
        made = one_rollout(session)
        approvals.start(session, made.id, "mina", NOW, limits)
    shown = text_of(client.get("/status").text)
    assert "awaiting approval" in shown
    assert "Waiting: 1 to approve it, others than who made it" in shown and "mina asks" in shown
