"""Bytes are those of the encoded packet, and what is decoded is what was sent."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpara.communication import Cast, Link, Packet, StochasticUniform, TopK
from fedpara.models import VGG
from fedpara.nn import Dense, FedPara, factorize
from fedpara.state import layout_of, parts_layout_of, read_state
from helpers.federations import make_federation, same

DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5), DTYPES)
def test_round_trip_and_length(shapes, dtype):
    state = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    state["counter"] = torch.tensor(2**40 + 1)
    codec = Cast(dtype)
    packet = codec.encode(state)
    values = sum(tensor.numel() for name, tensor in state.items() if name != "counter")
    assert packet.num_bytes == values * (4 if dtype == "float32" else 2) + 8
    decoded = codec.decode(packet, layout_of(state))
    for name, tensor in state.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor.to(codec.dtype).to(tensor.dtype) if name != "counter" else tensor)


def test_channels_last_tensors_travel_in_logical_order():
    core = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)
    codec = Cast()
    assert torch.equal(codec.decode(codec.encode({"t": core}), layout_of({"t": core}))["t"], core)


STRIDED = {
    "column": torch.arange(12.0).view(4, 3)[:, 0],
    "one value of a column": torch.arange(12.0).view(4, 3)[1:2, 0],
    "no value of a column": torch.arange(12.0).view(4, 3)[:0, 0],
    "expanded": torch.tensor([2.0]).expand(5),
    "whole numbers": torch.arange(8).view(4, 2)[:, 1],
}


@pytest.mark.parametrize("name", STRIDED)
@pytest.mark.parametrize("codec", [Cast(), Cast("float16"), StochasticUniform(bits=8), TopK(share=0.5)])
def test_tensors_whose_values_lie_apart_travel_as_their_copies(codec, name):
    state = {"w": STRIDED[name]}
    side_by_side = {"w": STRIDED[name].clone(memory_format=torch.contiguous_format)}
    assert torch.equal(codec.encode(state).payload, codec.encode(side_by_side).payload)


def test_tensors_that_a_codec_of_updates_does_not_get_may_lie_apart():
    parts = {"model": {"w": torch.randn(3), "mean": STRIDED["column"]}}
    link = Link(StochasticUniform(8), Cast()).bound_to(["mean"])
    read = link.decode_up(link.encode_up(parts, {}), parts_layout_of(parts), {})
    assert read["model"]["mean"].tolist() == [0, 3, 6, 9]


def test_link_counts_each_way_by_its_own_codec():
    link = Link(up_codec=Cast("float16"), down_codec=Cast("float32"))
    parts = {"model": {"w": torch.randn(10)}}
    assert link.encode_down(parts).num_bytes == 40
    packet = link.encode_up(parts, known=parts)
    assert packet.num_bytes == 20
    read = link.decode_up(packet, parts_layout_of(parts), known=parts)
    assert torch.equal(read["model"]["w"], parts["model"]["w"].half().float())


def test_a_packet_of_another_length_is_refused():
    with pytest.raises(ValueError, match="packet of 3 bytes: the model needs 40"):
        Cast().decode(Packet(torch.zeros(3, dtype=torch.uint8)), layout_of({"w": torch.zeros(10)}))


CODECS = st.sampled_from([Cast("float32"), Cast("bfloat16"), *map(StochasticUniform, (8, 4, 2))])


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4), CODECS, st.data())
def test_a_damaged_packet_is_refused_or_decoded_in_the_models_shapes(shapes, codec, data):
    state = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)} | {"counter": torch.tensor(7)}
    payload = codec.encode(state).payload
    cut = payload[: data.draw(st.integers(0, len(payload) - 1))]
    for wrong in (cut, torch.cat([payload, payload[:1]])):
        with pytest.raises(ValueError, match=f"packet of {len(wrong)} bytes: the model needs {len(payload)}"):
            codec.decode(Packet(wrong), layout_of(state))
    flipped = payload.clone()
    flipped[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    decoded = codec.decode(Packet(flipped), layout_of(state))
    assert [(n, t.shape, t.dtype) for n, t in decoded.items()] == [(n, t.shape, t.dtype) for n, t in state.items()]


BITS = st.sampled_from([8, 4, 2])


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5), BITS, st.integers(0, 2**62))
def test_quantised_round_trip_length_and_error(shapes, bits, seed):
    state = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    state["counter"] = torch.tensor(2**40 + 1)
    codec = StochasticUniform(bits)
    packet = codec.encode(state, seed)
    sizes = [tensor.numel() for name, tensor in state.items() if name != "counter"]
    assert packet.num_bytes == sum(4 + -(-size * bits // 8) for size in sizes) + 8
    decoded = codec.decode(packet, layout_of(state))
    assert decoded["counter"] == state["counter"]
    for name, tensor in state.items():
        if name != "counter" and tensor.numel():
            step = float(tensor.abs().max()) / (2 ** (bits - 1) - 1)
            assert float((decoded[name] - tensor).abs().max()) <= step * 1.001
    assert torch.equal(codec.encode(state, seed).payload, packet.payload)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantiser_is_unbiased(bits):
    torch.manual_seed(0)
    state, codec = {"w": torch.randn(50)}, StochasticUniform(bits)
    mean = torch.stack([codec.decode(codec.encode(state, seed), layout_of(state))["w"] for seed in range(1500)]).mean(0)
    step = float(state["w"].abs().max()) / codec.levels
    assert float((mean - state["w"]).abs().max()) < 5 * step / 2 / 1500**0.5


@pytest.mark.parametrize(("bits", "noise"), [(8, 0.0005), (4, 0.15), (2, 3.7)])
def test_the_readmes_noise_of_a_heavy_tailed_tensor(bits, noise):
    """Laplace, 10,000 values, means over 20 tensors; the quantiser's seeds are not those of the tensors."""
    codec, ratios = StochasticUniform(bits), []
    for seed in range(20):
        torch.manual_seed(seed)
        values = torch.distributions.Laplace(0.0, 1.0).sample((10_000,))
        decoded = codec.decode(codec.encode({"w": values}, seed + 10**6), layout_of({"w": values}))["w"]
        ratios.append(float((decoded - values).square().mean() / values.square().mean()))
    assert sum(ratios) / 20 == pytest.approx(noise, rel=0.1)


