"""What tests share: an object cache of their own, Hypothesis without deadlines, a root that is no package."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# A slow machine is no failure. In CI the same examples run every time: new ones are for developers to find.
settings.register_profile("tracegrad", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tracegrad")


class PlainRoot:
    """Keeps pytest from taking the repository's root, for its `__init__.py`, for a package of test modules.
    It would be imported a second time, under the name of the checkout's folder, or fail to be."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PlainRoot())
    os.environ.setdefault("MPLBACKEND", "Agg")
    if not hasattr(config, "workerinput"):  # workers inherit the directory, and share what they compile
        directory = tempfile.mkdtemp(prefix="tracegrad-tests-")
        os.environ["TRACEGRAD_CACHE_DIR"] = directory
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
