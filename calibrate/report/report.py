"""The report of a calibration: a Markdown summary, figures, and a sheet of held-out pictures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cachesmith.calibrate.config import CalibrationConfig
from cachesmith.calibrate.cost.ledger import Ledger
from cachesmith.calibrate.report.gather import Outcomes, gather
from cachesmith.calibrate.report.runs import distinct, state_errors, trajectories
from cachesmith.files import replacing
from cachesmith.hub.facts import FACTS_FILE, FRONT, PAGE
from cachesmith.policies import Policy, fixed_mask
from cachesmith.progress import stage
from cachesmith.runtime import apply, distill
from cachesmith.sampling.evaluate import Evaluator
from cachesmith.sampling.metrics import cells, headings, shown
from cachesmith.sampling.pictures import Samples
from cachesmith.sampling.requests import Request
from cachesmith.sampling.sheet import sheet

_SHOWN = 8
"""Held-out samples on the sheet and in the error curves."""

FILES = (
    "report.md", PAGE, FACTS_FILE, FRONT, "front.png", "timeline.png", "errors.png", "sheet.png"
)  # fmt: skip
"""All that a report consists of."""

APPENDIX = {
    "Profiles over full computations": "front.png",
    "Sheet of held-out samples": "sheet.png",
}
"""The Markdown report's figures that the page shows as well."""


def write_report(
    folder: Path,
    policy: Policy,
    ledger: Ledger,
    heldout: Evaluator,
    config: CalibrationConfig,
    outcomes: Outcomes,
) -> Path:
    """Write `report.md` with its pictures, and `report.html`, into `folder` and return it."""
    from cachesmith.calibrate.report import figures
    from cachesmith.calibrate.report.html import write_html

    folder.mkdir(parents=True, exist_ok=True)
    profiles = policy.document.profiles
    points = {name: (p.nfc or 0.0, p.quality.psnr) for name, p in profiles.items() if p.quality is not None}
    shown = heldout.requests[:_SHOWN]
    with stage("report", 2 + len(distinct(policy))) as advance:
        apart, pictures, masks = step_errors(heldout, policy, shown, advance)
        drawn = {
            "front.png": figures.nfc_front_figure(points),
            "timeline.png": figures.timeline_figure(masks),
            "errors.png": figures.error_figure(apart),
        }
        for name, figure in drawn.items():
            figures.save_figure(figure, folder / name)
        with replacing(folder / "sheet.png") as part:
            uncached = {"uncached": heldout.reference[:_SHOWN].image_samples}
            sheet(uncached | pictures, columns=_SHOWN).save(part)
        advance()
    text = summary(policy, config) + f"\n## Cost\n\n{ledger.table()}"
    with replacing(folder / "report.md") as part:
        part.write_text(text, encoding="utf-8")
    appendix = {title: folder / name for title, name in APPENDIX.items() if (folder / name).exists()}
    write_html(folder, gather(policy, heldout, config, outcomes, appendix))
    return folder


def summary(policy: Policy, config: CalibrationConfig) -> str:
    """The Markdown text of the report."""
    document = policy.document
    metrics = shown([profile.quality for profile in document.profiles.values()])
    lines = [
        f"# Calibration of {document.name}",
        "",
        f"Policy `{policy.id}`. {config.steps} steps; {_fitting(policy)} fitting and {config.heldout} held-out "
        f"samples; seed {config.seed}. PSNR: against the uncached picture of the same seed.",
        "",
        f"| profile | NFC | steps / NFC | {' | '.join(headings(metrics))} | found by |",
        f"| --- | ---: | ---: | {'---: | ' * len(headings(metrics))}--- |",
    ]
    entries = (entry.removeprefix("profiles/") for entry in _fitted(policy) if entry.startswith("profiles/"))
    sources = dict(entry.split(": ", 1) for entry in entries)
    for name, profile in document.profiles.items():
        q = profile.quality
        if q is not None:
            lines.append(
                f"| {name} | {profile.nfc:.2f} | {profile.speedup:.2f} | {' | '.join(cells(q, metrics))} | "
                f"{sources.get(name, '')} |"
            )
    for title, name in (
        ("Speed and quality", "front.png"),
        ("Computed steps", "timeline.png"),
        ("Error per step", "errors.png"),
        ("Held-out pictures", "sheet.png"),
    ):
        lines += ["", f"## {title}", "", f"![{title}]({name})"]
    return "\n".join(lines) + "\n"


def step_errors(
    heldout: Evaluator, policy: Policy, shown: Sequence[Request], advance: Any
) -> tuple[dict[str, list[float]], dict[str, Samples], dict[str, str]]:
    """Relative error of the sampler's state after every step, pictures, and computed steps, for every profile.

    The errors are means over the samples.
    """
    uncached = trajectories(heldout.renderer, shown)
    advance()
    apart: dict[str, list[float]] = {}
    pictures: dict[str, Samples] = {}
    masks: dict[str, str] = {}
    for name in distinct(policy):
        with apply(heldout.renderer.pipe, policy, name) as session:
            cached = trajectories(heldout.renderer, shown)
        pictures[name] = tuple(each.drawn for each in cached)
        samples = [state_errors(a, b) for a, b in zip(uncached, cached, strict=True)]
        apart[name] = [fmean(step) for step in zip(*samples, strict=True)]
        mask = fixed_mask(policy.profile(name))
        masks[name] = mask or distill(session.stats.trace, len(uncached[0].states)).mask
        advance()
    return apart, pictures, masks


def _fitting(policy: Policy) -> int:
    record = policy.document.calibration
    return 0 if record is None else record.fitting_size


def _fitted(policy: Policy) -> tuple[str, ...]:
    record = policy.document.calibration
    return () if record is None else record.fitted
