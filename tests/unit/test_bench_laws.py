"""The bounds of the benchmarks: what they should be where a formula is known, and no less."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import hashing, laws, models
from benchmarks.models import CODE_MAX, Model

ROWS, COLUMNS, LIMIT = 600, 256, 127
DENSITY = 0.02


def old_codes(limit: int = LIMIT) -> laws.Codes:
    rng = laws.generator("old")
    drawn = np.rint(rng.standard_normal((ROWS, COLUMNS)) * limit / 3.2)
    return drawn.clip(-limit, limit).astype(np.int8)


def entropy(chances: np.ndarray) -> float:
    some = chances[chances > 0]
    return float(-(some * np.log2(some)).sum())


def shares(drawn: np.ndarray) -> np.ndarray:
    return np.unique(drawn, return_counts=True)[1] / drawn.size


def change(law: str, density: float = DENSITY, scale: float = 3.0, limit: int = LIMIT) -> float:
    rng = laws.generator("change", law)
    return laws.sparse(rng, old_codes(limit), law, density, scale, 1.0, limit).bits


def test_a_uniform_change_costs_the_entropy_of_place_and_value() -> None:
    old = old_codes()
    drawn = laws.sparse(laws.generator("any"), old, "uniform", DENSITY, 3.0, 1.0, LIMIT)
    moved = (drawn.codes.astype(int) - old)[drawn.codes != old]
    share = moved.size / old.size
    assert share == pytest.approx(DENSITY, rel=0.06)
    place = entropy(np.array([share, 1 - share])) * old.size
    assert drawn.support_bits == pytest.approx(place, rel=0.001)
    value = entropy(shares(moved)) * moved.size
    assert drawn.bits - drawn.support_bits == pytest.approx(value, rel=0.02)
    ratio = math.exp(-1 / 3)
    law = entropy(np.array([ratio, 1 - ratio])) / (1 - ratio) + 1  # 4.03 bits
    assert value / moved.size == pytest.approx(law, rel=0.02)


@pytest.mark.parametrize("law", ["clustered", "magnitude"])
def test_a_change_that_follows_something_costs_less_to_place(law: str) -> None:
    def support(law: str) -> float:
        rng = laws.generator("change", law)
        return laws.sparse(rng, old_codes(), law, DENSITY, 3.0, 1.0, LIMIT).support_bits

    assert support(law) < 0.95 * support("uniform")


@pytest.mark.parametrize("density", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("law", ["uniform", "clustered", "magnitude"])
def test_every_law_changes_the_share_asked_for(law: str, density: float) -> None:
    old = np.repeat(old_codes(), 8, axis=0)
    drawn = laws.sparse(laws.generator(law), old, law, density, 3.0, 1.0, LIMIT)
    assert (drawn.codes != old).mean() == pytest.approx(density, rel=0.12)


def test_the_activity_of_a_row_is_paid_for() -> None:
    """Knowing every row's own density would be cheaper, and no maker knows it."""
    old = old_codes()
    mask, bits = laws.clustered_support(laws.generator("rows"), old, DENSITY)
    touched = mask.reshape(ROWS, -1, laws.BLOCK).any(axis=2)
    known = sum(entropy(np.array([s, 1 - s])) * touched.shape[1] for s in touched.mean(axis=1))
    blind = entropy(np.array([touched.mean(), 1 - touched.mean()])) * touched.size
    inside = entropy(np.array([laws.INSIDE, 1 - laws.INSIDE])) * touched.sum() * laws.BLOCK
    assert known + inside < bits
    assert bits < (blind + inside) * 1.01


def test_small_weights_change_less_often_and_by_less() -> None:
    old = np.repeat(old_codes(), 8, axis=0)
    drawn = laws.sparse(laws.generator("some"), old, "magnitude", 0.1, 3.0, 1.0, LIMIT)
    step = np.abs(drawn.codes.astype(int) - old)
    small, large = np.abs(old) < 20, np.abs(old) > 60
    assert (step[small] > 0).mean() < 0.3 * (step[large] > 0).mean()
    assert step[small & (step > 0)].mean() < 0.7 * step[large & (step > 0)].mean()


@pytest.mark.parametrize("limit", [127, 7])
def test_values_never_leave_their_range_and_are_never_nothing(limit: int) -> None:
    old = old_codes(limit)
    new = laws.geometric_values(laws.generator("edge"), old, limit / 2, -limit, limit).codes
    assert np.abs(new).max() <= limit
    assert (new != old).all()


def test_the_range_of_a_code_is_not_paid_for() -> None:
    """At the end of a narrow range the sign is known, so a value costs less than in a wide one."""
    old = old_codes(7).ravel()
    drawn = laws.geometric_values(laws.generator("narrow"), old, 1.0, -7, 7)
    moved = drawn.codes.astype(int) - old
    joint = entropy(shares(old * 100 + moved)) - entropy(shares(old))
    assert drawn.bits / old.size == pytest.approx(joint, rel=0.01)
    assert drawn.bits / old.size < 2.48  # a wide range: 2.50


