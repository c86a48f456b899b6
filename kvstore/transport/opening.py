"""A rank's shipper or fetcher, whole: what an engine, a benchmark and a test begin with.

Which transport it is follows from the address (:mod:`kvstore.transport.zeromq_receiving`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.clock import Clock
from kvstore.cluster import Ship
from kvstore.credentials import Credentials
from kvstore.layout import KVLayout
from kvstore.pages import KVPages
from kvstore.receiving import ReceiverCore
from kvstore.sending import SenderCore
from kvstore.transport.fetcher import Audience, Fetcher
from kvstore.transport.polling import Pollable
from kvstore.transport.shipper import Shipper
from kvstore.transport.zeromq_receiving import ZmqReceivingEnd
from kvstore.transport.zeromq_sending import Sender, ZmqSendingEnd


@dataclass(frozen=True)
class Setting:
    """What both ends need beyond their pages."""

    ship: Ship
    credentials: Credentials
    clock: Clock


def open_shipper(
    uri: str,
    pages: KVPages,
    layout: KVLayout,
    generation: str,
    setting: Setting,
) -> Shipper:
    """Listens at ``uri`` for fetchers of ``pages``; to be started.

    Raises ConfigError when the address is in use or malformed.
    """
    ship, credentials = setting.ship, setting.credentials
    core = SenderCore(
        generation,
        layout,
        credentials.transport_key(),
        window=ship.window_blocks(pages.block_bytes),
        limit=ship.max_transfers,
    )
    sender = Sender(generation, layout.fingerprint)
    end = ZmqSendingEnd(uri, pages, sender, ship, credentials)
    return Shipper(core, pages, end, setting.clock)


def open_fetcher(
    pages: KVPages,
    layout: KVLayout,
    setting: Setting,
    audience: Audience | None = None,
    audience_socket: Pollable | None = None,
) -> Fetcher:
    """Fetches into ``pages`` from whatever address a fetch names; to be started.

    The fetching thread looks after ``audience`` whenever ``audience_socket`` is readable.
    """
    ship, credentials = setting.ship, setting.credentials
    end = ZmqReceivingEnd(pages, layout.fingerprint, ship, credentials)
    if audience_socket is not None:
        end.also_await(audience_socket)
    core = ReceiverCore(pages.block_bytes)
    return Fetcher(core, pages, end, setting.clock, audience)
