"""Bytes are those of the encoded packet, and what is decoded is what was sent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpara.communication import Cast, Link, Packet

DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5), DTYPES)
def test_round_trip_and_length(shapes, dtype):
    state = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    state["counter"] = torch.tensor(2**40 + 1)
    codec = Cast(dtype)
    packet = codec.encode(state)
    values = sum(tensor.numel() for name, tensor in state.items() if name != "counter")
    assert packet.num_bytes == values * (4 if dtype == "float32" else 2) + 8
    decoded = codec.decode(packet, like=state)
    for name, tensor in state.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor.to(codec.dtype).to(tensor.dtype) if name != "counter" else tensor)


def test_channels_last_tensors_travel_in_logical_order():
    core = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)
    codec = Cast()
    assert torch.equal(codec.decode(codec.encode({"t": core}), like={"t": core})["t"], core)


def test_link_counts_each_way_by_its_own_codec():
    link = Link(up_codec=Cast("float16"), down_codec=Cast("float32"))
    state = {"w": torch.randn(10)}
    assert link.down(state).num_bytes == 40
    up = link.up(state)
    assert up.num_bytes == 20
    assert torch.equal(up.state["w"], state["w"].half().float())


def test_a_packet_of_another_length_is_refused():
    with pytest.raises(ValueError, match="packet of 3 bytes: the model needs 40"):
        Cast().decode(Packet(torch.zeros(3, dtype=torch.uint8)), like={"w": torch.zeros(10)})
