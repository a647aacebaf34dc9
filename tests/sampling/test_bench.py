import json
from io import StringIO
from typing import Any

import diffusers
import pytest
import torch
from rich.console import Console
from tests.tiny import tiny_flux
from tests.tiny_folder import open_tiny, save_tiny

from cachesmith.policies import PRESETS, Quality, Summary
from cachesmith.sampling.bench import UNCACHED, BenchRow, bench, bench_headings, markdown, play, table
from cachesmith.sampling.pictures import Pictures
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request
from cachesmith.sampling.sheet import grid, sheet, tile
from cachesmith.sampling.timing import elapsed, interleaved, machine, medians

STEPS = 10
REQUESTS = [Request({"class_labels": label}, seed) for seed, label in enumerate((3, 8, 1))]


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    pipe = open_tiny(save_tiny(tmp_path_factory.mktemp("pipeline")))
    return Renderer(pipe, STEPS, batch=2, guidance_scale=1.5)


def entrants() -> dict[str, Any]:
    return {
        "fora": (PRESETS["fora"](interval=5), None),
        "every step": (PRESETS["uncached"](), None),
    }


def test_bench_measures_everything_against_uncached(renderer: Renderer) -> None:
    kept: dict[str, Pictures] = {}
    rows = bench(renderer, entrants(), REQUESTS, repeats=2, keep=kept.__setitem__)
    assert [row.name for row in rows] == [UNCACHED, "fora", "every step"] == list(kept)
    uncached, fora, every = rows
    assert (uncached.nfc, uncached.psnr, uncached.speedup, uncached.efficiency) == (STEPS, 100.0, 1.0, 1.0)
    assert (fora.nfc, every.nfc) == (2.0, STEPS)
    assert fora.psnr < 100 and fora.cache_bytes > 0 and fora.quality.latent_error > 0
    assert every.psnr == 100.0 and every.quality.latent_error == 0.0
    assert fora.efficiency == pytest.approx(fora.speedup * 2 / STEPS)
    assert fora.speedup == pytest.approx(uncached.seconds / fora.seconds)
    assert all(len(row.runs) == 2 for row in rows)


