"""Where files are, and how they are written so that a crash leaves the old or the new content, never a mixture.

Whatever names a file goes through `place` (what a user wrote) or `safe_join` (a name read from a file), so there is one
place that knows schemes and one that knows escapes. A place is a `pathlib.Path`, or an `ObjectPath` with the same
methods; what these lack is a function here. Nothing is cached.

    paths      locations and places          files    writing, reading, hashing
    objects    a store behind paths          s3       the store that boto3 reaches
    appending  lines that come               lease    a lock in a store          probe    can a store be used
    processes  whose litter is whose
"""

from wmtp.storage.appending import appender
from wmtp.storage.files import (
    Sink,
    blocks,
    copy,
    created,
    drop_torn_line,
    fsync_folder,
    matches,
    remove_objects,
    sha256_file,
    write_atomic,
)
from wmtp.storage.lease import held
from wmtp.storage.objects import ObjectPath, Snapshot, Store, Upload
from wmtp.storage.paths import Place, place, resolve, safe_join
from wmtp.storage.probe import probe
from wmtp.storage.processes import is_gone

__all__ = [
    "ObjectPath",
    "Place",
    "Sink",
    "Snapshot",
    "Store",
    "Upload",
    "appender",
    "blocks",
    "copy",
    "created",
    "drop_torn_line",
    "fsync_folder",
    "held",
    "is_gone",
    "matches",
    "place",
    "probe",
    "remove_objects",
    "resolve",
    "safe_join",
    "sha256_file",
    "write_atomic",
]
