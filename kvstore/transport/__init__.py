"""Bytes between processes: sockets, their keys, and who may connect to whom."""
