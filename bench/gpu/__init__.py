"""How fast KV leaves and enters a GPU, measured with torch alone: see ``bench.gpu_transport``."""
