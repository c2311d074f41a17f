"""Weights to start from: those of a file, in place of random ones."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from zlib import crc32

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from fedpara.files import UnusableFile
from fedpara.models.char_lstm import LSTMLayer
from fedpara.state import load_state, tensors

log = logging.getLogger(__name__)


def load_pretrained(network: nn.Module, file: Path, head: Sequence[str] = (), checksum: int | None = None) -> None:
    """Load dense weights into a network that is not factorised yet, in place.

    What belongs to the head starts anew if the file does not have it or has it in another shape, because it may be for
    other classes; the log says so.

    Args:
        file: safetensors with the network's parameters and buffers, such as `eval.py export=dense` writes.
        head: fnmatch patterns of the head's names.
        checksum: the file's CRC-32 when the run began; None: any.

    Raises:
        UnusableFile: the file cannot be read, has changed since the run began, or is of another network.
    """
    content = read(file)
    if checksum is not None and crc32(content) != checksum:
        raise UnusableFile(f"{file}: has changed since the run began; its weights would be other ones")
    try:
        state = load(content)
    except SafetensorError as error:
        raise UnusableFile(f"{file}: must be a safetensors file ({error})") from error
    for name, layer in network.named_modules():
        if isinstance(layer, LSTMLayer):
            state = layer.from_plain(state, name)
    own, names = tensors(network), set(network.state_dict())
    given = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
    anew = [name for name in own.keys() - given.keys() if _matches(name, head)]
    wrong = sorted(own.keys() - given.keys() - set(anew)) + sorted(
        n for n in state.keys() - names if not _matches(n, head)
    )
    if wrong:
        what = "missing, of another shape or not in this network"
        raise UnusableFile(f"{file}: must be of this network, but {', '.join(wrong[:3])} of {len(wrong)} are {what}")
    if anew:
        log.info("%s start anew: %s does not have them in this shape", ", ".join(sorted(anew)), file.name)
    load_state(network, own | given)


def read(file: Path) -> bytes:
    """The bytes of a file of weights.

    Raises:
        UnusableFile: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnusableFile(f"{file}: cannot be read ({error.strerror})") from error


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
