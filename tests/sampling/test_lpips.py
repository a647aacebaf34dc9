"""LPIPS's arithmetic with made-up weights; the real ones are checked where they are fetched."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cachesmith.policies import CachesmithError
from cachesmith.sampling.lpips import STAGES, Lpips, load_lpips
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.scores import compare, summarise


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    """A network with random weights that went through a file."""
    torch.manual_seed(0)
    made = Lpips()
    for head in made.heads:
        torch.nn.init.uniform_(head)
    file = tmp_path_factory.mktemp("lpips") / "weights.safetensors"
    save_file(made.state_dict(), file)
    return load_lpips(file)


def pictures(size: int = 32, channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_identical_pictures_are_at_no_distance_and_noise_moves_them_away(network: Lpips) -> None:
    a = pictures()
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    distances = [network(a, (a + level * noise).clamp(0, 1)) for level in (0.0, 0.05, 0.3)]
    assert distances[0].tolist() == [0.0, 0.0]
    assert (distances[1] > 0).all() and (distances[2] > distances[1]).all()


def test_pairs_are_independent_and_symmetric(network: Lpips) -> None:
    a, b = pictures(), pictures().flip(-1)
    torch.testing.assert_close(network(a, b)[1:], network(a[1:], b[1:]))
    torch.testing.assert_close(network(a, b), network(b, a))


def test_grey_counts_as_three_equal_channels(network: Lpips) -> None:
    a, b = pictures(64), pictures(64).flip(-1)
    torch.testing.assert_close(network(a, b), network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)))


def test_it_is_what_the_metrics_take(network: Lpips) -> None:
    images = pictures()
    scores = compare(Pictures(images, images), Pictures(images.flip(-1), images), network)
    assert scores["lpips"].shape == (2,)
    assert summarise(scores, 0).lpips == pytest.approx(float(scores["lpips"].mean()))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(CachesmithError, match="does not hold LPIPS weights"):
        load_lpips(file)
    with pytest.raises(CachesmithError, match=r"fetch_lpips\.py"):
        load_lpips(tmp_path / "missing")


def test_the_trunk_is_vgg16() -> None:
    assert sum(map(len, STAGES)) == 13
    assert sum(p.numel() for p in Lpips().stages.parameters()) == 14_714_688
