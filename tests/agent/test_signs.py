"""What a trial tells besides word errors: transcripts that differ, and times of one load."""

import json
from typing import Any

import pytest

from device_agent.canary import without
from tests.agent.conftest import Lab
from tests.agent.server_double import digest
from tests.agent.test_canary import SHARD
from tests.agent.test_trial import Heard


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


@pytest.mark.parametrize("old_first", [True, False])
def test_times_are_of_one_load_only_if_both_were_heard_now(heard: Heard, old_first: bool) -> None:
    assert heard.trial("r1", "r2", old_first=old_first).together is True
    assert heard.trial("r2", "r3", old_first=old_first).together is False
    heard.runtime = "x/2"
    assert heard.trial("r3", "r4", old_first=old_first).together is True


@pytest.mark.parametrize("old_first", [True, False])
def test_a_device_that_is_drawn_hears_the_old_model_afresh(heard: Heard, old_first: bool) -> None:
    heard.trial("r1", "r2")
    heard.known = without(heard.known, digest(b"r2"), SHARD, 100)
    trial = heard.trial("r2", "r3", old_first=old_first)
    assert (trial.together, trial.old_first) == (True, old_first)
    assert heard.runs[2:] == (["r2", "r3"] if old_first else ["r3", "r2"])


def test_a_device_without_the_time_for_both_hears_only_the_new_one(heard: Heard) -> None:
    heard.took_ms = 25_000  # a quarter of what a trial may take
    heard.trial("r1", "r2")
    assert without(heard.known, digest(b"r2"), SHARD, 100) == heard.known
    assert heard.trial("r2", "r3").together is False
    assert heard.runs == ["r1", "r2", "r3"]


def marked(lab: Lab, old: list[str], new: list[str], errors: int = 25) -> dict[str, Any]:
    """Let the engine tell what it hears of each utterance, and return the report."""
    engine = lab.folder / "engine"
    texts = {20: old, errors: new}
    cases = " ".join(f"{n}) heard='{json.dumps(marks)}';;" for n, marks in texts.items())
    text = engine.read_text().replace("set=", f"case $errors in {cases} esac\nset=", 1)
    told = '"milliseconds":1,"heard":%s}\' "$set" "$heard"'
    engine.write_text(text.replace('"milliseconds":1}\' "$set"', told))
    lab.server.publish("r3", errors=errors)
    lab.server.offer("r3")
    assert lab.once().kind == "committed"
    (report,) = lab.server.reports
    return dict(report)


def test_a_report_counts_transcripts_that_differ_and_those_without_a_word(lab: Lab) -> None:
    old = ["", "", *["aa"] * 48]
    new = ["", "", "", "", "bb", *["aa"] * 45]
    report = marked(lab, old, new)
    found = [report[name] for name in ("differ_utts", "old_empty", "new_empty", "together")]
    assert found == [3, 2, 4, True]
    assert not {"heard", "transcripts"} & report.keys(), "no transcript leaves a device"


@pytest.mark.parametrize(("in_so_many", "together"), [(1, True), (1 << 20, False)])
def test_the_draw_says_who_hears_the_old_model_afresh(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, in_so_many: int, together: bool
) -> None:
    lab.server.publish("r3", errors=20)
    lab.server.offer("r2")
    lab.once()
    monkeypatch.setattr("device_agent.device.AFRESH", in_so_many)
    lab.server.offer("r3")
    lab.once()
    assert [report["together"] for report in lab.server.reports] == [True, together]


def test_an_engine_that_tells_of_no_transcripts_leaves_them_out(lab: Lab) -> None:
    lab.server.offer("r2")
    lab.once()
    (report,) = lab.server.reports
    assert not {"differ_utts", "old_empty", "new_empty"} & report.keys()
