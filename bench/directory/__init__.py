"""What a proxy's directory of cached blocks costs: to ask, to keep, to keep true."""
