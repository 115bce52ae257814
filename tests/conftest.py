"""For all tests: hypothesis gives the same examples every time (make test must not depend on luck) and knows no
deadline (CI machines are slow). `HYPOTHESIS_PROFILE=search` looks for new examples."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

ALONE = {"cli", "docs", "e2e", "interop", "net", "subnets", "test_metrics.py", "test_node.py", "test_worker.py"}
"""What under tests/ starts processes, waits for sockets or fills both cores: it runs by itself (make test)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs by itself by where it lies."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in ALONE:
            item.add_marker("alone")
