"""A server with exactly known delays, to audit clients: it tells when it wrote what."""

from bench.stub.config import StubConfig
from bench.stub.server import StubServer, run, serve

__all__ = ["StubConfig", "StubServer", "run", "serve"]
