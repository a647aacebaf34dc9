"""The page without a browser: nothing from the network, nothing unescaped, the right numbers."""

import io
import re
import wave
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.calibrate.report.made_up import PROMPT, profile, report, tensor

from cachesmith.calibrate.report.charts import front_figure
from cachesmith.calibrate.report.data import Measurement
from cachesmith.calibrate.report.html import duration, render, write_html
from cachesmith.calibrate.report.media import encode_media, visible_difference
from cachesmith.sampling.metrics import CEILING


class Page(HTMLParser):
    """Collects what elements refer to, and their order."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "poster", "action"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


@cache
def text() -> str:
    return render(report())


def test_nothing_is_loaded_from_anywhere() -> None:
    page = Page(text())
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    assert "link" in page.tags and not {"iframe", "object", "embed"} & set(page.tags)


def test_links_lead_to_parts_of_the_page() -> None:
    page = Page(text())
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)


def test_prompts_are_text() -> None:
    assert PROMPT not in text() and "&lt;script&gt;" in text()
    assert Page(text()).tags.count("script") == 1


def test_break_even_is_what_the_calibration_took_over_what_a_sample_saves() -> None:
    data = report(calibration_seconds=100.0, uncached_seconds=1.0)
    assert data.break_even(profile("a", "picture", 4, 40, seconds=0.6)) == 250
    assert data.break_even(profile("a", "picture", 4, 40, seconds=0.7)) == 334
    assert data.break_even(profile("a", "picture", 4, 40, seconds=1.0)) is None
    row = re.search(r"<th scope=.row.><a href=.#profile-slow.*?</tr>", render(data), re.DOTALL)
    assert row is not None and "never" in row[0]


def test_gpu_hours_are_told_of_gpus_only() -> None:
    assert "4.00 GPU-hours" in render(report(calibration_seconds=7200.0, accelerators=2))
    assert "GPU-hours" not in render(report(accelerators=0))


def test_the_page_is_the_same_every_time() -> None:
    assert render(report()) == text()


def test_lpips_is_a_column_where_it_was_measured() -> None:
    assert ">LPIPS<" not in text()
    data = report()
    measured = tuple(
        replace(p, quality=p.quality.model_copy(update={"lpips": 0.0123})) for p in data.profiles
    )
    assert "0.0123" in render(replace(data, profiles=measured))


def test_a_failed_page_leaves_the_old_one(tmp_path: Path) -> None:
    write_html(tmp_path, report())
    before = (tmp_path / "report.html").read_text()
    with pytest.raises(AttributeError):
        write_html(tmp_path, None)  # type: ignore[arg-type]
    assert (tmp_path / "report.html").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["front_seconds.png", "report.html", "report.json"]


def test_small_pictures_are_kept_to_the_bit() -> None:
    sample = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0)) / 255
    media = encode_media(sample)
    with Image.open(io.BytesIO(media.data)) as image:
        again = torch.tensor(list(image.tobytes())).reshape(20, 30, 3).permute(2, 0, 1) / 255
    assert media.small and media.ratio == 1.5 and torch.equal(again, sample)


def test_large_pictures_are_made_small() -> None:
    media = encode_media(torch.rand(3, 600, 1400))
    with Image.open(io.BytesIO(media.data)) as image:
        assert image.size == (1024, 439)
    assert len(media.data) < 600_000 and not media.small


def test_sound_is_wav() -> None:
    samples = torch.linspace(-1, 1, 100).repeat(2, 1)
    with wave.open(io.BytesIO(encode_media(samples, 8000).data)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 100)
        assert file.readframes(1) == b"\x01\x80\x01\x80"


def test_an_odd_sized_video_is_mp4() -> None:
    media = encode_media(torch.rand(4, 3, 33, 47))
    assert media.kind == "video" and media.data[4:8] == b"ftyp"


def test_what_is_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture"):
        encode_media(torch.zeros(5))


@pytest.mark.parametrize(("apart", "gain"), [(0.3, 2.0), (0.6, 1.0), (0.01, 64.0), (0.0, 256.0)])
def test_differences_are_scaled_to_be_seen(apart: float, gain: float) -> None:
    uncached = tensor("picture", 0)
    shown, found = visible_difference(uncached, uncached - apart)
    assert found == gain and torch.allclose(shown, torch.full_like(shown, min(1, gain * apart)), atol=1e-4)


def test_durations() -> None:
    assert [duration(s) for s in (0.05, 1.5, 600, 9000)] == ["0.05 s", "1.50 s", "10.0 min", "2.5 h"]


def test_what_computed_everything_does_not_stretch_the_front() -> None:
    points = [Measurement("fast", "profile", 5.0, 0.5, 40, 39, 41)]
    known = [Measurement("threshold 0.2", "DBCache", 9.0, 0.9, 57, 56, 58)]
    alike = [Measurement("threshold 0.08", "DBCache", 10.0, 1.1, CEILING, CEILING, CEILING)]
    with_all, without = (front_figure([*points, *known, *more], 1.0).axes[0] for more in (alike, []))
    assert with_all.get_ylim() == without.get_ylim() and with_all.get_xlim() == without.get_xlim()
    exact = front_figure([Measurement("exact", "profile", 10.0, 1.1, CEILING, CEILING, CEILING)], 1.0)
    assert exact.axes[0].get_ylim()[1] > CEILING, "a profile is always shown"
