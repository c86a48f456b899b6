"""JSON from outside, decoded in one place, with one error for everything that can be wrong."""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

from kvstore.errors import WireError

T = TypeVar("T")


@overload
def decoded(raw: bytes | str) -> Any: ...  # noqa: ANN401 (anything JSON can say)
@overload
def decoded(raw: bytes | str, kind: type[T]) -> T: ...
def decoded(raw: bytes | str, kind: Any = Any) -> Any:
    """``raw`` as ``kind``. Raises WireError: not JSON, nested too deeply, or not of that kind."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from None
    except RecursionError:
        raise WireError("nested too deeply") from None
