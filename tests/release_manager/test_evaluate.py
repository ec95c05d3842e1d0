"""A release is compared with its base on the whole canary set before it is signed."""

import json
import random
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from release_manager.evaluate import interval
from tests.release_manager.desk import Desk, family_of
from tests.release_manager.test_canary_sets import canary_set

WORDS, UTTERANCES = 3 * 90, 3 * 20
ENGINE = """
import json, sys
from hashlib import sha256
from pathlib import Path
model, folder = Path(sys.argv[2]), Path(sys.argv[4])
told = json.loads(model.read_text())
body = (folder / "canary.json").read_bytes()
shards = [s for s in json.loads(body)["shards"] if (folder / s["file"]).exists()]
assert len(shards) == 1, shards
each = told["errors"][int(shards[0]["id"])]
report = {"canary_set": sha256(body).hexdigest(), "utterances": 20, "ref_words": 90}
report |= {"sub": sum(each), "del": 0, "ins": 0, "by_utterance": each}
print(json.dumps(report | told.get("lies", {})))
sys.exit(told.get("exit", 0))
"""


def model(file: Path, *errors: int, **more: Any) -> Path:
    """A model that makes so many errors in each utterance of each shard."""
    each = [[count] * 20 for count in errors]
    file.write_text(json.dumps({"errors": each, "name": file.name, **more}))
    return file


