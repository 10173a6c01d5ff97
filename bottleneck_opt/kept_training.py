"""How a training is kept: its checkpoint has a place in the cache, and it goes on from there by itself."""

from __future__ import annotations

from bottleneck_opt.fingerprints import fingerprint
from bottleneck_opt.keeping import Cache
from bottleneck_opt.recovery import Recovery
from bottleneck_opt.recovery.checkpoint import Spare

STAGE = "recover"
_LOSS = "is not kept: loss= is a function of yours, of which nobody can tell whether it is still the same"


def find_spare(cache: Cache, key: str, recovery: Recovery) -> Spare | None:
    """Where a training is kept; None where nothing is, or where its options name a checkpoint.

    Args:
        cache: The folder.
        key: Fingerprint of the weights that training starts from.
        recovery: Its options.
    """
    if recovery.checkpoint is not None:
        return None
    place = cache.find_place(STAGE, fingerprint(key, recovery.describe()), ".safetensors")
    if place is None:
        return None
    if recovery.loss is not None:
        cache.tell_lost(STAGE, _LOSS)
        return None
    return Spare(
        place,
        tell_read=lambda step: cache.tell_read(STAGE, place, f"from step {step} of {recovery.steps}"),
        tell_lost=lambda error: cache.tell_lost(STAGE, f"could not be kept or used: {error}"),
    )
