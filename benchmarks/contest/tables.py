"""Tables of a race: the best setting of every method within each budget, and everything."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from contest.ours import CALIBRATED
from contest.race import Result

HEADINGS = ("family", "setting", "NFC", "work", "PSNR dB (95 %)", "SSIM", "latent error")
OPTIONAL = {"lpips": "LPIPS", "seconds": "seconds"}
LEAD, LEAD_IN_TIME = "calibrated is better by, dB", "by a profile that takes no more time, dB"


def best(results: Iterable[Result], budget: float) -> list[Result]:
    """Return each method's best setting within a budget by PSNR, best first; uncached is no contestant."""
    found: dict[str, Result] = {}
    for result in results:
        if result.within(budget) and result.family != "uncached":
            before = found.get(result.method)
            if before is None or result.psnr > before.psnr:
                found[result.method] = result
    return sorted(found.values(), key=lambda result: -result.psnr)


def families(results: Sequence[Result]) -> list[Result]:
    """Return the first result of every family, of results that are sorted best first."""
    found: dict[str, Result] = {}
    for result in results:
        found.setdefault(result.family, result)
    return list(found.values())


def report(results: Sequence[Result], budgets: Sequence[int], conditions: str) -> str:
    """Return the whole report as Markdown."""
    parts = [conditions, _summary(results, budgets)]
    parts += [f"## At most {budget} full computations\n\n{_budget(results, budget)}" for budget in budgets]
    parts.append(f"## Every setting\n\n{_table(sorted(results, key=_order), results)}")
    failed = [result for result in results if result.error]
    if failed:
        lines = "".join(f"| {r.family} | {r.name} | {_escaped(r.error or '')} |\n" for r in failed)
        parts.append(f"## What did not run\n\n| family | setting | error |\n| --- | --- | --- |\n{lines}")
    return "\n".join(parts)


def _summary(results: Sequence[Result], budgets: Sequence[int]) -> str:
    """The best of every family at every budget, in dB."""
    columns = {budget: {r.family: r for r in families(best(results, budget))} for budget in budgets}
    names = dict.fromkeys(r.family for r in results if r.family != "uncached")
    lines = ["| best PSNR, dB | " + " | ".join(f"NFC ≤ {b}" for b in budgets) + " |\n"]
    lines.append("| --- |" + " --- |" * len(budgets) + "\n")
    for name in names:
        cells = (_short(column.get(name)) for column in columns.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _short(result: Result | None) -> str:
    return "-" if result is None else f"{result.psnr:.2f} ({_escaped(result.name)}, NFC {result.nfc:.2f})"


def _budget(results: Sequence[Result], budget: int) -> str:
    chosen = best(results, budget)
    ours = [r for r in results if r.family == CALIBRATED and r.within(budget)]
    leaders = {r.name for r in families(chosen)}
    return _table(chosen, results, leaders, ours)


def _table(
    shown: Sequence[Result],
    every: Sequence[Result],
    bold: Collection[str] = (),
    ours: Sequence[Result] = (),
) -> str:
    optional = [name for name in OPTIONAL if any(getattr(r, name) is not None for r in every)]
    rivals = _rivals(ours, "seconds" in optional)
    heads = [*HEADINGS, *(OPTIONAL[name] for name in optional), "cache MiB", *rivals]
    lines = [f"| {' | '.join(heads)} |\n| --- | --- |{' ---: |' * (len(heads) - 2)}\n"]
    for result in shown:
        if result.error is None:
            cells = _cells(result, optional, result.name in bold)
            cells += [_lead(result, found(result)) for found in rivals.values()]
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def _cells(result: Result, optional: Sequence[str], bold: bool) -> list[str]:
    name = _escaped(result.name)
    return [
        result.family,
        f"**{name}**" if bold else name,
        f"{result.nfc:.2f}",
        f"{result.work:.2f}",
        f"{result.psnr:.2f} ({result.psnr_low:.2f} to {result.psnr_high:.2f})",
        f"{result.ssim:.4f}",
        f"{result.latent_error:.4f}",
        *(_number(getattr(result, name)) for name in optional),
        f"{result.cache_bytes / 2**20:.1f}",
    ]


def _rivals(ours: Sequence[Result], timed: bool) -> dict[str, Callable[[Result], Sequence[Result]]]:
    """Column -> the profiles that a row is compared with in it."""
    if not ours:
        return {}
    return {LEAD: lambda _: ours} | ({LEAD_IN_TIME: partial(_no_slower, ours)} if timed else {})


def _lead(result: Result, ours: Sequence[Result]) -> str:
    if result.family == CALIBRATED:
        return ""
    return f"{max(r.psnr for r in ours) - result.psnr:+.2f}" if ours else "-"


def _no_slower(ours: Sequence[Result], result: Result) -> list[Result]:
    return [r for r in ours if r.seconds and result.seconds and r.seconds <= result.seconds]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _order(result: Result) -> tuple[str, float]:
    return result.family, result.nfc


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
