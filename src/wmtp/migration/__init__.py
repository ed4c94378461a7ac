"""`wmtp migrate`: the earlier system's config and recipe as ours.

keys        what became of every key of theirs: a table, which docs/migrate.md shows
conversion  two files in, two or three out, and a list of what has no counterpart
"""

from wmtp.migration.conversion import Migration, migrate

__all__ = ["Migration", "migrate"]
