"""Replays a trace through the proxy's own steering, with engines that only keep time."""
