"""`report.html`: one file that shows everything and loads nothing; `report.json` and the front for the Hub's card."""

from importlib import resources
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cachesmith.calibrate.report import charts
from cachesmith.calibrate.report.charts import Chart
from cachesmith.calibrate.report.data import ProfileReport, ReportData
from cachesmith.files import replacing
from cachesmith.hub.facts import FACTS_FILE, FRONT, PAGE, Facts, ProfileFacts


class ProfileCharts(NamedTuple):
    """The charts of one profile; `losses` is None where nothing was fitted."""

    histogram: Chart
    errors: Chart
    losses: Chart | None


def write_html(folder: Path, data: ReportData) -> Path:
    """Write `report.html`, and what `cachesmith push` reads, into `folder`; return the page's path.

    Every file is written whole or not at all.
    """
    page, front = render(data), charts.front_figure(data.measurements, data.uncached_seconds)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / FRONT) as part:
        front.savefig(part, dpi=200)
    with replacing(folder / FACTS_FILE) as part:
        part.write_text(_facts(data).model_dump_json(indent=1) + "\n", encoding="utf-8")
    with replacing(folder / PAGE) as part:
        part.write_text(page, encoding="utf-8")
    return folder / PAGE


def _facts(data: ReportData) -> Facts:
    """Return what of the report is no picture."""
    return Facts(
        policy=data.policy_id,
        facts=dict(data.facts),
        calibration_seconds=data.calibration_seconds,
        accelerators=data.accelerators,
        command=data.command,
        uncached_seconds=data.uncached_seconds,
        measured_on=data.measured_on,
        profiles={p.name: ProfileFacts(seconds=p.seconds, psnr=p.psnr) for p in data.profiles},
    )


def render(data: ReportData) -> str:
    """Return the page. Prompts and names are escaped: they are anybody's text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    return environment.from_string(_read("report.html.j2")).render(
        data=data,
        front=charts.front(data.measurements, data.uncached_seconds),
        charts={profile.name: _charts(profile) for profile in data.profiles},
        style=Markup(_read("report.css")),
        script=Markup(_read("report.js")),
    )


def duration(seconds: float) -> str:
    """Write a duration as people say it: `0.42 s`, `7.3 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 1 else f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _charts(profile: ProfileReport) -> ProfileCharts:
    quality = profile.quality
    return ProfileCharts(
        charts.histogram(profile.psnr, quality.psnr_low, quality.psnr_high),
        charts.error_chart({sample.rank: sample.errors for sample in profile.samples}, profile.mask),
        charts.losses(profile.losses) if profile.losses else None,
    )


def _read(name: str) -> str:
    """Read a part of the page that ships with the package: text of ours, so it is safe as it is."""
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")
