"""Tasks: rows made from a seed, with a tokenizer and questions of their own. docs/tasks.md.

base         what a task is
polynomial   arithmetic in F_7[X]/(X^5)    Gloeckle et al. 2024 (arXiv 2404.19737), section 4.2
induction    names in stories              the same, section 4.1
stories      what those stories are told with
"""

from wmtp.tasks.base import PARTS, Question, Role, Task, word_level
from wmtp.tasks.induction import Induction
from wmtp.tasks.polynomial import Polynomial

__all__ = ["PARTS", "Induction", "Polynomial", "Question", "Role", "Task", "word_level"]
