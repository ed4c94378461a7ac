"""What a run logs, and the copy of it in MLflow. The journal is the truth; whatever happens to a store, it has it all.

journal       metrics.jsonl: one object per log point, on its way to the disk when `log` returns
points        lines of a journal -> metrics of a store; a journal read as it grows
delivered     tracking.json: which run of the store this is, how much of the journal it has, which model version
sink          a thread that copies the journal to a store; the loop never waits for it, nor meets its errors
store         what a store must be able to do
mlflow_store  a store in MLflow; the one module that imports mlflow
"""

from wmtp.tracking.journal import Journal, NoJournal, read_journal, told

__all__ = ["Journal", "NoJournal", "read_journal", "told"]
