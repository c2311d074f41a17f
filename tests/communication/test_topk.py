"""Top-k: what travels by hand, its bytes, and the memory of what did not."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpara.algorithms import FedAvg, FedDyn, Scaffold
from fedpara.callbacks import Checkpoint, restore
from fedpara.communication import Cast, Link, Packet, StochasticUniform, TopK
from fedpara.sharing import Rotating, Split
from fedpara.state import join, layout_of
from helpers.cases import thinned
from helpers.clients import Exact, Quadratics, quadratic_federation
from helpers.federations import make_federation, same


def test_the_largest_values_travel_in_their_places():
    state = {"a": torch.tensor([3.0, -1.0, 0.5]), "n": torch.tensor(7), "b": torch.tensor([[2.0, -4.0], [0.0, 1.0]])}
    codec = TopK(share=3 / 7)
    packet = codec.encode(state)
    assert packet.num_bytes == 8 + 1 + 3 * 4  # a counter, 7 places as bits, three values
    decoded = codec.decode(packet, layout_of(state))
    assert decoded["a"].tolist() == [3, 0, 0]
    assert decoded["b"].tolist() == [[2, -4], [0, 0]]
    assert decoded["n"] == 7


@pytest.mark.parametrize(("share", "num_bytes"), [(0.001, 10 * 8), (0.1, 1250 + 4000), (1.0, 1250 + 40_000)])
def test_places_are_numbers_or_bits_whichever_is_shorter(share, num_bytes):
    torch.manual_seed(0)
    state, codec = {"w": torch.randn(100, 100)}, TopK(share=share)
    packet = codec.encode(state)
    assert packet.num_bytes == num_bytes
    values, decoded = state["w"].flatten(), codec.decode(packet, layout_of(state))["w"].flatten()
    kept = decoded != 0
    assert int(kept.sum()) == round(share * 10_000)
    assert torch.equal(decoded[kept], values[kept])
    assert kept.all() or values[~kept].abs().max() <= values[kept].abs().min()


@given(st.integers(1, 10**6), st.integers(0, 10**9))
def test_k_is_that_of_the_decimal_share(millionths, total):
    """Without the error of floats, of which 0.07 * 100 is above 7."""
    number, *_ = TopK(share=millionths / 10**6)._sizes(total)
    assert number == -(-millionths * total // 10**6)


@pytest.mark.parametrize(("share", "total", "number"), [(0.07, 100, 7), (0.14, 50, 7), (5 / 7, 7, 5), (1e-12, 9, 1)])
def test_k_by_hand_and_both_ends_agree(share, total, number):
    state, codec = {"w": torch.arange(1.0, total + 1)}, TopK(share=share)
    decoded = codec.decode(codec.encode(state), layout_of(state))["w"]
    assert int((decoded != 0).sum()) == number


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4), st.sampled_from([0.01, 0.3, 1.0]), st.data())
def test_a_damaged_packet_is_refused_or_decoded_in_the_models_shapes(shapes, share, data):
    state, codec = {f"p{i}": torch.randn(shape) for i, shape in enumerate(shapes)} | {"n": torch.tensor(7)}, TopK(share)
    payload = codec.encode(state).payload
    for wrong in (payload[:-1], torch.cat([payload, payload[:1]])):
        with pytest.raises(ValueError, match=f"packet of {len(wrong)} bytes: the model needs {len(payload)}"):
            codec.decode(Packet(wrong), layout_of(state))
    flipped = payload.clone()
    flipped[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = codec.decode(Packet(flipped), layout_of(state))
    except ValueError as error:
        assert "places: must be" in str(error)  # noqa: PT017 (either is right)
    else:
        assert [(n, t.shape, t.dtype) for n, t in decoded.items()] == [(n, t.shape, t.dtype) for n, t in state.items()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_sent(value):
    state, codec = {"w": torch.tensor([1.0, value, 2.0])}, TopK(share=0.1)
    assert not torch.isfinite(codec.decode(codec.encode(state), layout_of(state))["w"]).all()


def test_error_feedback_by_hand():
    """One client: w moves by the largest value of its update plus what is left, and the rest is left (Algorithm 1)."""
    quadratics, link = Quadratics(1), Link(TopK(0.25), Exact(), error_feedback=True)
    federation = quadratic_federation(FedAvg(), 9, 1, 1, link=link)
    w, left = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for _ in range(9):
        federation.run_round()
        y = w.clone()
        for _ in range(10):
            y -= 0.05 * quadratics.a[0] @ (y - quadratics.b[0])
        left += y - w
        sent = torch.zeros(4, dtype=torch.float64)
        sent[left.abs().argmax()] = left[left.abs().argmax()]
        w, left = w + sent, left - sent
        torch.testing.assert_close(federation.server["model"]["w"], w, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(federation.memories[0]["residual/w"], left, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codec", thinned([TopK(share=0.1), StochasticUniform(bits=4)]))
@pytest.mark.parametrize("split", [Split, partial(Rotating, groups="factors")])
def test_a_resumed_run_remembers_what_was_lost(tmp_path, split, codec):
    """With algorithms that remember too, and with rounds that send a part."""
    algorithm = FedDyn() if split is Split else FedAvg()
    make = partial(
        make_federation, link=Link(codec, Cast(), error_feedback=True), split=split, algorithm=algorithm, num_rounds=4,
        eval_every=4, clients_per_round=3, catch_up=True,
    )  # fmt: skip
    whole, part = make(), make(callbacks=[Checkpoint(tmp_path)])
    whole.fit()
    part.run_round()
    part.run_round()
    part.callbacks[0].write(part)
    resumed = make(callbacks=[Checkpoint(tmp_path)])
    restore(resumed, tmp_path)
    resumed.fit()
    assert same(join(whole.server), join(resumed.server))
    assert resumed.total_bytes == whole.total_bytes
    assert whole.memories.keys() == resumed.memories.keys()
    assert all(same(kept, resumed.memories[client]) for client, kept in whole.memories.items())
    assert any(x.any() for kept in whole.memories.values() for name, x in kept.items() if name.startswith("residual/"))


@pytest.mark.parametrize("codec", [*map(StochasticUniform, (8, 4, 2)), TopK(share=0.1)])
def test_what_error_feedback_keeps_stays_small_with_a_codec_that_contracts(codec):
    """Stich et al. 2018: it is bounded if the codec loses less than there is; with -1, 0 and 1 alone it grows."""
    generator, left, sizes = torch.Generator().manual_seed(0), torch.zeros(4000), []
    for number in range(40):
        update = torch.randn(4000, generator=generator)
        message = {"w": update + left}
        left = message["w"] - codec.decode(codec.encode(message, number), layout_of(message))["w"]
        sizes.append(float(left.norm() / update.norm()))
    assert (max(sizes[20:]) < 1.5) == getattr(codec, "contracts", True), sizes


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ValueError, match="error_feedback=True: must be false with Cast, which encodes no updates"):
        Link(Cast(), Cast(), error_feedback=True)
    with pytest.raises(ValueError, match=r"error_feedback=True: must be false with up_codec\.bits=2, whose"):
        Link(StochasticUniform(bits=2), Cast(), error_feedback=True)
    with pytest.raises(
        ValueError, match="error_feedback=True: must be false with Scaffold, whose control would get twice"
    ):
        make_federation(algorithm=Scaffold(), link=Link(TopK(), Cast(), error_feedback=True))


def test_a_broadcast_is_not_sparse():
    with pytest.raises(ValueError, match=r"^down_codec=TopK: must send all values"):
        Link(up_codec=TopK(), down_codec=TopK())
