import pytest
import torch

from closeup.agent.models.load import load_adapter
from closeup.agent.models.testing import SyntheticVideo, write_random_checkpoint


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """The models of these tests are too small to share between threads, and test machines are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_random_checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random")


@pytest.fixture(scope="session")
def adapter(tiny_random_checkpoint):
    return load_adapter(str(tiny_random_checkpoint), device="cpu", timestamps="text")


@pytest.fixture(scope="session")
def position_adapter(tiny_random_checkpoint):
    return load_adapter(str(tiny_random_checkpoint), device="cpu", timestamps="position")


@pytest.fixture
def video():
    return SyntheticVideo(7)


@pytest.fixture
def videos(video):
    return {video.identity: video}
