"""``python -m bottleneck_opt``."""

from bottleneck_opt.cli import main

main()
