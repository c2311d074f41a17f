"""The link between server and clients, which encodes, counts and decodes; each direction has its own codec."""

import copy
from collections.abc import Iterable
from typing import Self

import torch
from pydantic import validate_call

from fedpara.communication.codecs import Codec
from fedpara.communication.packet import Packet
from fedpara.state import Layout, Parts, PartsLayout, State, as_bytes, combine, join, only, separate

RESIDUAL = "residual/"  # before the names of what error feedback keeps


class Link:
    """Server to clients (`down`) and client to server (`up`); each end needs only its own half.

    `known` holds tensors under some of the message's names that both ends already have: a codec of updates sends the
    difference. `layout` is that of the message; its order is the order of the encoded tensors.

    Args:
        up_codec, down_codec: of uploads and of broadcasts.
        error_feedback: whether a client keeps what the up codec lost of its update, and adds it to its next one (Stich
            et al., NeurIPS 2018, Algorithm 1).

    Attributes:
        whole: names that a codec of updates does not get; they travel after what it encodes, bit for bit.

    Raises:
        ValueError: there is error feedback for an up codec that does not encode updates, or that loses more of them
            than there is; or the down codec leaves out values, of which a broadcast has no earlier ones.

    Example:
        >>> import torch
        >>> from fedpara.communication import Cast
        >>> link = Link(up_codec=Cast("float16"), down_codec=Cast("float32"))
        >>> message = {"model": {"weight": torch.ones(10, 3)}}
        >>> packet = link.encode_up(message, known={})
        >>> packet.num_bytes, link.encode_down(message).num_bytes
        (60, 120)
        >>> link.decode_up(packet, layout=message, known={})["model"]["weight"].shape
        torch.Size([10, 3])
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(self, up_codec: Codec, down_codec: Codec, error_feedback: bool = False) -> None:
        if getattr(down_codec, "zeroes", False):
            raise ValueError(f"down_codec={type(down_codec).__name__}: must send all values, a broadcast is no update")
        if error_feedback and not up_codec.of_updates:
            raise ValueError(
                f"error_feedback=True: must be false with {type(up_codec).__name__}, which encodes no updates"
            )
        if error_feedback and not getattr(up_codec, "contracts", True):
            raise ValueError(
                "error_feedback=True: must be false with up_codec.bits=2, whose error can be larger than the update, "
                "so that what is fed back would grow from round to round"
            )
        self.up_codec, self.down_codec, self.error_feedback = up_codec, down_codec, error_feedback
        self.whole: frozenset[str] = frozenset()

    def bound_to(self, buffers: Iterable[str]) -> Self:
        """A copy that sends these buffers of the model whole: the variance of a batch norm must not be rounded."""
        own = copy.copy(self)
        own.whole = frozenset(f"model/{name}" for name in buffers)
        return own

    def remembered(self, model: Layout) -> Layout:
        """Names, shapes and types of what a client keeps for error feedback, of all that it may upload."""
        floats = {name: spec for name, spec in model.items() if self._loses(name, spec.dtype)}
        return {RESIDUAL + name: spec for name, spec in floats.items()} if self.error_feedback else {}

    def with_residual(self, message: Parts, memory: State) -> Parts:
        """The message plus what the client's earlier ones lost; `memory` may be empty, and have other names too."""
        residual = {name: memory[RESIDUAL + name] for name in message["model"] if RESIDUAL + name in memory}
        return message | {"model": combine(message["model"], 1, residual)} if residual else message

    def residual(self, message: Parts, sent: Parts) -> State:
        """What a message lost on the wire: its difference from `sent`, as the server decodes it."""
        floats = {name: tensor for name, tensor in message["model"].items() if self._loses(name, tensor.dtype)}
        return {RESIDUAL + name: tensor - sent["model"][name] for name, tensor in floats.items()}

    def encode_down(self, message: Parts, seed: int = 0) -> Packet:
        """The broadcast, encoded once; its bytes count for each client that receives it."""
        return self._encode(self.down_codec, message, {}, seed)

    def decode_down(self, packet: Packet, layout: PartsLayout) -> Parts:
        """The message that a client reads from the broadcast."""
        return self._decode(self.down_codec, packet, layout, {})

    def encode_up(self, message: Parts, known: Parts, seed: int = 0) -> Packet:
        """One client's upload."""
        return self._encode(self.up_codec, message, known, seed)

    def decode_up(self, packet: Packet, layout: PartsLayout, known: Parts) -> Parts:
        """The message that the server reads from a client's upload."""
        return self._decode(self.up_codec, packet, layout, known)

    def _loses(self, name: str, dtype: torch.dtype) -> bool:
        return dtype.is_floating_point and f"model/{name}" not in self.whole

    def _encode(self, codec: Codec, message: Parts, known: Parts, seed: int) -> Packet:
        state = join(message)
        if not codec.of_updates:
            return codec.encode(state, seed)
        whole = [as_bytes(state.pop(name)) for name in list(state) if name in self.whole]
        packet = codec.encode(combine(state, -1, self._differing(known)), seed)
        return Packet(torch.cat([packet.payload, *whole])) if whole else packet

    def _decode(self, codec: Codec, packet: Packet, layout: PartsLayout, known: Parts) -> Parts:
        specs = join(layout)
        if not codec.of_updates:
            return separate(codec.decode(packet, specs), layout)
        whole = {name: specs[name] for name in specs if name in self.whole}
        sizes = [spec.numel() * spec.dtype.itemsize for spec in whole.values()]
        if (coded := packet.num_bytes - sum(sizes)) < 0:
            raise ValueError(f"packet of {packet.num_bytes} bytes: the model needs more than {sum(sizes)}")
        body, *rest = packet.payload.split([coded, *sizes])
        state = codec.decode(Packet(body), {name: spec for name, spec in specs.items() if name not in whole})
        state = combine(state, 1, self._differing(known))
        for (name, spec), part in zip(whole.items(), rest, strict=True):
            state[name] = part.clone().view(spec.dtype).reshape(spec.shape)
        return separate(only(specs, state), layout)

    def _differing(self, known: Parts) -> State:
        """The tensors for which a difference is sent; counters are sent whole."""
        named = join(known).items()
        return {name: tensor for name, tensor in named if tensor.is_floating_point() and name not in self.whole}
