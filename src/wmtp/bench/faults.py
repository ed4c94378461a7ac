"""A supervised training that is killed again and again: is it, in the end, the training that nobody disturbed?

    wmtp bench faults --kills 20 --ranks 1 --json faults.json
    wmtp bench faults --in-a-row 100 --ranks 2

A small model is trained twice with the same command under a supervisor: once undisturbed, once while SIGKILL hits one
of its processes (a random rank) again and again. A quarter of the kills come while the process starts, the others at
a random instant of training, steps and saves alike (a checkpoint every 3 steps, so saves are frequent). A kill that
leaves an unfinished checkpoint behind hit a save; these are counted. Then the two run folders are compared: the final
weights and the journal without its times, to the last bit; and what is left beside whole checkpoints is counted.

With `--in-a-row N` nothing is killed: N short runs, each with steps, a validation and checkpoints, one after another.
All must end with exit code 0 and complain of nothing: a race at the exit of a process group shows in one of many.

Exit code 1 if anything differs or is left over, or a run in a row did not end well. benchmarks/README.md in the
repository says how to read the figures.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wmtp import outcome
from wmtp.bench import measuring
from wmtp.errors import WmtpError
from wmtp.storage import is_gone, sha256_file
from wmtp.supervisor import Options, newest_step, supervise
from wmtp.tracking import read_journal

VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes away."""
EVERY = 3
"""Steps between checkpoints."""
STEPS_PER_KILL, LEAST_STEPS = 30, 150
SHORT_STEPS = 6
"""Of a run in a row."""
COMPLAINT = re.compile("warn|error|exception|leak|traceback|terminat", re.IGNORECASE)
"""In a line that a run in a row must not print."""
EARLY = 0.25
"""Share of the kills that come before training begins."""
REACH = 1.6
"""Kills in training come up to this times (length of the run / kills) after it begins: most of the run is disturbed."""
POLL_S = 0.002

RECIPE = """
device: cpu
num_threads: 1
model:
  architecture: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3,
    num_attention_heads: 2, max_position_embeddings: 256, bos_token_id: 0, eos_token_id: 1, pad_token_id: 2}
  tokenizer: embedded://tiny-llama
  heads: {num_heads: 2}
data:
  train: {path: "embedded://problems_train.jsonl"}
  validation: {path: "embedded://problems_validation.jsonl"}
  max_length: 128
objective: {kind: mtp}
optim: {lr: 1e-3, warmup_steps: 5}
train: {steps: %(steps)d, batch_size: 8, micro_batch_size: 4, log_every: 1, eval_every: 20, eval_batches: 1, seed: 7}
checkpoint: {every: %(every)d, keep_last: 2}
"""


@dataclass
class Followed:
    """What was seen of a run from outside."""

    exit_code: int = -1
    seconds: float = 0.0
    starts: int = 0
    start_s: float = 0.0
    """From a process's beginning to its training, in the first attempt."""
    training_s: float = 0.0
    """From there to the end, if there was one attempt."""
    kills: int = 0
    kills_in_saves: int = 0
    kills_in_starts: int = 0
    said: list[str] = field(default_factory=list)


