"""CURVE key pairs, and who may connect to which socket.

ZeroMQ asks one authenticator per context (ZAP, RFC 27) about every connection to a socket that
has a ZAP domain. A domain is text that only the listening socket's owner sets, so ours *is* the
socket's allow-list: roles and their public keys. The authenticator therefore keeps no state: it
accepts a CURVE client whose key stands in the domain, and refuses everything else.

A socket without CURVE may ask for a token instead (PLAIN): its domain is that token.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Mapping
from typing import Any

import zmq
from zmq.utils import z85

_ZAP = "inproc://zeromq.zap.01"
_VERSION = b"1.0"


def new_key_pair() -> tuple[bytes, bytes]:
    """A fresh CURVE (public, secret) key pair, each 40 bytes of Z85 text."""
    return zmq.curve_keypair()


def allow_list(public_keys: Mapping[str, bytes]) -> bytes:
    """The ZAP domain that lets in the holders of ``public_keys`` (Z85) under these names."""
    return b" ".join(name.encode() + b" " + key for name, key in sorted(public_keys.items()))


def admitted(domain: bytes, mechanism: bytes, key: bytes) -> bytes | None:
    """The name under which ``domain`` lets a client with this raw public key in; None: it does not.

    Pure; what the authenticator decides by.
    """
    if mechanism != b"CURVE" or len(key) != 32:
        return None
    words = domain.split(b" ")
    names = dict(zip(words[1::2], words[::2], strict=False))
    return names.get(z85.encode(key))


def token_domain(token: str) -> bytes:
    """The ZAP domain that lets in who knows ``token``."""
    return f"token {token}".encode()


def knows_token(domain: bytes, mechanism: bytes, password: bytes) -> bool:
    """Whether ``password`` is the token that ``domain`` asks for. Pure."""
    return mechanism == b"PLAIN" and hmac.compare_digest(domain, b"token " + password)


def start_authenticator(context: zmq.Context[Any]) -> None:
    """Answers ``context``'s ZAP questions from a thread until the context is terminated.

    Does nothing if the context has an authenticator.
    """
    # A shadow: closing "all sockets of the context" from another thread must not close this one.
    shadow: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
    socket = shadow.socket(zmq.REP)
    socket.linger = 0
    try:
        socket.bind(_ZAP)
    except zmq.ZMQError as error:
        socket.close()
        if error.errno != zmq.EADDRINUSE:
            raise
        return
    threading.Thread(target=_answer, args=(socket,), name="zap", daemon=True).start()


def _answer(socket: zmq.Socket[bytes]) -> None:
    try:
        while True:
            question = socket.recv_multipart()
            socket.send_multipart(_verdict(question))
    except zmq.ContextTerminated:
        return
    finally:
        socket.close()


def _verdict(question: list[bytes]) -> list[bytes]:
    # version, request id, domain, address, routing id, mechanism, credentials
    if len(question) < 7 or question[0] != _VERSION:
        sequence = question[1] if len(question) > 1 else b""
        return [_VERSION, sequence, b"400", b"refused", b"", b""]
    name = admitted(question[2], question[5], question[6])
    if len(question) > 7 and knows_token(question[2], question[5], question[7]):
        name = b"bulk"
    if name is None:
        return [_VERSION, question[1], b"400", b"refused", b"", b""]
    return [_VERSION, question[1], b"200", b"OK", name, b""]
