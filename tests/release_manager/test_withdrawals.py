"""Taking a release back, letting none start with it, signing it all again."""

import pytest

from tests.release_manager.town import Town, what


def test_a_withdrawal_opens_the_way_back_to_its_fallback(both: Town) -> None:
    done = both.publish("release", "withdraw", "asr", "r2", "--fallback", "r1")
    assert set(what(done)) - {"changed expires"} == {
        "changed target asr/r1.model custom rollback_from",
        "changed target asr/r2.model custom status",
        "changed version",
    }
    releases = both.family().releases
    assert (releases["r2"].status, releases["r1"].rollback_from) == ("withdrawn", ("r2",))
    again = both.anne.json("release", "withdraw", "asr", "r2", "--fallback", "r1")
    assert (again["published"], "staged" in again) == (False, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["withdraw", "asr", "r1", "--fallback", "r2"], "not older"),
        (["withdraw", "asr", "r1", "--fallback", "r1"], "not older"),
        (["withdraw", "asr", "r9"], "no release r9"),
        (["withdraw", "asr", "r2", "--fallback", "r9"], "no release r9"),
        (["retire", "asr", "r9"], "no release r9"),
        (["refresh", "tts"], "no model tts"),
    ],
)
def test_a_withdrawal_that_makes_no_sense_is_not_staged(
    both: Town, words: list[str], said: str
) -> None:
    assert both.anne.run("release", *words) == 1
    assert said in both.anne.err
    assert both.drafts() == []


def test_a_retired_release_stays_but_a_withdrawn_one_is_not_retired(both: Town) -> None:
    both.publish("release", "retire", "asr", "r1")
    assert both.family().releases["r1"].status == "retired"
    both.publish("release", "withdraw", "asr", "r1")
    assert both.anne.run("release", "retire", "asr", "r1") == 1
    assert "stays withdrawn" in both.anne.err


def test_a_family_is_signed_again_as_it_is(both: Town) -> None:
    done = both.publish("release", "refresh", "asr")
    assert set(what(done)) <= {"changed expires", "changed version"} and done["version"] == 3