def test_flips_cost_the_entropy_of_their_row() -> None:
    old = np.zeros((40, 20_000), np.int8)
    sigma = np.linspace(0.01, 0.6, 40)
    drawn = laws.flips(laws.generator("flips"), old, sigma, -127, 127)
    empirical = sum(entropy(shares(row)) * row.size for row in drawn.codes)
    assert drawn.bits == pytest.approx(empirical, rel=0.01)


def test_the_chance_of_a_flip_is_right() -> None:
    chances = laws.flip_chances(np.array([0.01, 0.3, 1.5]))
    assert chances[:, 0] + 2 * chances[:, 1:].sum(axis=1) == pytest.approx([1, 1, 1])
    assert 1 - chances[0, 0] == pytest.approx(0.01 * math.sqrt(2 / math.pi), rel=1e-9)
    variance = 2 * (chances * np.arange(laws.FLIP_STEPS) ** 2).sum(axis=1)
    assert variance[2] == pytest.approx(1.5**2 + 1 / 6, rel=1e-3)  # cell, step and rounding


def test_at_the_end_of_the_range_a_flip_costs_less() -> None:
    sigma = np.full(50, 0.3)
    inner, end = (
        laws.flips(laws.generator("end"), np.full((50, 4000), code, np.int8), sigma, -127, 127)
        for code in (0, 127)
    )
    assert end.codes.max() == 127
    empirical = entropy(shares(end.codes)) * end.codes.size
    assert end.bits == pytest.approx(empirical, rel=0.01)
    assert end.bits < inner.bits


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_float_costs_the_mass_of_its_rounding_cell(kind: str) -> None:
    value = laws.float_to_half(np.array([0.043]), kind)
    raw = np.repeat(value, 400_000).reshape(4, -1)
    drawn = laws.float_noise(laws.generator(kind), raw, kind, 0.1, np.full(4, 4e-4))
    assert drawn.bits == pytest.approx(entropy(shares(drawn.codes)) * raw.size, rel=0.01)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_the_cells_of_floats_leave_no_gap(kind: str) -> None:
    ordered = np.arange(-0x7000, 0x7000)
    raw = np.where(ordered < 0, 0x8000 | (-ordered - 1), ordered).astype(np.uint16)
    values = laws.half_to_float(raw, kind)
    below, above = laws._cell_ends(raw, kind)
    assert (above[:-1] == below[1:]).all()
    assert ((below <= values) & (values <= above)).all()
    between = laws.float_to_half((below + above) / 2, kind)
    assert (laws.half_to_float(between, kind) == values).all()
    assert laws.laplace_mass(below * 40, above * 40).sum() == pytest.approx(1, abs=1e-6)


def test_buckets_cost_their_entropy() -> None:
    drawn = laws.buckets(laws.generator("buckets"), 200_000, 2.0)
    assert drawn.bits == pytest.approx(entropy(shares(drawn.codes)) * 200_000, rel=0.005)
    assert drawn.bits / 200_000 == pytest.approx(3.414, rel=0.005)


def test_the_buckets_of_the_targets_are_placed_as_the_product_places_them() -> None:
    from neural_diff.hashed import locate_one

    codes = np.arange(-50, 50, dtype=np.int8).reshape(10, 10)
    values = np.array([5, -300, 17, 0, 40, -1, 2], np.int16)
    seed = hashing.region_seed(bytes(16), "some.weight")
    new = hashing.moved(codes, values, seed, 3, -100, 100).ravel()
    for index, code in enumerate(codes.ravel().tolist()):
        bucket, sign, dither = locate_one(seed, index, len(values), 3)
        expected = code + ((sign * int(values[bucket]) + dither) >> 3)
        assert new[index] == min(max(expected, -100), 100)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp16", "bf16"])
def test_a_model_file_is_one_that_the_maker_reads(kind: str, tmp_path: Path) -> None:
    from neural_diff.layout import read_header

    model = Model(hidden=32, outputs=64, kind=kind)
    tensors: models.Tensors = {}
    for tensor in models.tensors_of(model):
        tensors |= models.stored(model, tensor, tensor.codes)
    models.write_safetensors(tmp_path / "model", tensors, models.metadata_of(model))
    header = read_header(tmp_path / "model")
    order = [models._ALIGNMENT[tensor.dtype] for tensor in header.tensors]
    assert order == sorted(order, reverse=True)
    assert {tensor.name for tensor in header.tensors} == set(tensors)
    packed = header.metadata.get(models.INT4_KEY, "").split(",")
    assert packed == (sorted(model.shapes) if kind == "int4" else [""])


def test_two_codes_share_a_byte_the_first_in_its_low_half() -> None:
    assert models.packed(np.array([[1, -1, -7, 7]], np.int8)).tolist() == [[0xF1, 0x79]]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_row_or_group_reaches_the_end_of_its_range(kind: str) -> None:
    for tensor in models.tensors_of(Model(hidden=32, outputs=64, kind=kind)):
        groups = tensor.codes.reshape(-1, models.GROUP) if kind == "int4" else tensor.codes
        assert (np.abs(groups).max(axis=1) == CODE_MAX[kind]).all()


@pytest.mark.parametrize("draw", [lambda: change("uniform"), lambda: change("magnitude")])
def test_the_same_seed_gives_the_same_change(draw: Callable[[], float]) -> None:
    assert draw() == draw()
