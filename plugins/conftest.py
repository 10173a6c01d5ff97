"""Where lightning is missing, its plugin is not imported; where it is there, so is what it needs of torchvision."""

from __future__ import annotations

import importlib
import importlib.util

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("lightning") is None:
    collect_ignore_glob.append("bottleneck-opt-lightning/bottleneck_opt_lightning/*")
else:
    importlib.import_module("tests.torchvision_models")  # declares the operators that its torchvision may miss
