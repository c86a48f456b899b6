"""Tests that need a GPU and no more than torch, numpy and pytest. Without one they skip themselves.

Those of lanes need msgspec too, for their messages, and are left out without it.

Where nothing else is installed, leave the suite's settings out::

    python -m pytest -c /dev/null --rootdir . --confcutdir tests/gpu tests/gpu
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

collect_ignore = [] if find_spec("msgspec") else ["test_nccl.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU, or a torch without CUDA"))
