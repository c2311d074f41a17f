"""Parcels as Flower's messages."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpara.deployment.parcel import Parcel

TYPES = {"train": "train", "test": "evaluate"}  # methods of `Node`, in Flower's words


def content(parcel: Parcel) -> RecordDict:
    """The payload as it is, one array of bytes; the values beside it."""
    packet = Array("uint8", (len(parcel.payload),), "fedpara.packet", parcel.payload)
    return RecordDict({"packet": ArrayRecord({"payload": packet}), "values": ConfigRecord(dict(parcel.values))})


def read_message(message: Message) -> Parcel:
    """The parcel in a message, which must not be an error."""
    packet, values = message.content["packet"], message.content["values"]
    assert isinstance(packet, ArrayRecord)
    assert isinstance(values, ConfigRecord)
    return Parcel(packet["payload"].data, dict(values))
