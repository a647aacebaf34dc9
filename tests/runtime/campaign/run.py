"""A campaign: scenarios from consecutive seeds.

A scenario is one pipeline under a policy and what a server does with it: requests of all kinds that end or are stopped
anywhere, other pipelines and threads on the same transformer, copies, workers, replaced schedulers, LoRA, offloading,
casting, compilation, other tools' caches and wrappers, nested contexts; on the host's and the accelerator's branch of
the clock. A picture is right if it is the policy's or, where the event says so, uncached and told to be.
"""

import time
import traceback

from tests.runtime.campaign.events import EVENTS
from tests.runtime.campaign.scenario import Record, Scenario


def campaign(requests: int, seed: int, seconds: float, progress: bool = False) -> Record:
    """Run scenarios until so many requests were made, or so many seconds passed."""
    record = Record()
    begun = told = time.monotonic()
    while record.outcomes.total() < requests and time.monotonic() < begun + seconds:
        scenario = Scenario(seed, record)
        try:
            scenario.run(EVENTS)
        except Exception as error:
            scenario.fault(f"{error!r} {traceback.format_exc()[-500:]}")
        seed += 1
        if progress and time.monotonic() > told + 30:
            told = time.monotonic()
            line = f"{record.outcomes.total()} requests, {len(record.faults)} faults, next seed {seed}"
            print(f"{line}, {told - begun:.0f} s", dict(record.outcomes), flush=True)
            for fault in record.faults[-1:]:
                print("  ", fault, flush=True)
    return record
