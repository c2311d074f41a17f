"""Converts between parcels and Flower's messages."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpara.deployment.parcel import Parcel

TYPES = {"train": "train", "test": "evaluate"}  # methods of `Node` and their names in Flower


def content(parcel: Parcel) -> RecordDict:
    """The content of a message: the payload as one array of bytes, and the values."""
    packet = Array("uint8", (len(parcel.payload),), "fedpara.packet", parcel.payload)
    return RecordDict({"packet": ArrayRecord({"payload": packet}), "values": ConfigRecord(dict(parcel.values))})


def read_message(message: Message) -> Parcel:
    """The parcel in a message, which must not be an error."""
    packet, values = message.content["packet"], message.content["values"]
    assert isinstance(packet, ArrayRecord)
    assert isinstance(values, ConfigRecord)
    return Parcel(packet["payload"].data, dict(values))
