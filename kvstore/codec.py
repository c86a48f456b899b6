"""Messages to bytes and back. Nothing else in kvferry decodes what another process sent.

MessagePack with a limit on every length, so that a frame cannot make us allocate more than it
carries; then an exact, strict conversion into one frozen type. No ext types, no pickle, nothing
is looked up by a name from the wire.
"""

from __future__ import annotations

import msgpack
import msgspec

from kvstore.errors import WireError
from kvstore.messages import AnyMessage

MAX_HEADER_BYTES = 2 << 20
"""Longest encoded message. Tensor bytes travel in a frame of their own."""

_MAX_ITEMS = 4096
_MAX_KEYS = 32


class _Envelope(msgspec.Struct, frozen=True):
    """Around a message while it is converted: msgspec prepares a struct once, a union each time."""

    message: AnyMessage


# Prepared here, where there is one thread: two that prepare a struct at once crash the process.
msgspec.json.Decoder(_Envelope)


def _refuse_ext(code: int, _data: bytes) -> object:
    raise WireError(f"message carries an extension type ({code}), which is never accepted")


def encode(message: AnyMessage) -> bytes:
    """The wire form of ``message``."""
    packed = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)), use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def decode(frame: bytes | memoryview) -> AnyMessage:
    """The message in ``frame``.

    Raises WireError when the frame is too long, is not MessagePack within our limits, or is not
    exactly one of our messages.
    """
    if len(frame) > MAX_HEADER_BYTES:
        raise WireError(f"message of {len(frame)} bytes exceeds the limit of {MAX_HEADER_BYTES}")
    try:
        plain = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_ext,
            max_str_len=1024,
            max_bin_len=MAX_HEADER_BYTES,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_KEYS,
            max_ext_len=0,
        )
        envelope = msgspec.convert({"message": plain}, type=_Envelope, strict=True)
    except (ValueError, TypeError, msgpack.UnpackException, msgspec.ValidationError) as error:
        raise WireError(f"not a kvferry message: {error}") from None
    return envelope.message


def well_formed(frame: bytes | memoryview) -> AnyMessage | None:
    """The message in ``frame``; None where ``decode`` would raise."""
    try:
        return decode(frame)
    except WireError:
        return None
