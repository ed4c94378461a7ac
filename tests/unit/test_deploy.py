"""The examples in deploy/ start what they say: their commands are taken by our own parser, their files are there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.main import get_command

from wmtp.cli import app
from wmtp.config import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
STANDS_IN = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" > "$RECORD"
printf '%s' "${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-}" > "$RECORD.timeout"
"""
SRUN = """#!/usr/bin/env bash
while [ "${1#-}" != "$1" ]; do shift; done
SLURM_NODEID=1 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
printf 'first\\nsecond\\n'
"""
SLURM = {
    "SLURM_JOB_NAME": "wmtp",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "two[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
}
SKY = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
}


@dataclass
class Launch:
    """What one example would have started."""

    arguments: list[str]
    """The program and what it is given."""
    environment: dict[str, str]
    save_s: float | None
    """How long ranks may take to save; None for a process that waits as long as it takes."""
    grace_s: float | None
    """From SIGTERM to SIGKILL; None where the file does not say."""

    @property
    def torchrun(self) -> Any:
        """Its options as torchrun reads them; None where there is no torchrun."""
        if self.arguments[0] != "torchrun":
            return None
        return get_args_parser().parse_args(self.arguments[1:])

    @property
    def train(self) -> dict[str, Any]:
        """The options of `wmtp train`, as our parser reads them."""
        run = self.torchrun
        program, *rest = [run.training_script, *run.training_script_args] if run else self.arguments
        assert program == "wmtp"
        assert run is None or run.module
        command = get_command(app)
        _, name, arguments = command.resolve_command(command.make_context("wmtp", list(rest)), list(rest))  # type: ignore[attr-defined]
        assert name is not None
        return dict(name.make_context("train", arguments).params)


def started(script: str, environment: dict[str, str], folder: Path) -> tuple[list[str], str]:
    """Run a script with stand-ins for the programs it starts: what it started last, and torchrun's time-out."""
    inside = folder / ".venv" / "bin"
    inside.mkdir(parents=True)
    programs = {"torchrun": STANDS_IN, "wmtp": STANDS_IN, "srun": SRUN, "scontrol": SCONTROL}
    for name, text in programs.items():
        (inside / name).write_text(text)
        (inside / name).chmod(0o755)
    given = {"PATH": f"{inside}:{os.environ['PATH']}", "RECORD": str(folder / "record"), **environment}
    done = subprocess.run(["bash", "-c", script], env=given, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "record").read_text().split("\0")[:-1], (folder / "record.timeout").read_text()


def of_script(name: str, environment: dict[str, str]) -> Callable[[Path], Launch]:
    def make(folder: Path) -> Launch:
        text = (DEPLOY / name).read_text()
        given = {"WMTP_RUNS": "/runs", **environment}
        arguments, timeout = started(text, given, folder)
        signal = re.search(r"^#SBATCH --signal=(?:B:)?TERM@(\d+)$", text, re.MULTILINE)
        return Launch(arguments, given, _seconds(arguments, timeout), float(signal[1]) if signal else None)

    return make


def of_block(name: str, find: Callable[[Any], str], key: str, more: dict[str, str]) -> Callable[[Path], Launch]:
    def make(folder: Path) -> Launch:
        document = yaml.safe_load((DEPLOY / name).read_text())
        given = {**document[key], **more}
        arguments, timeout = started(find(document), given, folder)
        return Launch(arguments, given, _seconds(arguments, timeout), None)

    return make


