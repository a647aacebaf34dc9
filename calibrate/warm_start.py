"""Starting from an earlier policy, without having fitted on what is measured last."""

from collections.abc import Sequence

from cachesmith.policies import Policy, PolicyError
from cachesmith.sampling.requests import Prompt, Split, requests_digest, shares_prompts


def check_earlier(earlier: Policy, prompts: Sequence[Prompt], parts: Split) -> None:
    """Raise `PolicyError` if `earlier` may have been fitted on what `parts` hold out; without a record it was not."""
    record = earlier.document.calibration
    if record is None:
        return
    if not shares_prompts(prompts) and record.heldout_prompts != requests_digest(parts.heldout):
        raise PolicyError(
            "the earlier policy held out other prompts, so it may be fitted on those held out now; "
            "use its prompts file, --fitting and --heldout, or leave it out"
        )
    if set(record.fitting_seeds) & {request.seed for request in parts.heldout}:
        raise PolicyError(
            "the earlier policy was fitted on seeds that are held out now; change --seed, or leave it out"
        )


def origin(earlier: Policy | None) -> tuple[str, ...]:
    """What a calibration's record says of the policy it started from."""
    return () if earlier is None else (f"earlier policy: {earlier.id}",)