def test_quantisers_act_on_updates():
    """The error is a step of the update's scale, not of the parameters'."""
    known = {"w": torch.full((100,), 1000.0)}
    message = {"w": known["w"] + torch.randn(100) * 1e-3}
    link, message = Link(StochasticUniform(8), Cast()), {"model": message}
    packet = link.encode_up(message, {"model": known}, seed=1)
    delivered = link.decode_up(packet, parts_layout_of(message), {"model": known})
    message, delivered = message["model"], delivered["model"]
    assert float((delivered["w"] - message["w"]).abs().max()) < 2e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    state, codec = {"w": torch.tensor([1.0, value])}, StochasticUniform(8)
    assert not torch.isfinite(codec.decode(codec.encode(state), layout_of(state))["w"]).all()


def test_zero_updates_stay_zero():
    state, codec = {"w": torch.zeros(5)}, StochasticUniform(4)
    assert torch.equal(codec.decode(codec.encode(state), layout_of(state))["w"], torch.zeros(5))


def test_sizes_of_table_12():
    """MB (10^6) down and up a client and round: FedAvg 122, FedPAQ 91.4, FedPara gamma 0.5 46.4, with FedPAQ 34.74."""
    stages = [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3]
    fedpara = FedPara(gamma=0.5, initialization="he")
    table = (Dense(), {"float32": 122.0, "float16": 91.4}), (fedpara, {"float32": 46.4, "float16": 34.74})
    for recipe, printed in table:
        state = read_state(factorize(VGG(stages, [512, 512], 10), recipe, ["classifier.*"]))
        for dtype, megabytes in printed.items():
            link = Link(Cast(dtype), Cast("float32"))
            counted = link.encode_down({"model": state}).num_bytes + link.encode_up({"model": state}, {}).num_bytes
            assert counted / 1e6 == pytest.approx(megabytes, rel=0.005)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("codec", [StochasticUniform(bits=4), TopK(share=0.1)])
def test_statistics_of_a_batch_norm_travel_whole_beside_lossy_updates(codec, feedback):
    """A variance that is rounded as an update is may be negative, and the outputs NaN."""

    def network():
        return nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))

    make = partial(make_federation, network=network, recipe=Dense())
    exact, lossy = make(), make(link=Link(codec, Cast(), error_feedback=feedback))
    exact.run_round()
    record = lossy.run_round()
    trained = {name: t for name, t in lossy.server["model"].items() if t.is_floating_point() and "running" not in name}
    assert record.up_bytes == 2 * (codec.encode(trained).num_bytes + 2 * 4 * 32 + 8)  # and the counter of batches
    expected, found = exact.server["model"], lossy.server["model"]
    assert same({n: found[n] for n in found if "1.running" in n}, {n: expected[n] for n in found if "1.running" in n})
    assert not torch.equal(found["0.weight"], expected["0.weight"])
    remembered = {"residual/" + name for name in trained} if feedback else set()
    assert {name for memory in lossy.memories.values() for name in memory} == remembered
    while lossy.round < lossy.num_rounds:
        assert lossy.run_round().metrics["test/loss"] < 10
