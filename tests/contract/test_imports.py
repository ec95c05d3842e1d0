"""The import contracts hold, and each of them bites when somebody breaks it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("neural_diff", "trust", "service", "device_agent", "release_manager", "migrations")
LINT = Path(sys.executable).with_name("lint-imports")

PLANTED = [
    ("device_agent/states.py", "import service.settings", "programs are strangers"),
    ("trust/order.py", "import neural_diff.errors", "programs are strangers"),
    ("service/db/queries.py", "import service.core.errors", "imports point down"),
    ("service/helpers.py", "", "imports point down"),
    ("service/core/policy.py", "import service.engine.tick", "imports point down"),
    ("service/engine/tick.py", "import service.signing.orders", "imports point down"),
    ("service/fleet/offers.py", "import service.engine.rollouts", "imports point down"),
    ("service/engine/rollouts.py", "import service.engine.tick", "In the engine, who explains"),
    ("service/fleet/stray.py", "", "In the fleet, who decides"),
    ("service/fleet/deployments.py", "import service.fleet.rules", "In the fleet, who decides"),
    ("service/publishing/apart.py", "import service.publishing.catalog", "What is published"),
    ("service/signing/record.py", "import service.signing.orders", "The publisher stands on"),
    ("service/core/policy.py", "import service.core.access", "the acting parts stand on"),
    ("device_agent/disk.py", "import pydantic", "What runs on a device"),
    ("neural_diff/apply.py", "import neural_diff.make", "What runs on a device"),
    ("service/core/chain.py", "import sqlalchemy", "Decisions are pure"),
    ("device_agent/states.py", "import device_agent.client", "Decisions are pure"),
    ("service/core/errors.py", "import fastapi", "know no HTTP"),
    ("service/fleet/offers.py", "import starlette", "know no HTTP"),
    ("service/api/device.py", "import service.signing.keys", "reaches a key"),
]


def lint(folder: Path) -> str:
    done = subprocess.run(
        [LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", folder)
    return folder


def test_every_contract_is_kept(copy: Path) -> None:
    assert " 0 broken" in lint(copy)


@pytest.mark.parametrize(("file", "line", "contract"), PLANTED)
def test_a_planted_violation_is_found(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n")
    try:
        found = lint(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
    broken = [part for part in found.split(" KEPT") if contract in part and "BROKEN" in part]
    assert broken, f"{line!r} in {file} was not noticed"


def test_importing_apply_does_not_load_numpy() -> None:
    program = (
        "import sys, neural_diff.apply, neural_diff.stream as stream\n"
        "assert stream.NUMPY and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
