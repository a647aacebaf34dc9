"""`python -m tests.runtime.campaign --requests 10000 --seed 0` runs a campaign and prints its figures."""

import argparse

from tests.runtime.campaign.run import campaign


def main() -> None:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600)
    args = parser.parse_args()
    record = campaign(args.requests, args.seed, args.seconds, progress=True)
    print(f"{record.outcomes.total()} requests:", dict(record.outcomes))
    for table in (record.by_event, record.covered):
        print("\n".join(f"  {count:6d} {what}" for what, count in sorted(table.items(), key=str)))
    for fault in record.faults:
        print("FAULT", fault)


if __name__ == "__main__":
    main()