class Bench:
    """A release r1 with a canary set, and a recogniser of models that are lists of errors."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk, self.folder = desk, folder
        self.set = canary_set(folder / "set")
        self.engine = folder / "engine.py"
        self.engine.write_text(ENGINE)
        self.old = model(folder / "r1", 1, 1, 2)
        self.out = folder / "r2.evaluation"
        assert desk.run("release", "publish", "asr", "r1", self.old) == 0, desk.err
        assert desk.run("canary", "publish", "asr", self.set) == 0, desk.err

    def words(self, new: Path, *more: Any) -> list[Any]:
        command = f"{sys.executable} {self.engine}"
        words = ["release", "evaluate", self.old, new, self.set]
        return [*words, "--recogniser", command, "-o", self.out, *more]

    def evaluate(self, new: Path, *more: Any) -> Any:
        return self.desk.json(*self.words(new, *more))

    def publish(self, new: Path, *more: Any, name: str = "r2") -> int:
        return self.desk.run("release", "publish", "asr", name, new, *more)


@pytest.fixture
def bench(ready: Desk, tmp_path: Path) -> Bench:
    return Bench(ready, tmp_path)


def test_both_models_are_heard_on_every_shard(bench: Bench) -> None:
    told = bench.evaluate(model(bench.folder / "r2", 1, 1, 1))
    assert (told["shards"], told["ref_words"]) == (3, WORDS)
    assert (told["old_wer_bp"], told["new_wer_bp"]) == (round(1e4 * 80 / WORDS), 2222)
    assert told["verdict"] == "within the margin"
    written = json.loads(bench.out.read_text())
    assert (written["old"], written["new"]) == ([20, 20, 40], [20, 20, 20])
    assert written["base"] == sha256(bench.old.read_bytes()).hexdigest()


def test_what_was_measured_is_signed_with_the_release(
    bench: Bench,
) -> None:
    new = model(bench.folder / "r2", 1, 1, 1)
    bench.evaluate(new)
    assert bench.publish(new, "--evaluation", bench.out) == 0, bench.desk.err
    found = family_of(bench.desk).releases["r2"].evaluation
    assert found is not None
    assert (found.old, found.new, found.worse_accepted) == ((20, 20, 40), (20, 20, 20), False)
    assert found.canary_set == sha256((bench.set / "canary.json").read_bytes()).hexdigest()
    # Again, without it: nothing is forgotten, and nothing new is signed.
    assert not bench.desk.json("release", "publish", "asr", "r2", new)["published"]


def test_a_release_that_is_worse_is_refused_unless_somebody_says_so(bench: Bench) -> None:
    new = model(bench.folder / "r2", 2, 2, 2)
    assert bench.evaluate(new)["verdict"] == "worse"
    assert bench.publish(new, "--evaluation", bench.out) == 1
    assert "worse than the margin of 2 % of the old rate" in bench.desk.err
    assert "r2" not in family_of(bench.desk).releases
    assert bench.publish(new, "--evaluation", bench.out, "--accept-worse") == 0
    found = family_of(bench.desk).releases["r2"].evaluation
    assert found is not None and found.worse_accepted


def test_nothing_is_accepted_that_was_not_worse(bench: Bench) -> None:
    new = model(bench.folder / "r2", 1, 1, 2)
    bench.evaluate(new)
    assert bench.publish(new, "--evaluation", bench.out, "--accept-worse") == 0
    found = family_of(bench.desk).releases["r2"].evaluation
    assert found is not None and not found.worse_accepted


def test_a_wider_margin_lets_it_pass(bench: Bench) -> None:
    new = model(bench.folder / "r2", 2, 2, 2)
    assert bench.evaluate(new, "--margin", "90%")["verdict"] == "within the margin"
    assert bench.publish(new, "--evaluation", bench.out, "--margin", "90%") == 0


def test_a_set_that_is_too_small_says_that_it_cannot_tell(bench: Bench) -> None:
    new = bench.folder / "r2"
    dice = random.Random(1)
    each = [[n + dice.choice((-1, 0, 1)) for _ in range(20)] for n in (1, 1, 2)]
    new.write_text(json.dumps({"errors": each}))
    told = bench.evaluate(new)
    assert told["verdict"] == "cannot tell"
    assert told["resolution_bp"] > told["old_wer_bp"] * 0.02
    assert bench.publish(new, "--evaluation", bench.out) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"exit": 3}, "the recogniser ended with 3"),
        ({"lies": {"by_utterance": None}}, "no counts by utterance"),
        ({"lies": {"by_utterance": [1] * 19}}, "something else"),
        ({"lies": {"by_utterance": [-1] + [1] * 19, "sub": 18}}, "something else"),
        ({"lies": {"sub": 21}}, "something else"),
        ({"lies": {"sub": "20"}}, "no counts by utterance"),
        ({"lies": {"utterances": 21}}, "something else"),
        ({"lies": {"ref_words": 91}}, "something else"),
        ({"lies": {"canary_set": "a" * 64}}, "something else"),
    ],
)
def test_a_recogniser_that_tells_no_truth_about_its_shard_is_refused(
    bench: Bench, more: dict[str, Any], says: str
) -> None:
    new = model(bench.folder / "r2", 1, 1, 1, **more)
    assert bench.desk.run(*bench.words(new)) == 1
    assert says in bench.desk.err
    assert not bench.out.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"target": "a" * 64},
        {"canary_set": "a" * 64},
        {"base": "a" * 64},
        {"old": [20, 20]},
        {"old": [20, 20, -1]},
        {"old": [20, 20, 1.5]},
        {"old": []},
        {"new": [1] * 1001},
        {"ref_words": 0},
        {"ref_words": None},
        {"lower_ppm": None},
        {"resolution_ppm": -1},
    ],
)
def test_an_evaluation_of_something_else_is_not_signed(
    bench: Bench, change: dict[str, Any]
) -> None:
    new = model(bench.folder / "r2", 1, 1, 1)
    bench.evaluate(new)
    bench.out.write_text(json.dumps(json.loads(bench.out.read_text()) | change))
    assert bench.publish(new, "--evaluation", bench.out) == 1
    assert "r2" not in family_of(bench.desk).releases


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "\x00"])
def test_rubbish_is_no_evaluation(bench: Bench, text: str) -> None:
    new = model(bench.folder / "r2", 1, 1, 1)
    bench.out.write_text(text)
    assert bench.publish(new, "--evaluation", bench.out) == 1
    assert "is no evaluation" in bench.desk.err


def test_only_the_latest_evaluations_are_kept(bench: Bench, tmp_path: Path) -> None:
    for number in range(2, 12):
        new = model(tmp_path / f"r{number}", 1, 1, 1)
        bench.evaluate(new)
        assert bench.publish(new, "--evaluation", bench.out, name=f"r{number}") == 0
    releases = family_of(bench.desk).releases
    kept = {name for name, found in releases.items() if found.evaluation}
    assert kept == {f"r{number}" for number in range(4, 12)}


def test_the_interval_covers_what_it_says() -> None:
    """Utterances of many words each: errors come in blocks, and the interval knows that."""
    dice, missed = random.Random(7), 0
    for number in range(300):
        changes = dice.choices((-4, 0, 0, 0, 4), k=400)
        found = interval(changes, str(number))
        missed += not found.lower <= 0 <= found.upper
    assert missed <= 30


def test_the_interval_is_that_of_drawing_utterances_again() -> None:
    changes = [0] * 300 + [1] * 60 + [-1] * 40 + [3] * 10
    dice = random.Random(3)
    sums = sorted(sum(dice.choices(changes, k=len(changes))) for _ in range(4000))
    found = interval(changes, "a")
    assert found.change == 50
    assert found.lower == pytest.approx(sums[100], abs=3)
    assert found.upper == pytest.approx(sums[-100], abs=3)
    assert found == interval(changes, "a")


def test_who_changed_nothing_knows_it() -> None:
    assert interval([0] * 50, "a") == (0, 0, 0, 0)
