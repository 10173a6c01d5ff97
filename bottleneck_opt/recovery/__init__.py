"""Recovery without labels: train a rewritten model to give the outputs of the original one, on unlabelled data.

The original is the teacher. A part of the data is held out; the weights that do best there are kept, and the ones
before training when none does better. Nothing here needs a label, and nothing is drawn from the global random state.
"""

from bottleneck_opt.recovery.distilling import distil
from bottleneck_opt.recovery.examples import check_examples
from bottleneck_opt.recovery.options import Recovery, read_recovery
from bottleneck_opt.recovery.recovering import list_recovery_notes, recover, teach

__all__ = ["Recovery", "check_examples", "distil", "list_recovery_notes", "read_recovery", "recover", "teach"]
