"""The model card of a policy, generated from what the policy and its report know."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachesmith.hub.facts import FRONT, PAGE, Facts
from cachesmith.hub.usage import usage
from cachesmith.policies import Document, Policy, Profile, Quality

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TAGS = ("cachesmith", "diffusers", "feature-caching")

SHOWN_SIZES = 8
"""Of a policy for many sizes, so many are named where no report says which they are."""


@dataclass(frozen=True)
class Base:
    """The model that a policy was calibrated on, as a repository of the Hub, where the user says so."""

    model: str | None = None
    revision: str | None = None


def card(repo_id: str, policy: Policy, base: Base, facts: Facts | None, pictures: bool) -> str:
    """Return the text of README.md. pictures: whether the front is uploaded beside it."""
    from huggingface_hub import ModelCard

    header = _header(policy.document, base).to_yaml()
    body = "\n".join(_body(repo_id, policy, base, facts, pictures))
    return str(ModelCard(f"---\n{header}\n---\n\n{body}\n"))


def _header(document: Document, base: Base) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    return ModelCardData(
        library_name="cachesmith",
        tags=list(TAGS),
        base_model=base.model,
        base_model_revision=base.revision,
        model_name=document.name,
        eval_results=list(_results(document)) or None,
    )


def _results(document: Document) -> "Iterator[EvalResult]":
    from huggingface_hub import EvalResult

    record = document.calibration
    for name, profile in document.profiles.items():
        quality = profile.quality
        if quality is None or record is None:
            continue
        measured = {"psnr": quality.psnr, "ssim": quality.ssim, "lpips": quality.lpips}
        for metric, value in measured.items():
            if value is not None:
                yield EvalResult(
                    task_type=_task(quality),
                    dataset_type="held-out",
                    dataset_name=f"{record.heldout_size} held-out samples, prompts {record.heldout_prompts[:16]}",
                    dataset_config=name,
                    metric_type=metric,
                    metric_value=round(value, 4),
                    metric_name=f"{metric.upper()} against uncached, profile {name}",
                )


def _task(quality: Quality) -> str:
    """What the model draws, by the metrics that take it."""
    if "worst_frame" in quality.metrics:
        return "text-to-video"
    return "text-to-audio" if quality.ssim is None else "text-to-image"


def _body(repo_id: str, policy: Policy, base: Base, facts: Facts | None, pictures: bool) -> Iterator[str]:
    document = policy.document
    model = f"[{base.model}](https://huggingface.co/{base.model})" if base.model else _model(document)
    yield f"# {document.name}"
    yield ""
    yield f"A cachesmith policy for {model}: it says which steps of sampling are computed and how"
    yield "the others are forecast, so that pictures take a fraction of the time. It holds no weights of the model."
    yield ""
    yield from _usage(repo_id, document, base)
    yield from _profiles(document, facts)
    if pictures:
        yield from ("", f"![Quality over {'measured seconds' if facts else 'full computations'}]({FRONT})")
    yield from ("", "## Calibrated for", "")
    yield from (f"- {name}: {value}" for name, value in _conditions(policy, base, facts).items())
    if facts is not None:
        yield from (
            "",
            "## To repeat it",
            "",
            "```sh",
            facts.command,
            "```",
            "",
            f"[The whole report]({PAGE})",
        )


def _usage(repo_id: str, document: Document, base: Base) -> Iterator[str]:
    names = ", ".join(f"`{name}`" for name in document.profiles)
    task = next((_task(p.quality) for p in document.profiles.values() if p.quality), "text-to-image")
    yield "```python"
    yield from usage(repo_id, document, base.model or "the base model", base.revision, task)
    yield from (
        "```",
        "",
        f"Profiles: {names}. A pipeline that differs from the one below is told or refused.",
        "",
    )


def _profiles(document: Document, facts: Facts | None) -> Iterator[str]:
    heads = ["profile", "NFC", "steps ÷ NFC", "PSNR dB, mean (95 %)", "worst sample", "SSIM", "LPIPS"]
    timed = ["seconds a sample", "measured speed-up"] if facts else []
    yield "## Profiles"
    yield ""
    yield f"| {' | '.join([*heads, *timed])} |"
    yield f"| --- |{' ---: |' * (len(heads) + len(timed) - 1)}"
    for name, profile in document.profiles.items():
        yield f"| {' | '.join([name, *_quality(name, profile, facts), *_times(name, facts)])} |"
    yield ""
    yield "NFC: full computations of the transformer a picture. Quality is against the uncached picture of the same"
    yield "prompt and seed, on samples that the calibration did not see."


def _quality(name: str, profile: Profile, facts: Facts | None) -> list[str]:
    quality = profile.quality
    cells = [_number(profile.nfc, 2), _number(profile.speedup, 2)]
    if quality is None:
        return [*cells, *("–",) * 4]
    known = None if facts is None else facts.profiles.get(name)
    return [
        *cells,
        f"{quality.psnr:.2f} ({quality.psnr_low:.2f} to {quality.psnr_high:.2f})",
        _number(quality.worst("psnr") if known is None else known.worst, 2),
        _number(quality.ssim, 4),
        _number(quality.lpips, 4),
    ]


def _times(name: str, facts: Facts | None) -> list[str]:
    if facts is None:
        return []
    known = facts.profiles.get(name)
    return (
        ["–", "–"]
        if known is None
        else [f"{known.seconds:.3g}", f"{facts.uncached_seconds / known.seconds:.2f}"]
    )


def _conditions(policy: Policy, base: Base, facts: Facts | None) -> dict[str, str]:
    document, record = policy.document, policy.document.calibration
    told = {"policy": f"`{policy.id}`"}
    if base.model:
        told["base model"] = f"{base.model}, revision {base.revision or 'not said'}"
    if document.model is not None:
        told["network"] = f"{_model(document)}, configuration sha256 `{document.model.config_hash[:16]}`"
    if document.sampler is not None:
        told["sampler"] = f"{document.sampler.scheduler}, {document.sampler.steps} steps"
        told["guidance"] = ", ".join([document.sampler.guidance, *document.sampler.scales_in_words])
        if sizes := document.sampler.sizes:
            more = ", ..." if len(sizes) > SHOWN_SIZES else ""
            told["size"] = ", ".join(map(str, sizes[:SHOWN_SIZES])) + more
    if record is not None:
        told["precision"] = record.dtype
        told["prompts"] = (
            f"fitting sha256 `{record.fitting_prompts[:16]}`, held out `{record.heldout_prompts[:16]}`"
        )
        told["versions"] = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    if facts is not None:
        told |= {
            name: value for name, value in facts.facts.items() if name in ("hardware", "size", "samples")
        }
        hours = facts.calibration_seconds / 3600
        gpu = f", {hours * facts.accelerators:.2f} GPU-hours" if facts.accelerators else ""
        told["cost of the calibration"] = f"{hours:.2f} hours{gpu}"
    return told


def _model(document: Document) -> str:
    if document.model is None:
        return "any model"
    return f"{document.model.transformer} of {document.model.blocks} blocks in {document.model.pipeline}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
