"""CURVE key pairs, and who may connect to which socket.

ZeroMQ asks one authenticator per context (ZAP, RFC 27) about every connection to a socket that
has a ZAP domain. Ours, :class:`Gatekeeper`, knows one allow-list of public keys per domain and
refuses everything else: no domain, no list, NULL and PLAIN clients, unknown keys.
"""

from __future__ import annotations

import zmq


def new_key_pair() -> tuple[bytes, bytes]:
    """A fresh CURVE (public, secret) key pair, each 40 bytes of Z85 text."""
    return zmq.curve_keypair()