def test_a_run_that_begins_in_the_middle_is_counted_as_it_is() -> None:
    """Of ten steps, a picture that is kept by half goes through five."""
    flux = tiny_flux()
    names = ("scheduler", "vae", "transformer", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.FluxImg2ImgPipeline(**{name: getattr(flux, name) for name in names})
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    arguments = {
        "image": torch.rand(1, 3, 16, 16, generator=noise), "height": 16, "width": 16,
        "prompt_embeds": torch.randn(1, 3, 32, generator=noise),
        "pooled_prompt_embeds": torch.randn(1, 32, generator=noise),
    }  # fmt: skip
    entered = {"line": (PRESETS["taylorseer-lite"](interval=2, order=1), None)}
    rows = bench(Renderer(pipe, STEPS, 1, strength=0.5), entered, [Request(arguments, 1)], repeats=1)
    assert [row.nfc for row in rows] == [5.0, 3.0]
    assert rows[1].efficiency == pytest.approx(rows[1].speedup * 3 / 5)


def test_uncached_comes_first_wherever_it_is_entered(renderer: Renderer) -> None:
    late = {"fora": (PRESETS["fora"](), None), UNCACHED: None}
    assert [row.name for row in bench(renderer, late, REQUESTS[:1], repeats=1)] == [UNCACHED, "fora"]


def test_a_sample_does_not_depend_on_its_batch(renderer: Renderer) -> None:
    together, _ = play(renderer, None, REQUESTS)
    alone, _ = play(renderer, None, REQUESTS[1:2])
    torch.testing.assert_close(together.images[1:2], alone.images, rtol=0, atol=1e-5)
    assert together.latents.shape == (3, 2, 8, 8)


QUALITY = Quality(
    samples=2, psnr=31.25, psnr_low=30.0, psnr_high=32.0, ssim=0.98, latent_error=0.05,
    metrics={"psnr": Summary(mean=31.25, low=30.0, high=32.0, worst=29.5)},
)  # fmt: skip


def row(name: str = "fora", **changes: Any) -> BenchRow:
    values: dict[str, Any] = {
        "nfc": 10.0, "quality": QUALITY, "seconds": 2.0, "speedup": 4.0, "efficiency": 0.8,
        "cache_bytes": 2**20, "fallbacks": {"why": 2}, "runs": (2.0, 2.1),
    }  # fmt: skip
    return BenchRow(name, **(values | changes))


def test_rows_as_json() -> None:
    found = json.loads(json.dumps(row().as_json()))
    assert (found["fallbacks"], found["psnr"], found["ssim"]) == ({"why": 2}, 31.25, 0.98)
    assert found["metrics"]["psnr"]["worst"] == 29.5


def test_rows_as_markdown() -> None:
    rows = [row(UNCACHED), row()]
    lines = markdown(rows).splitlines()
    assert len(lines) == 4 and all(line.count("|") == len(bench_headings(rows)) + 1 for line in lines)
    assert lines[2] == "| uncached | 10.00 | - | - | - | - | 2.00 | 4.00x | 0.80 | 1.00 | 2 |"
    assert lines[3].startswith("| fora | 10.00 | 31.25 | 29.50 | 0.9800 | 0.0500 | 2.00 |")


def test_rows_as_terminal_table() -> None:
    console = Console(file=StringIO(), width=160)
    console.print(table([row()]))
    assert isinstance(console.file, StringIO) and "31.25" in console.file.getvalue()


def test_turns_are_interleaved() -> None:
    order: list[str] = []

    def call(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds = interleaved({"a": lambda: call("a"), "b": lambda: call("b")}, repeats=3)
    assert order == list("ababab")
    assert seconds == {"a": (1.0, 3.0, 5.0), "b": (2.0, 4.0, 6.0)}
    assert medians(seconds) == {"a": 3.0, "b": 4.0}


def test_elapsed_and_machine() -> None:
    assert elapsed(lambda: sum(range(1000))) > 0
    assert machine()["torch"] == str(torch.__version__)


def test_sheet_has_a_row_and_a_difference_for_every_contestant() -> None:
    images = torch.rand(5, 1, 32, 32)
    drawn = sheet({"uncached": images, "fast": images, "slow": 1 - images}, columns=3)
    assert drawn.height == 5 * (96 + 4) + 4
    assert drawn.width > 3 * (96 + 4)
    # the difference of equal pictures is black: the last tile of the third row
    assert drawn.getpixel((drawn.width - 50, 2 * 100 + 50)) == (0, 0, 0)


def test_pictures_are_enlarged_without_smoothing() -> None:
    image = torch.zeros(3, 2, 2)
    image[0, 0, 0] = 1.0
    drawn = tile(image, smallest=96)
    assert drawn.size == (96, 96)
    assert drawn.getpixel((47, 47)) == (255, 0, 0) and drawn.getpixel((48, 47)) == (0, 0, 0)
    assert tile(image).size == (2, 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels_is_drawn(channels: int) -> None:
    assert tile(torch.full((channels, 4, 4), torch.nan)).getpixel((0, 0)) == (0, 0, 0)


def test_grid_is_nearly_square() -> None:
    assert grid(torch.rand(5, 3, 96, 96)).size == (3 * 100 + 4, 2 * 100 + 4)


def test_lpips_is_a_column_where_it_was_measured(renderer: Renderer) -> None:
    rows = bench(
        renderer, entrants(), REQUESTS, repeats=1, lpips=lambda a, b: (a - b).abs().flatten(1).mean(1)
    )
    distances = [row.quality.lpips for row in rows]
    assert distances[0] == 0.0 and distances[1] is not None and distances[1] > 0
    heads, _, uncached, fora, _ = (
        [c.strip() for c in line.split("|")] for line in markdown(rows).splitlines()
    )
    place = heads.index("LPIPS")
    assert (uncached[place], fora[place]) == ("-", f"{distances[1]:.4f}")
