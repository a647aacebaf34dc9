"""Pictures, videos and sounds as files."""

import wave
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.commands.shop import picture_size
from tests.pipelines.audio import AUDIO

from cachesmith.commands.shared.saving import check_kind, save_samples
from cachesmith.policies import CachesmithError
from cachesmith.sampling.pictures import USUAL_RATE, sampling_rate


def test_pictures_as_a_grid_and_one_by_one(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 96, 96)
    save_samples(images, [tmp_path / "grid.png"], fps=8, rate=1)
    save_samples(images, [tmp_path / f"{i}.png" for i in range(3)], fps=8, rate=1)
    assert picture_size(tmp_path / "grid.png") == (2 * 100 + 4, 2 * 100 + 4)
    assert [picture_size(tmp_path / f"{i}.png") for i in range(3)] == [(96, 96)] * 3


def test_a_grid_of_two_sizes(tmp_path: Path) -> None:
    save_samples((torch.rand(3, 96, 128), torch.rand(3, 128, 96)), [tmp_path / "grid.png"], fps=8, rate=1)
    assert picture_size(tmp_path / "grid.png") == (2 * 132 + 4, 132 + 4)


# imageio leaves its pipes to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("channels", [1, 3])
def test_videos_play(tmp_path: Path, channels: int) -> None:
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    level = torch.linspace(0.1, 0.9, 6).reshape(1, 6, 1, 1, 1)
    videos = level.expand(2, 6, channels, 32, 48)
    files = [tmp_path / "new" / f"v-{i}.mp4" for i in range(2)]
    save_samples(videos, files, fps=12, rate=1)
    for path in files:
        frames = imageio.imread(path, plugin="FFMPEG")
        assert frames.shape == (6, 32, 48, 3)
        np.testing.assert_allclose(frames.mean((1, 2, 3)) / 255, level.flatten().numpy(), atol=0.03)
        assert imageio.immeta(path, plugin="FFMPEG")["fps"] == 12
    assert sorted(files) == sorted((tmp_path / "new").iterdir())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", list(AUDIO))
def test_sounds_of_every_pipeline_are_saved_as_fast_as_they_are(name: str) -> None:
    """Their decoders spell the samples a second in two ways."""
    pipe = AUDIO[name].pipe()
    check_kind(Path("x.wav"), signature(pipe.__call__).parameters)
    rates = {"StableAudioPipeline": 4, "StableAudio3Pipeline": 16, "AceStepPipeline": 50}
    assert sampling_rate(pipe) == rates.get(name, 24_000)


def test_a_pipeline_without_a_decoder_has_the_usual_rate() -> None:
    """Such as PRX's that draws pixels."""
    assert sampling_rate(SimpleNamespace(transformer=None)) == USUAL_RATE


def test_sounds_are_pcm(tmp_path: Path) -> None:
    sound = torch.tensor([[0.0, 0.5, 1.0, 2.0], [0.0, -0.5, -1.0, float("-inf")]])
    save_samples(sound[None], [tmp_path / "s.wav"], fps=1, rate=16_000)
    with wave.open(str(tmp_path / "s.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 16_000)
        numbers = np.frombuffer(file.readframes(4), "<i2").reshape(4, 2)
    assert numbers.T.tolist() == [[0, 16384, 32767, 32767], [0, -16384, -32767, -32767]]


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("x.png", {"prompt", "num_frames"}, r"makes videos, not pictures; end --out in \.mp4"),
        ("x.wav", {"prompt", "num_frames"}, r"makes videos, not sounds; end --out in \.mp4"),
        ("x.mp4", {"prompt", "audio_end_in_s"}, r"makes sounds, not videos; end --out in \.wav"),
        ("x.mp4", {"prompt", "height"}, r"makes pictures, not videos; end --out in \.png"),
    ],
)
def test_the_name_says_what_the_pipeline_makes(name: str, parameters: set[str], said: str) -> None:
    with pytest.raises(CachesmithError, match=said):
        check_kind(Path(name), parameters)


def test_names_that_do(tmp_path: Path) -> None:
    check_kind(Path("x.mp4"), {"num_frames"})
    check_kind(Path("x.wav"), {"audio_end_in_s"})
    check_kind(Path("x.webp"), {"height"})