class Killer(threading.Thread):
    """Watches a run, and kills its processes while there are kills left."""

    def __init__(self, folder: Path, ranks: int, kills: int, seed: int, calm: Followed | None) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.job, self.ranks, self.left = folder / "run", folder / "job", ranks, kills
        self.random, self.calm, self.seen = random.Random(seed), calm, Followed()
        self.over = threading.Event()
        self.problem: Exception | None = None

    def run(self) -> None:
        """Attempt after attempt."""
        try:
            self._follow()
        except Exception as problem:
            self.problem = problem
            raise

    def _follow(self) -> None:
        journal, attempt = self.run_folder / "metrics.jsonl", 0
        while True:
            before = _modified(journal)
            attempt, ranks = self._begun(attempt + 1)
            if not ranks:
                return
            began = time.monotonic()
            self.seen.starts = attempt
            early = self.left > 0 and self.random.random() < EARLY
            if early:
                self._kill(ranks, self.random.uniform(0.0, self.calm.start_s if self.calm else 0.0), early=True)
            while _modified(journal) == before and self._alive(ranks) and not self.over.is_set():
                time.sleep(POLL_S)
            if attempt == 1:
                self.seen.start_s = time.monotonic() - began
            if not early and self.left > 0 and self.calm is not None:
                self._kill(
                    ranks, self.random.uniform(0.0, REACH * self.calm.training_s / (self.left + self.seen.kills))
                )
            while self._alive(ranks) and not self.over.is_set():
                time.sleep(POLL_S)
            if attempt == 1:
                self.seen.training_s = time.monotonic() - began - self.seen.start_s

    def _begun(self, attempt: int) -> tuple[int, list[int]]:
        """This attempt, or one after it, and its processes when all of them are there; none if the run is over."""
        while not self.over.is_set():
            said = [outcome.read(self.job / f"attempt_{attempt}", rank) for rank in range(self.ranks)]
            if all(words is not None for words in said):
                return attempt, [words.pid for words in said if words is not None]
            if (self.job / f"attempt_{attempt + 1}").exists():  # this one failed before all its ranks began
                attempt += 1
            time.sleep(POLL_S)
        return attempt, []

    def _kill(self, pids: list[int], delay: float, *, early: bool = False) -> None:
        if self.over.wait(delay):
            return
        with suppress(ProcessLookupError):  # it had ended already: no kill
            os.kill(self.random.choice(pids), signal.SIGKILL)
            self.left -= 1
            self.seen.kills += 1
            self.seen.kills_in_starts += early
            self.seen.kills_in_saves += bool(litter(self.run_folder))

    def _alive(self, pids: list[int]) -> bool:
        return not any(is_gone(pid) for pid in pids)


def _modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def litter(run: Path) -> list[str]:
    """What lies in a run folder's checkpoints that is not a whole checkpoint, by name."""
    folder = run / "checkpoints"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in entries if not (path.name.startswith("step_") and (path / "manifest.json").exists())]


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of every file of the final model."""
    return {path.name: sha256_file(path) for path in sorted((run / "final").iterdir()) if path.is_file()}


def journal(run: Path) -> list[dict[str, Any]]:
    """The journal without what depends on the machine."""
    entries = read_journal(run / "metrics.jsonl")
    return [{k: v for k, v in entry.items() if not k.startswith(("time/", "mem/"))} for entry in entries]


def command_in(folder: Path, steps: int) -> Callable[[int], list[str]]:
    """Makes `folder` with a recipe in it; the command of each attempt at a run in `folder/run`."""
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE % {"steps": steps, "every": EVERY})

    def command(attempt: int) -> list[str]:
        resumed = ["--resume", "auto"] if attempt else []
        files = ["--recipe", str(recipe), "--out", str(folder / "run")]
        return [sys.executable, "-P", "-m", "wmtp", "train", *files, *resumed]

    return command


def in_a_row(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Short runs, one after another: their exit codes, the supervisor's words, and every line that is a complaint."""
    codes: Counter[int] = Counter()
    said: list[str] = []
    for number in range(options.in_a_row):
        place = folder / f"run_{number}"
        command = command_in(place, SHORT_STEPS)
        with (place / "output.log").open("ab") as log:
            code = supervise(
                command,
                progress=lambda: 0,
                options=Options(ranks=options.ranks, restarts=0),
                folder=place / "job",
                output=log.fileno(),
                say=said.append,
            )
        codes[code] += 1
        lines = (place / "output.log").read_text(errors="replace").splitlines()
        said += [f"run {number}: {line}" for line in lines if COMPLAINT.search(line)]
        shutil.rmtree(place)
    return {
        "version": VERSION,
        "benchmark": "faults",
        "machine": measuring.machine(measuring.device("cpu"), "float32"),
        "settings": {"in_a_row": options.in_a_row, "ranks": options.ranks, "steps": SHORT_STEPS},
        "exit_codes": {str(code): count for code, count in sorted(codes.items())},
        "said": said,
    }


