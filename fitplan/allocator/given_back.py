"""What replays of other jobs say of a job that runs only if the allocator gives back some of its cache."""

from fitplan.resources import read_json

WHERE = "allocator/given-back.json"
"""Written by ``benchmarks/given_back.py``, with the jobs and the versions that were traced."""


def jobs_that_gave_back(share: float, *, expandable_segments: bool) -> tuple[int, int]:
    """Of the replayed jobs those that could give back this share of their cached bytes or more, and all of them."""
    kept = [
        row["kept_bytes"] / row["cached_bytes"]
        for row in read_json(WHERE)["rows"]
        if row["expandable_segments"] is expandable_segments
    ]
    return sum(1 - one >= share for one in kept), len(kept)
