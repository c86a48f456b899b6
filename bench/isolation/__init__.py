"""What it costs to keep tenants apart: the proxy's CPU, and what caches find of one tenant."""