def train(folder: Path, options: argparse.Namespace, kills: int, calm: Followed | None) -> Followed:
    """One supervised run in `folder/run`; what was seen of it."""
    command, run = command_in(folder, options.steps), folder / "run"
    killer = Killer(folder, options.ranks, kills, options.seed, calm)
    patience = Options(ranks=options.ranks, restarts=kills + 3, backoff_s=0.0)
    began = time.monotonic()
    with (folder / "output.log").open("ab") as log:
        killer.start()
        try:
            code = supervise(
                command,
                progress=lambda: newest_step(run),
                options=patience,
                folder=folder / "job",
                output=log.fileno(),
                say=killer.seen.said.append,
            )
        finally:
            killer.over.set()
            killer.join()
    if killer.problem is not None:
        raise WmtpError(f"the run could not be followed: {killer.problem!r}") from killer.problem
    if code:
        tail = "\n".join((folder / "output.log").read_text(errors="replace").splitlines()[-20:])
        raise WmtpError(f"the run ended with exit code {code}: {killer.seen.said[-1:]}\n{tail}")
    killer.seen.exit_code, killer.seen.seconds = code, time.monotonic() - began
    return killer.seen


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both runs and what they have in common."""
    calm = train(folder / "undisturbed", options, 0, None)
    hit = train(folder / "killed", options, options.kills, calm)
    ours, theirs = folder / "killed" / "run", folder / "undisturbed" / "run"
    return {
        "version": VERSION,
        "benchmark": "faults",
        "machine": measuring.machine(measuring.device("cpu"), "float32"),
        "settings": {"kills": options.kills, "ranks": options.ranks, "steps": options.steps, "seed": options.seed},
        "undisturbed": asdict(calm),
        "killed": asdict(hit),
        "same_weights": fingerprint(ours) == fingerprint(theirs),
        "same_journal": journal(ours) == journal(theirs),
        "litter": len(litter(ours)),
    }


def good(document: dict[str, Any]) -> bool:
    """Whether nothing differs, nothing is left over, and every kill took place."""
    enough = document["killed"]["kills"] == document["settings"]["kills"]
    return bool(enough and document["same_weights"] and document["same_journal"] and not document["litter"])


def show(document: dict[str, Any]) -> None:
    """The table."""
    settings, killed, calm = document["settings"], document["killed"], document["undisturbed"]
    print(f"a checkpoint every {EVERY} steps\n")
    lines = [
        ("", "undisturbed", "killed"),
        ("SIGKILLs", "0", str(killed["kills"])),
        ("of these while a checkpoint was being written", "-", str(killed["kills_in_saves"])),
        ("of these before training began", "-", str(killed["kills_in_starts"])),
        ("starts of the job", str(calm["starts"]), str(killed["starts"])),
        ("seconds", f"{calm['seconds']:.0f}", f"{killed['seconds']:.0f}"),
        ("final weights", "", "the same bits" if document["same_weights"] else "DIFFERENT"),
        ("journal without times", "", "the same" if document["same_journal"] else "DIFFERENT"),
        ("left beside whole checkpoints", "", str(document["litter"])),
    ]
    print(measuring.aligned(lines))
    if killed["kills"] < settings["kills"]:
        print(
            f"\nonly {killed['kills']} of {settings['kills']} kills took place before the run was done: raise --steps"
        )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = measuring.parser("faults", __doc__)
    parser.add_argument("--kills", type=measuring.count, default=20, help="how often to kill (default: 20)")
    parser.add_argument(
        "--in-a-row", type=measuring.positive, metavar="N", help="kill nothing; run N short trainings instead"
    )
    parser.add_argument("--ranks", type=measuring.positive, default=1, help="processes of the job (default: 1)")
    parser.add_argument("--steps", type=measuring.positive, help="of the run (default: 30 per kill, at least 150)")
    parser.add_argument("--seed", type=measuring.count, default=0, help="of the instants (default: 0)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs in this new folder")
    options = parser.parse_args(arguments)
    if options.keep is not None and options.keep.exists():
        parser.error(f"argument --keep: got {str(options.keep)!r}, expected a folder that does not exist")
    options.steps = options.steps or max(LEAST_STEPS, STEPS_PER_KILL * options.kills)
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; 1 if the killed run is not the same run."""
    options = parse(arguments)
    if options.in_a_row:
        with tempfile.TemporaryDirectory(prefix="wmtp-faults-") as folder:
            row = in_a_row(options, Path(folder))
        print(
            f"{options.in_a_row} runs of {options.ranks} rank(s): exit codes {row['exit_codes']}",
            *row["said"],
            sep="\n",
        )
        measuring.write(row, options.json)
        return 0 if set(row["exit_codes"]) == {"0"} and not row["said"] else 1
    if options.keep is not None:
        document = measure(options, options.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="wmtp-faults-") as folder:
            document = measure(options, Path(folder))
    measuring.tell(document, show, options.json)
    return 0 if good(document) else 1
