"""Converts between parcels and Flower's messages."""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpara.deployment.parcel import Parcel

TYPES = {"train": "train", "test": "evaluate"}  # methods of `Node` and their names in Flower


def content(parcel: Parcel) -> RecordDict:
    """The content of a message: the payload as one array of bytes, and the values."""
    packet = Array("uint8", (len(parcel.payload),), "fedpara.packet", parcel.payload)
    return RecordDict({"packet": ArrayRecord({"payload": packet}), "values": ConfigRecord(dict(parcel.values))})


def read_message(message: Message) -> Parcel:
    """The parcel in a message, which must not be an error.

    Raises:
        ValueError: it has no content, or another one than `content` makes.
    """
    packet, values = message.content.get("packet"), message.content.get("values")
    if not (isinstance(packet, ArrayRecord) and "payload" in packet and isinstance(values, ConfigRecord)):
        raise ValueError("message: must have an array record packet with a payload, and a config record values")
    return Parcel(packet["payload"].data, dict(values))
