"""Studies: arms x seeds from one file, each run an ordinary `wmtp train`, and what may be said of the difference.

settings    the file, and the arms and runs that it means
budget      from tokens, FLOPs or seconds to steps; what a run spent
running     runs as child processes: resumable, failures isolated
results     what a finished run left, as figures
analysis    intervals, tests, curves, sentences
tables      the terminal's view
"""
