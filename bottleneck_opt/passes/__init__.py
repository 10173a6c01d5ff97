"""The built-in passes, one a file. They enter through the same entry points as anybody's."""
