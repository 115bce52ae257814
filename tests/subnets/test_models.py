"""Training is deterministic and tuning matters; model files are refused for every reason there is. Uses torch."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mesh.errors import ConfigError, ModelRejected
from subnets.inference.core import (
    MAX_MODEL_BYTES,
    dump_model,
    labels,
    load_model,
    mlp_digits_shapes,
    predict,
)
from subnets.optimization import jobs
from subnets.optimization.candidate import DEFAULT, DIMENSIONS, Candidate, from_unit, to_unit
from subnets.optimization.core import (
    Pool,
    accuracy_ppm,
    load_pool,
    served_model,
    split,
    train,
    verify,
)
from subnets.optimization.data import JUDGE_FILE, POOL_FILE, DataPaths, prepare_data, read_arrays
from subnets.optimization.islands import Island
from subnets.optimization.score import TOLERANCE_PPM

GOOD = DEFAULT.model_copy(update={"lr_micro": 20_000, "hidden": 128, "batch": 128})
WIDTH = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return prepare_data(tmp_path_factory.mktemp("digits"), seed=7)


@pytest.fixture(scope="module")
def pool(data: DataPaths) -> Pool:
    return load_pool(str(data.pool))


def model(width: int = WIDTH) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=rng) for name, shape in mlp_digits_shapes(width).items()}


# --- data ---------------------------------------------------------------------------------------------------


def test_the_judge_set_is_apart_and_the_split_is_by_seed(data: DataPaths, tmp_path: Path) -> None:
    x, _ = read_arrays(data.pool / POOL_FILE)
    judge_x, _ = read_arrays(data.judge / JUDGE_FILE)
    assert (len(x), len(judge_x)) == (1497, 300)
    assert [p.name for p in data.pool.iterdir()] == [POOL_FILE]  # a node given this directory has no judge sample
    rows = {row.tobytes() for row in x}
    assert sum(row.tobytes() in rows for row in judge_x) == 0
    again = prepare_data(tmp_path / "again", seed=7)
    assert (again.pool / POOL_FILE).read_bytes() == (data.pool / POOL_FILE).read_bytes()
    other = prepare_data(tmp_path / "other", seed=8)
    assert (other.pool / POOL_FILE).read_bytes() != (data.pool / POOL_FILE).read_bytes()


def test_a_node_without_data_makes_the_same_pool_and_no_judge_set(data: DataPaths, tmp_path: Path) -> None:
    jobs.pool({"directory": str(tmp_path), "seed": 7})
    assert (tmp_path / POOL_FILE).read_bytes() == (data.pool / POOL_FILE).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [POOL_FILE]


def test_a_broken_data_file_is_one_clear_error(tmp_path: Path) -> None:
    for content in (b"", b"garbage", bytes(2 * 1024 * 1024)):
        (tmp_path / POOL_FILE).write_bytes(content)
        with pytest.raises(ConfigError, match=r"pool\.safetensors"):
            read_arrays(tmp_path / POOL_FILE)
    with pytest.raises(ConfigError):
        read_arrays(tmp_path / "absent")


# --- candidates ---------------------------------------------------------------------------------------------


def test_candidates_and_the_unit_cube() -> None:
    assert from_unit(to_unit(DEFAULT)) == DEFAULT
    assert from_unit([-5.0] * len(DIMENSIONS)) == from_unit([0.0] * len(DIMENSIONS))
    assert {axis.name: (axis.low, axis.high) for axis in DIMENSIONS} == {
        name: (field.metadata[0].ge, field.metadata[1].le) for name, field in Candidate.model_fields.items()
    }


def test_a_candidate_out_of_range_is_refused() -> None:
    for axis in DIMENSIONS:
        for value in (axis.low - 1, axis.high + 1, 0.5):
            with pytest.raises(ValueError, match=axis.name):
                Candidate.model_validate({**DEFAULT.model_dump(), axis.name: value})


# --- training -----------------------------------------------------------------------------------------------


def test_training_is_deterministic(pool: Pool) -> None:
    first = train(GOOD, pool, split_seed=1, train_seed=2)
    again = train(GOOD, pool, split_seed=1, train_seed=2)
    assert dump_model(first.model) == dump_model(again.model)
    assert first.ppm == again.ppm
    other = train(GOOD, pool, split_seed=1, train_seed=3)
    assert dump_model(other.model) != dump_model(first.model)


def test_nothing_is_validated_on_what_it_was_trained_on(pool: Pool) -> None:
    rows, held_out = split(pool, 5)
    assert sorted([*rows.tolist(), *held_out.tolist()]) == list(range(1497))


def test_tuning_matters_under_the_same_budget(data: DataPaths, pool: Pool) -> None:
    x, y = (torch.from_numpy(array) for array in read_arrays(data.judge / JUDGE_FILE))
    before = accuracy_ppm(served_model(DEFAULT, pool).model, x, y)
    after = accuracy_ppm(served_model(GOOD, pool).model, x, y)
    assert after - before >= 50_000


def test_honest_measurements_lie_within_the_tolerance(pool: Pool) -> None:
    found = [verify(GOOD, pool, seed) for seed in range(4)]
    assert max(found) - min(found) <= TOLERANCE_PPM


def test_an_island_improves_on_the_default_within_a_dozen_trainings(pool: Pool) -> None:
    island, best = Island(seed=3), 0
    for number in range(12):
        candidate = island.ask()
        ppm = train(candidate, pool, split_seed=number, train_seed=number).ppm
        island.tell(ppm)
        best = max(best, ppm)
    assert best >= 920_000


def test_a_migrant_is_tried_exactly() -> None:
    island = Island(seed=1)
    for _ in range(3):
        island.ask()
        island.tell(500_000)
    island.inject(GOOD)
    tried = []
    for _ in range(3):
        tried.append(island.ask())
        island.tell(500_000)
    assert tried[0] == GOOD
    assert GOOD not in tried[1:]


def test_jobs_carry_plain_values_only(data: DataPaths) -> None:
    where = {"pool": str(data.pool)}
    explored = jobs.explore({**where, "island": 9, "best": None, "migrants": []})
    assert Candidate(**explored["candidate"])
    judged = jobs.judge({**where, "candidate": GOOD.model_dump(), "incumbent": DEFAULT.model_dump(), "seed": 11})
    assert judged["candidate_ppm"] - judged["incumbent_ppm"] > 50_000
    assert judged == jobs.judge(
        {**where, "candidate": GOOD.model_dump(), "incumbent": DEFAULT.model_dump(), "seed": 11}
    )
    served = jobs.serve({**where, "candidate": GOOD.model_dump()})
    check = {
        **where,
        "candidate": GOOD.model_dump(),
        "model": served["model"],
        "seed": 11,
        "verified_ppm": judged["candidate_ppm"],
        "tolerance_ppm": TOLERANCE_PPM,
    }
    assert jobs.check(check)["ppm"] >= judged["candidate_ppm"] - TOLERANCE_PPM
    poor = jobs.serve({**where, "candidate": DEFAULT.model_copy(update={"hidden": 128}).model_dump()})["model"]
    with pytest.raises(ModelRejected, match="not the candidate's"):
        jobs.check({**check, "model": poor})


# --- model files --------------------------------------------------------------------------------------------


def test_a_model_survives_the_trip() -> None:
    loaded = load_model(dump_model(model()), architecture="mlp-digits-1", width=WIDTH)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model().items())


def _header(fields: object, body: bytes = b"") -> bytes:
    raw = json.dumps(fields).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def hostile() -> dict[str, bytes]:
    good = model()
    float64 = {name: tensor.double() for name, tensor in good.items()}
    nan = {**good, "b1": torch.full((WIDTH,), float("nan"))}
    return {
        "empty": b"",
        "garbage": b"\xff" * 1000,
        "pickle": pickle.dumps({"w1": [1.0]}),
        "torch.save": _torch_saved(good),
        "truncated": dump_model(good)[:-1],
        "header longer than the file": struct.pack("<Q", 2**63) + b"{}",
        "too big": dump_model(good) + bytes(MAX_MODEL_BYTES),
        "trailing bytes": dump_model(good) + b"x",
        "other width": dump_model(model(WIDTH + 1)),
        "tensor missing": save({name: t for name, t in good.items() if name != "b2"}),
        "tensor too many": save({**good, "extra": torch.zeros(1)}),
        "other dtype": save(float64),
        "transposed": save({**good, "w1": good["w1"].t().contiguous()}),
        "not finite": save(nan),
        "offsets overlap": _header(
            {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in good}, b"\0" * 4
        ),
        "unknown dtype": _header({"w1": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        "huge shape": _header({"w1": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, b"\0" * 4),
    }


def _torch_saved(tensors: dict[str, torch.Tensor]) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(hostile()))
def test_a_hostile_model_file_is_refused(name: str) -> None:
    with pytest.raises(ModelRejected):
        load_model(hostile()[name], architecture="mlp-digits-1", width=WIDTH)


def test_other_architectures_and_widths_are_refused() -> None:
    data = dump_model(model())
    with pytest.raises(ModelRejected, match="none of mlp-digits-1"):
        load_model(data, architecture="llama", width=WIDTH)
    for width in (0, -1, 10**9):
        with pytest.raises(ModelRejected, match="width"):
            load_model(data, architecture="mlp-digits-1", width=width)


# --- answers ------------------------------------------------------------------------------------------------


def test_a_row_s_answer_does_not_depend_on_its_batch() -> None:
    x = torch.rand(33, 64, generator=torch.Generator().manual_seed(2))
    alone = [int(labels(model(), x[i : i + 1])[0]) for i in range(33)]
    assert labels(model(), x).tolist() == alone
    assert labels(model(), x[:2]).tolist() == alone[:2]


def test_predict_says_where_it_ran() -> None:
    x = torch.rand(5, 64, generator=torch.Generator().manual_seed(2))
    found = predict(
        {
            "model": dump_model(model()),
            "architecture": "mlp-digits-1",
            "width": WIDTH,
            "inputs": x.numpy().tobytes(),
            "rows": 5,
        }
    )
    assert found["labels"] == labels(model(), x).tolist()
    assert found["device"] == "cpu" or found["device"].startswith("cuda (")


@pytest.mark.gpu
def test_predict_on_cuda_gives_the_labels_of_the_cpu() -> None:
    x = torch.rand(256, 64, generator=torch.Generator().manual_seed(2))
    args = {"model": dump_model(model()), "architecture": "mlp-digits-1", "width": WIDTH}
    found = predict({**args, "inputs": x.numpy().tobytes(), "rows": 256})
    assert found["device"].startswith("cuda (")
    same = sum(a == b for a, b in zip(found["labels"], labels(model(), x).tolist(), strict=True))
    assert same >= 254  # rounding differs between devices; a tie may fall the other way
