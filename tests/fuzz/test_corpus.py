"""What the fuzzer once found worth keeping is answered alike by all decoders."""

from pathlib import Path

import pytest

from tests.fuzz import targets

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.attack("D22")
@pytest.mark.parametrize("target", ["read", "apply"])
def test_d22_the_corpus_of_the_fuzzer_raises_nothing_but_refusals(target: str) -> None:
    seeds = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    accepted = [getattr(targets, target)(seed) for seed in seeds]
    assert len(seeds) >= 10
    assert any(accepted) and not all(accepted)
