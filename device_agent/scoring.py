"""Word errors: the scorer `wer/1` and the normaliser `nfkc-casefold/1`, for engines to use.

The hypothesis is normalised, references come normalised. Both are aligned by edit distance and
only the total is a verdict; how it splits is a diagnosis. Ties go to match or substitution first,
then to deletion, then to insertion.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

SCORER = "wer/1"
NORMALISER = "nfkc-casefold/1"
WORDS_MAX = 200  # units of one utterance that are looked at


@dataclass
class Errors:
    """Counts of words said and of words substituted, deleted and inserted."""

    ref_words: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0

    def add(self, other: "Errors") -> None:
        """Add the counts of another."""
        self.ref_words += other.ref_words
        self.substituted += other.substituted
        self.deleted += other.deleted
        self.inserted += other.inserted

    @property
    def total(self) -> int:
        """All errors."""
        return self.substituted + self.deleted + self.inserted


def normalise(text: str) -> str:
    """Normalise by `nfkc-casefold/1`: NFKC, casefold, punctuation and symbols become spaces.

    Apostrophes stay (the typographic one becomes the plain one), and so do combining marks.
    """
    folded = unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold()
    plain = (" " if c != "'" and unicodedata.category(c)[0] in "PSZC" else c for c in folded)
    return " ".join("".join(plain).split())


def mark(text: str) -> str:
    """Return what tells a normalised transcript from others without telling it; empty for none."""
    return text and sha256(text.encode()).hexdigest()[:8]


def units_of(text: str, unit: str) -> list[str]:
    """Return what is counted: words, or characters ("char") where a script has no spaces."""
    return text.split() if unit == "word" else [c for c in text if not c.isspace()]


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Count errors by edit distance, row by row (Wagner and Fischer 1974).

    Each cell holds (errors, substitutions, deletions, insertions). Ties: substitution, then
    deletion, then insertion. A hypothesis is cut at 200 words.
    """
    heard_words = hypothesis[:WORDS_MAX]
    row = [(j, 0, 0, j) for j in range(len(heard_words) + 1)]
    for i, said in enumerate(reference, 1):
        diagonal, row[0] = row[0], (i, 0, i, 0)
        for j, heard in enumerate(heard_words, 1):
            above, left, wrong = row[j], row[j - 1], int(said != heard)
            options = (
                (diagonal[0] + wrong, diagonal[1] + wrong, *diagonal[2:]),
                (above[0] + 1, above[1], above[2] + 1, above[3]),
                (left[0] + 1, *left[1:3], left[3] + 1),
            )
            diagonal, row[j] = above, min(options, key=lambda cell: cell[0])
    return Errors(len(reference), *row[-1][1:])
