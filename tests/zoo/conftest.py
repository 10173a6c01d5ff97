"""The families import large packages, each for the process that needs it: not for collecting tests."""

collect_ignore_glob = ["families/*"]
