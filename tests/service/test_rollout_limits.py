"""The file of limits: every number is given, every key is one, or nothing starts."""

import json
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from service.app import create_app
from service.core.rollout_limits import read_limits
from service.settings import Settings
from trust import sign

WHOLE = {"first_share_bp": 1000, "step_share_bp": 4000, "soak_s": 60, "approval_above_bp": 2500}


def file_of(folder: Path, **numbers: object) -> Path:
    told = {name: value for name, value in {**WHOLE, **numbers}.items() if value is not None}
    file = folder / "limits.toml"
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in told.items()))
    return file


def public(folder: Path, name: str, **changes: str) -> str:
    key = CryptoSigner.generate_ed25519().public_key
    document = {"keyid": key.keyid, "keytype": key.keytype, "scheme": key.scheme, **key.keyval}
    (folder / name).write_text(json.dumps(document | changes))
    return name


def test_a_whole_file_is_read_with_the_keys_beside_it(tmp_path: Path) -> None:
    names = [public(tmp_path, "a.pub"), public(tmp_path, "b.pub")]
    limits = read_limits(file_of(tmp_path, approvers=names, approvals=2, fleet_devices_max=40))
    assert len(limits.approvers) == 2 and list(limits.shares_bp()) == [1000, 5000, 9000, 10_000]
    assert (limits.fleet(30), limits.fleet(400)) == (30, 40)
    assert not limits.takes_approval(10, 40) and limits.takes_approval(11, 40)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: None} for name in WHOLE),
        *({name: -1} for name in WHOLE),
        *({name: True} for name in WHOLE),
        {"first_share_bp": 0},
        {"step_share_bp": 10_001},
        {"soak_s": "1h"},
        {"approvals": 0},
        {"fleet_devices_max": 0},
        {"more": 1},
        {"approvers": "a.pub"},
        {"approvers": [1]},
        {"approvers": ["weak.pub"]},
        {"approvers": ["none.pub"]},
        {"approvers": ["a.pub", "a.pub"]},
        {"approvers": ["a.pub"], "approvals": 2},
    ],
    ids=str,
)
def test_a_file_that_limits_nothing_clearly_is_refused_by_name(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    public(tmp_path, "a.pub")
    public(tmp_path, "weak.pub", public="00" * 32)
    (tmp_path / "none.pub").write_text("[]")
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        read_limits(file_of(tmp_path, **wrong))


def test_no_toml_and_no_file_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("first_share_bp")
    for name in ("bad", "missing"):
        with pytest.raises((ValueError, OSError), match=name):
            read_limits(tmp_path / name)


def test_an_embedded_publisher_keeps_no_limits_without_a_record(tmp_path: Path) -> None:
    for role in ("snapshot", "timestamp", "director"):
        sign.generate_key(tmp_path / f"{role}.pem")
    chosen = {"database": f"sqlite:///{tmp_path / 'x.db'}", "artifacts": str(tmp_path / "a")}
    chosen |= {"online_keys": tmp_path, "rollout_limits": file_of(tmp_path)}
    with pytest.raises(ValueError, match="FLEETDIFF_RECORD"):
        create_app(Settings(**chosen))
    create_app(Settings(**chosen, record=tmp_path / "record.db"))
