"""What runs inside the disposable processes: standard library only, nothing of the rest of the package.

The zygote puts the folder above this one on its path for a moment and imports it as the top-level package `_jail`, so
neither `wmtp` nor anything a user installed is ever loaded beside untrusted code. Imports in here are relative.
"""