def of_pod(name: str) -> Callable[[Path], Launch]:
    def make(folder: Path) -> Launch:
        pod = job(name)["template"]["spec"]
        [container] = pod["containers"]
        given = {one["name"]: one.get("value", "1") for one in container["env"]}
        argued = [re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], part) for part in container["args"]]
        assert container["command"][:2] == ["tini", "--"]
        arguments = [*container["command"][2:], *argued]
        save = _seconds(arguments, given.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", ""))
        return Launch(arguments, given, save, float(pod["terminationGracePeriodSeconds"]))

    return make


def _seconds(arguments: list[str], timeout: str) -> float | None:
    found = re.search(r"--stop-timeout[= ](\d+)", " ".join(arguments))
    return float(found[1]) if found else float(timeout) if timeout else None


def job(name: str) -> dict[str, Any]:
    """The spec of the Kubernetes Job in a file."""
    [found] = [one for one in yaml.safe_load_all((DEPLOY / name).read_text()) if one["kind"] == "Job"]
    assert found["apiVersion"] == "batch/v1"
    return dict(found["spec"])


HOSTS = {"HEAD": "10.0.0.1", "NODES": "2", "NODE_RANK": "1", "GPUS": "8"}
LAUNCHES = {
    "torchrun.sh": of_script("torchrun.sh", HOSTS),
    "slurm.sbatch": of_script("slurm.sbatch", SLURM),
    "slurm_nodes.sbatch": of_script("slurm_nodes.sbatch", SLURM),
    "kubernetes_job.yaml": of_pod("kubernetes_job.yaml"),
    "kubernetes_nodes.yaml": of_pod("kubernetes_nodes.yaml"),
    "skypilot.yaml": of_block("skypilot.yaml", lambda found: str(found["run"]), "envs", SKY),
    "vessl.yaml": of_block("vessl.yaml", lambda found: str(found["run"][0]["command"]), "env", {}),
}


@pytest.fixture(params=LAUNCHES)
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Launch:
    return LAUNCHES[request.param](tmp_path)


def test_every_example_trains_from_files_that_are_there_and_resumes_by_itself(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launch.environment.items():
        monkeypatch.setenv(name, value)
    options = launch.train
    config = load([ROOT / options["config"], ROOT / options["recipe"]], options["overrides"] or [])
    assert options["resume"] == "auto"
    assert options["out"].startswith(launch.environment["WMTP_RUNS"] + "/")
    assert config.device == "cuda"
    assert config.checkpoint.every is not None


def test_torchrun_gets_the_same_head_on_every_host_and_restarts_nothing_in_place(launch: Launch) -> None:
    run = launch.torchrun
    if run is None:
        assert launch.train["ranks"] in (4, 8)
        return
    assert (run.max_restarts, run.nnodes, run.node_rank, run.nproc_per_node) == (0, "2", 1, "8")
    assert run.master_addr in ("10.0.0.1", "first", "wmtp-nodes-0.wmtp-nodes")
    assert 20000 <= run.master_port < 40000


def test_whoever_stops_a_job_leaves_it_more_time_than_it_takes_to_save(launch: Launch) -> None:
    assert launch.save_s is not None
    assert launch.grace_s is None or launch.save_s + 20 <= launch.grace_s


def test_a_wrong_config_ends_the_kubernetes_job_and_a_lost_pod_does_not() -> None:
    rules = job("kubernetes_job.yaml")["podFailurePolicy"]["rules"]
    assert rules[0] == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "wmtp", "operator": "In", "values": [2]},
    }
    assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


@pytest.mark.parametrize("name", ["kubernetes_job.yaml", "kubernetes_nodes.yaml"])
def test_a_pod_mounts_the_volumes_it_has_and_the_next_one_waits_for_its_end(name: str) -> None:
    spec = job(name)
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert {"/dev/shm", "/runs"} == {one["mountPath"] for one in container["volumeMounts"]}
    assert (spec["podReplacementPolicy"], pod["restartPolicy"]) == ("Failed", "Never")


def test_pods_of_several_hosts_find_the_first_one_by_the_name_that_the_service_gives_it() -> None:
    service, made = yaml.safe_load_all((DEPLOY / "kubernetes_nodes.yaml").read_text())
    name, spec = made["metadata"]["name"], made["spec"]
    assert service["spec"]["clusterIP"] is None or service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    assert f"--nnodes={spec['completions']}" in arguments
    assert f"--master-addr={name}-0.{service['metadata']['name']}" in arguments


def test_the_image_is_made_of_files_that_are_there_and_let_through() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [part for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for part in line.split()[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / part).exists() for part in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)[0].split(",")) <= set(extras)
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert json.loads(entry) == ["tini", "--", "wmtp"]
    assert re.search(r"^USER 1000$", text, re.MULTILINE)


def test_every_script_is_one_that_bash_can_read() -> None:
    scripts = [*DEPLOY.glob("*.sh"), *DEPLOY.glob("*.sbatch"), ROOT / ".ci" / "run", ROOT / ".ci" / "release"]
    blocks = [str(yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())["setup"])]
    assert shutil.which("bash")
    for text in [path.read_text() for path in scripts] + blocks:
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_release_with_an_option_that_is_not_there_is_wrong_usage() -> None:
    command = ["bash", str(ROOT / ".ci" / "release"), "--publish"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown option --publish; usage: bash .ci/release" in done.stderr


def test_the_guide_names_every_example() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    assert [path.name for path in DEPLOY.iterdir() if f"deploy/{path.name}" not in guide] == []
