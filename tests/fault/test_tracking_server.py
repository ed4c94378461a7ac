"""A real MLflow server that is killed in mid-run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import NO_PYTHON, PYTHON, serving

from wmtp import trainer
from wmtp.config import load
from wmtp.delivery import register_later, sync
from wmtp.errors import TrackingError
from wmtp.tracking import read_journal
from wmtp.tracking.mlflow_store import MlflowStore
from wmtp.trainer import run

RECIPE = Path(__file__).parents[1] / "e2e" / "small_recipe.yaml"
STEPS = 8

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.slow,
    pytest.mark.fault,
    pytest.mark.skipif(not PYTHON, reason=NO_PYTHON),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # MLflow with SQLAlchemy 2.1
]


def client(uri: str) -> Any:
    return MlflowStore(uri, "wmtp", artifacts="", timeout_s=30, upload_timeout_s=30)._connected()


def points_in(uri: str, run_id: str) -> Counter[tuple[str, int]]:
    store = client(uri)
    names = store.get_run(run_id).data.metrics
    return Counter((m.key, m.step) for name in names for m in store.get_metric_history(run_id, name))


def points_logged(folder: Path) -> Counter[tuple[str, int]]:
    return Counter(
        (f"{line['split']}/{name}", line["step"])
        for line in read_journal(folder / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("step", "split", "time/unix_s") and value is not None
    )


def test_a_server_killed_in_mid_run_costs_nothing_and_gets_every_point_once_and_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reached = tmp_path / "run", list[str]()
    with serving(tmp_path) as server:
        uri = server.uri
        config = load([RECIPE], [f"train.steps={STEPS}", f"tracking={{uri: '{uri}', flush_s: 0.05, timeout_s: 20}}"])

        def at(point: str) -> None:
            reached.append(point)
            if reached.count("step_begin") == STEPS // 2:
                server.stop()

        with monkeypatch.context() as during:
            during.setattr(trainer, "fault", at)
            result = run(config, out=folder)
        assert result.steps == STEPS
        assert result.tracked is not None
        assert "wmtp track sync" in str(result.tracked.problem)
        assert "wmtp track register" in str(result.tracked.problem)
        with pytest.raises(TrackingError, match="cannot open the run"):
            sync(folder, ["tracking.timeout_s=1"])
        server.start()
        sent, lines = sync(folder)
        assert lines > 0
        assert sync(folder)[1] == 0
        model = register_later(folder).model
        assert register_later(folder).model == model
        assert points_in(uri, str(sent.run_id)) == points_logged(folder)
        assert client(uri).get_run(sent.run_id).info.status == "FINISHED"
        assert model is not None
        assert (model.name, model.version) == ("wmtp_baseline", "1")
        assert model.stored_bytes == size_of(folder / "final")
        texts = sum((folder / name).stat().st_size for name in ("config.yaml", "provenance.json"))
        assert size_of(tmp_path / "artifacts") == model.stored_bytes + texts
        assert "hello" in loaded_by_mlflow(uri, tmp_path)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def loaded_by_mlflow(uri: str, folder: Path) -> str:
    """What a process without us in it says after `mlflow.pyfunc.load_model`, pickles forbidden."""
    script = (
        f"import sys; sys.path += {[path for path in sys.path if path]!r}\n"
        "import mlflow\n"
        "model = mlflow.pyfunc.load_model('models:/wmtp_baseline/1')\n"
        "print('hello', model.predict(['def add(a, b):'], params={'max_new_tokens': 3}))\n"
    )
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "TMPDIR": str(folder)}
    done = subprocess.run([PYTHON, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
