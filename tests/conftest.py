"""Every test starts from the same seed, on two threads, with a fresh compiler."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)
    torch.set_num_threads(2)
