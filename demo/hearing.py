"""What a model file hears: word error rates on the whole canary pool, by the real recogniser."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from demo.cast import SPEECH, OffScript


@dataclass(frozen=True)
class Heard:
    """Errors and reference words of one model, utterance by utterance.

    Attributes:
        utterances: id -> (tag, word errors, reference words).
    """

    utterances: dict[str, tuple[str, int, int]]

    def wer(self, tag: str) -> float:
        """Return the word error rate on the utterances with a tag."""
        mine = [(errors, words) for t, errors, words in self.utterances.values() if t == tag]
        return sum(e for e, _ in mine) / sum(w for _, w in mine)

    def change_since(self, before: "Heard", tag: str) -> tuple[float, float]:
        """Return the change of the rate on a tag, and its standard error, paired by utterance."""
        pairs = [
            (errors - before.utterances[name][1], words)
            for name, (t, errors, words) in self.utterances.items()
            if t == tag
        ]
        words = sum(w for _, w in pairs)
        mean = sum(d for d, _ in pairs) / len(pairs)
        spread = sum((d - mean) ** 2 for d, _ in pairs)
        return sum(d for d, _ in pairs) / words, math.sqrt(spread) / words

    def line(self) -> str:
        """Return the rates as a person reads them."""
        tags = sorted(
            {tag for tag, _, _ in self.utterances.values()}, key=lambda t: (t != "old", t)
        )
        return "WER " + ", ".join(f"{tag} {self.wer(tag):.1%}" for tag in tags)


def hear(model: Path) -> Heard:
    """Run the recogniser over every recording of the pool."""
    command = [sys.executable, SPEECH / "recogniser.py", "--model", model, "--transcripts"]
    command += ["--canary", SPEECH / "canary"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OffScript(f"the recogniser failed on {model}: {done.stderr.strip()}")
    return Heard(
        {
            line["id"]: (line["tag"], line["errors"], len(line["ref"].split()))
            for line in json.loads(done.stdout)["transcripts"]
        }
    )
