"""What records amount to: pure arithmetic, no I/O."""
