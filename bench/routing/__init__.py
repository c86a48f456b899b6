"""What a router costs: kvferry's proxy and a peer's in front of the same stub workers."""
