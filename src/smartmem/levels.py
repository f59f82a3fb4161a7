"""The optimization levels, each the one before it plus one idea. All give the same numbers."""

LEVELS = ("naive", "fuse", "eliminate", "layout", "full")
