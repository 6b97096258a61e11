import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """The models of these tests are too small to share between threads, and test machines are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
