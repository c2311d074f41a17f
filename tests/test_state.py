"""Arithmetic on states, the split, and sampling as pure functions."""

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpara.sampling import cohort, derive_seed
from fedpara.sharing import Split
from fedpara.state import is_finite, load_state, on_cpu, weighted_mean


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 1000)), min_size=1, max_size=20))
def test_weighted_mean_is_by_examples(items):
    states = [({"a": torch.tensor([value], dtype=torch.float64)}, weight) for value, weight in items]
    expected = sum(value * weight for value, weight in items) / sum(weight for _, weight in items)
    assert float(weighted_mean(iter(states))["a"]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_integer_buffers_are_not_averaged():
    states = [({"n": torch.tensor(3)}, 1), ({"n": torch.tensor(8)}, 9)]
    assert weighted_mean(states)["n"] == torch.tensor(8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_of_narrow_types_is_rounded_once(dtype):
    """A hundredth of a client's step is below the spacing of bfloat16 near 1, which is 1/128."""
    spacing = torch.finfo(dtype).eps
    states = [({"a": torch.full((3,), 1 + (number // 50) * 2 * spacing, dtype=dtype)}, 1) for number in range(100)]
    mean = weighted_mean(states)["a"]
    assert mean.dtype == dtype
    assert mean.tolist() == [1 + spacing] * 3


def test_weighted_mean_leaves_its_inputs_alone():
    first = {"a": torch.zeros(2)}
    weighted_mean([(first, 1), ({"a": torch.ones(2)}, 1)])
    assert torch.equal(first["a"], torch.zeros(2))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no states"),
        ([({"a": torch.ones(1)}, 0)], "weight=0"),
        ([({"a": torch.ones(1)}, 1), ({"b": torch.ones(1)}, 1)], "states disagree"),
    ],
)
def test_means_that_mean_nothing_are_refused(items, message):
    with pytest.raises(ValueError, match=message):
        weighted_mean(items)


def test_load_refuses_other_names():
    with pytest.raises(ValueError, match=r"missing \['bias'\], unexpected \['bais'\]"):
        load_state(torch.nn.Linear(1, 1), {"weight": torch.ones(1, 1), "bais": torch.ones(1)})


def test_is_finite():
    assert is_finite({"a": torch.ones(2), "n": torch.tensor(1)})
    assert not is_finite({"a": torch.tensor([1.0, float("nan")])})
    assert not is_finite({"a": torch.tensor([float("inf"), -float("inf")])})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_whose_sum_overflows_are_finite(dtype):
    assert is_finite({"a": torch.full((3,), torch.finfo(dtype).max, dtype=dtype)})


def test_split_is_disjoint_and_complete():
    split = Split(["a.x", "a.y", "b"], ["*.y"])
    assert split.shared == ["a.x", "b"]
    assert split.personal == ["a.y"]


def test_split_refuses_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match="matches no parameter"):
        Split(["a", "b"], ["c*"])


@given(st.integers(0, 2**32), st.integers(0, 500), st.integers(1, 200), st.data())
def test_cohort_is_a_function_of_seed_and_round(seed, round_index, num_clients, data):
    size = data.draw(st.integers(1, num_clients))
    chosen = cohort(seed, round_index, num_clients, size)
    assert len(set(chosen)) == size
    assert set(chosen) <= set(range(num_clients))
    assert chosen == cohort(seed, round_index, num_clients, size)


def test_every_client_gets_its_turn_and_streams_differ():
    seen = {client for round_index in range(60) for client in cohort(0, round_index, 20, 4)}
    assert seen == set(range(20))
    seeds = {derive_seed(s, r, c, p) for s in range(3) for r in range(3) for c in range(3) for p in ("a", "b")}
    assert len(seeds) == 54
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_host_waits_once_for_all_tensors_of_a_gpu(monkeypatch):
    done, device = [], torch.device("cuda:1")

    def sent(where, non_blocking):
        done.append((where, non_blocking))
        return torch.ones(1)

    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    here = torch.ones(1)
    arrived = on_cpu({name: Mock(is_cuda=True, device=device, to=sent) for name in "ab"} | {"c": here})
    assert done == [("cpu", True)] * 2 + [device]
    assert arrived["c"] is here
