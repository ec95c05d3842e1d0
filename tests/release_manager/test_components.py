"""A release of several files: what goes with the model is signed with it."""

from hashlib import sha256
from pathlib import Path

import pytest

from tests.release_manager.desk import Desk, family_of
from tests.release_manager.test_publish import nothing_signed
from trust.roles import COMPONENTS_MAX


@pytest.fixture
def beside(tmp_path: Path) -> dict[str, Path]:
    """Files that go with a model, by the names that devices know them by."""
    bodies = {"tokenizer.json": b"tokens", "lm.bin": b"a language model", "also.json": b"tokens"}
    for name, body in bodies.items():
        (tmp_path / f"our-{name}").write_bytes(body)
    return {name: tmp_path / f"our-{name}" for name in bodies}


def given(beside: dict[str, Path]) -> list[str]:
    return [word for name, path in beside.items() for word in ("--component", f"{name}={path}")]


def test_components_are_signed_by_name_digest_and_length_and_uploaded_once(
    published: Desk, files: list[Path], beside: dict[str, Path]
) -> None:
    words = ["release", "publish", "asr", "r2", files[1], *given(beside)]
    done = published.json(*words)
    names = sorted(beside)
    bodies = {name: beside[name].read_bytes() for name in names}
    signed = [(c["name"], c["sha256"], c["bytes"]) for c in done["components"]]
    assert signed == [(n, sha256(bodies[n]).hexdigest(), len(bodies[n])) for n in names]
    family = family_of(published)
    assert [vars(c) for c in family.releases["r2"].components] == done["components"]
    assert {c.sha256 for c in family.components} == {c["sha256"] for c in done["components"]}
    assert len(family.components) == 2, "the same bytes are listed once, however often they serve"
    uploads = [path for path in published.server.calls("PUT") if "/artifacts/" in path]
    assert len(uploads) == len(set(uploads)) == 4
    assert not published.json(*words)["published"]
    assert published.run(*words) == 0
    table = published.out.split("components\n")[1].splitlines()
    assert [line.split()[0] for line in table[:4]] == ["NAME", *names]


def test_a_component_of_the_release_before_is_neither_listed_nor_sent_again(
    published: Desk, files: list[Path], beside: dict[str, Path]
) -> None:
    published.json("release", "publish", "asr", "r2", files[1], *given(beside))
    listed, sent = family_of(published).components, len(published.server.calls("PUT"))
    beside["lm.bin"].write_bytes(b"another language model")
    published.json("release", "publish", "asr", "r3", files[2], *given(beside))
    assert set(family_of(published).components) > set(listed)
    assert len(family_of(published).components) == 3
    assert len(published.server.calls("PUT")) == sent + 3  # model, language model, family


@pytest.mark.attack("M50")
def test_the_components_of_a_release_never_change(
    published: Desk, files: list[Path], beside: dict[str, Path]
) -> None:
    words: list[str | Path] = ["release", "publish", "asr", "r2", files[1]]
    published.json(*words, *given(beside))
    version = published.server.newest["family-asr"]
    for other in ([], given(beside)[2:], [*given(beside), "--component", f"more={files[2]}"]):
        assert published.run(*words, *other) == 1
        assert "never changes" in published.err
    beside["lm.bin"].write_bytes(b"another one")
    assert published.run(*words, *given(beside)) == 1
    assert published.server.newest["family-asr"] == version


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ("lm.bin", 2, "is not a component"),
        ("=lm.bin", 2, "is not a component"),
        ("lm.bin=", 2, "is not a component"),
        ("LM=lm.bin", 2, "is not a component"),
        ("../lm=lm.bin", 2, "is not a component"),
        ("a/b=lm.bin", 2, "is not a component"),
        ("tokenizer.json=lm.bin", 2, "a name of its own"),
        ("lm.bin=nowhere", 1, "nowhere"),
        ("lm.bin=empty", 1, "is empty"),
    ],
)
def test_what_is_no_component_is_refused(
    published: Desk,
    files: list[Path],
    beside: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    code: int,
    says: str,
) -> None:
    folder = beside["lm.bin"].parent
    monkeypatch.chdir(folder)
    (folder / "lm.bin").write_bytes(b"a language model")
    (folder / "empty").touch()
    one = f"tokenizer.json={beside['tokenizer.json']}"
    words = ["release", "publish", "asr", "r2", files[1], "--component", one]
    assert published.run(*words, "--component", value) == code
    assert says in published.err
    assert nothing_signed(published)


def test_more_components_than_a_release_may_have_are_refused(
    published: Desk, files: list[Path], beside: dict[str, Path]
) -> None:
    many = {f"part-{n}": beside["lm.bin"] for n in range(COMPONENTS_MAX + 1)}
    assert published.run("release", "publish", "asr", "r2", files[1], *given(many)) == 2
    assert f"up to {COMPONENTS_MAX} components" in published.err
    assert nothing_signed(published)
