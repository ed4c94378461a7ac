"""One self-contained HTML page of one or several runs. Pure: run folders in, one file out; no torch, no network.

reading      a run folder -> what the page shows of it, and notes on what is missing
journal      metrics.jsonl -> columns, thinned
study        study.json -> what the page shows of arms over seeds
evaluations  eval/*.json -> what is recognised of them
saved        checkpoints and what the tracker took -> bytes
page         everything -> HTML: the assets, and the data as escaped JSON
"""

from wmtp.report.page import default_place, write_page
from wmtp.report.saved import saved_by

__all__ = ["default_place", "saved_by", "write_page"]
