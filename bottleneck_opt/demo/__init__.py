"""The demonstration: a small network on bundled data, trained, compressed, measured and drawn."""
