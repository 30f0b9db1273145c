"""Points chosen by Optuna: at random, by TPE, or at random with successive halving.

`get_search()`, next to `get_config()`, returns the space: {dotted entry: range}; a range
is ("uniform", low, high), ("log", low, high), ("int", low, high) or ("choice", values).
The last value of the first metric on validation says which is best. Several machines may
share one storage; each has a directory of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState

from bpfree.sweeps import ledger, result, schedule, worker
from bpfree.sweeps.points import Point
from bpfree.training import metrics
from bpfree.training.names import ConfigError, unknown
from bpfree.training.workdir import claimed

SEARCHES = ("random", "tpe", "halving")
KINDS = ("uniform", "log", "int", "choice")

Space = Mapping[str, Sequence[Any]]


def make_study(kind: str, seed: int, storage: str, lower: bool = False) -> Any:
    """Optuna's study `bpfree` in a storage (URL), made or joined; raises ConfigError.

    Args:
      lower: whether lower values are better.
    """
    if kind not in SEARCHES:
        raise unknown("--search", kind, SEARCHES)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: Any = optuna.pruners.NopPruner()
    if kind == "halving":
        pruner = optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3)
    study = optuna.create_study(
        study_name="bpfree",
        storage=storage,
        pruner=pruner,
        direction="minimize" if lower else "maximize",
        load_if_exists=True,
    )
    seed += len(study.trials)  # a search that goes on does not propose the same again
    study.sampler = optuna.samplers.RandomSampler(seed=seed)
    if kind == "tpe":
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def check(space: Space) -> None:
    """Raises ConfigError for a range that is none."""
    if not space:
        raise ConfigError("get_search() returns no ranges")
    for key, (kind, *rest) in space.items():
        if kind not in KINDS:
            raise unknown(f"get_search()[{key!r}]: kind", kind, KINDS)
        if len(rest) != (1 if kind == "choice" else 2):
            raise ConfigError(
                f"get_search()[{key!r}] must be (kind, low, high) or ('choice', values)"
            )


def suggest(trial: Any, key: str, kind: str, *rest: Any) -> Any:
    """What Optuna proposes for an entry."""
    if kind == "choice":
        return trial.suggest_categorical(key, list(rest[0]))
    if kind == "int":
        return trial.suggest_int(key, *rest)
    return trial.suggest_float(key, *map(float, rest), log=kind == "log")


def search(
    study: Any,
    space: Space,
    make_point: Callable[[Mapping[str, Any]], Point],
    workdir: str | Path,
    *,
    trials: int,
    workers: int | None = None,
    start: schedule.Start = schedule.start_process,
    report: schedule.Report = lambda record: None,
) -> dict[str, ledger.Record]:
    """Train proposals until the study has `trials` of them; {name: record}.

    Trials that a killed search of the same directory left are taken up where they were.

    Raises what `schedule.sweep` raises, and ConfigError for a bad space.
    """
    check(space)
    workdir = Path(workdir).absolute()
    with claimed(workdir):
        book = schedule.Book(workdir, {}, report)
        under_way = _Search(study, space, make_point, book, trials, {}, set())
        under_way.take_up()
        slots = schedule.make_slots(workers, trials)
        schedule.run(under_way.ask, slots, workdir, start, under_way.tell, under_way.look)
    return ledger.read(workdir)


class _Search(NamedTuple):
    """A search under way: trials that run, by the name of their point."""

    study: Any
    space: Space
    make_point: Callable[[Mapping[str, Any]], Point]
    book: schedule.Book
    trials: int
    running: dict[str, tuple[Any, Point]]
    pruned: set[str]

    def take_up(self) -> None:
        """Queue again what a killed search of this directory had begun."""
        for trial in self._trials(TrialState.RUNNING):
            if trial.user_attrs.get("workdir") == str(self.book.workdir):
                self.study.enqueue_trial(trial.params)
                self.study.tell(trial.number, state=TrialState.FAIL)

    def ask(self) -> list[str] | None:
        """The next proposal that is not known yet, None after the last."""
        while self._trials(TrialState.WAITING) or self._count() < self.trials:
            trial = self.study.ask()
            trial.set_user_attr("workdir", str(self.book.workdir))
            given = {k: suggest(trial, k, *rest) for k, rest in self.space.items()}
            point = self.make_point(given)
            if point.name in self.running:
                self._close(trial, state=TrialState.PRUNED)  # the same one, again
                continue
            self.running[point.name] = trial, point
            folder = worker.folder_of(self.book.workdir, point.name)
            known = ledger.read(self.book.workdir).get(point.name) or result.read(folder)
            if point.error is not None:
                known = known or result.failed(point.error)
            if known is None:
                schedule.write_point(folder, point)
                return [point.name]
            self._settle(point.name, known)
        return None

    def look(self, names: Sequence[str], handle: schedule.Handle) -> None:
        """Report the log points so far; end the worker if they are poor."""
        (name,) = names
        trial, _ = self.running[name]
        folder = worker.folder_of(self.book.workdir, name)
        known = trial.storage.get_trial(trial._trial_id).intermediate_values
        for log in metrics.read_logs(folder):
            if log["step"] not in known:
                trial.report(log[metrics.measured(log)[0]], log["step"])
                if name not in self.pruned and trial.should_prune():
                    self.pruned.add(name)
                    handle.terminate()

    def tell(self, names: Sequence[str], status: int) -> None:
        (name,) = names
        folder = worker.folder_of(self.book.workdir, name)
        found = result.read(folder)
        if found is None and name in self.pruned:
            logs = metrics.read_logs(folder)
            where = f"step {logs[-1]['step']}" if logs else "its start"
            found = {"status": "pruned", "error": f"pruned at {where}"}
        self._settle(name, found or schedule.lost(folder, status))

    def _settle(self, name: str, found: result.Result) -> None:
        trial, point = self.running.pop(name)
        if found["status"] == "done":
            self._close(trial, result.validation(found))
        else:
            pruned = found["status"] == "pruned"
            self._close(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        if name not in ledger.read(self.book.workdir):
            self.book.note(point, found)

    def _close(self, trial: Any, *values: float, **state: Any) -> None:
        trial.set_user_attr("closed", True)
        self.study.tell(trial, *values, **state)

    def _count(self) -> int:
        """Trials that run or are closed; not those that were taken up again."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(t.state.name == "RUNNING" or "closed" in t.user_attrs for t in trials)

    def _trials(self, state: TrialState) -> list[Any]:
        return self.study.get_trials(deepcopy=False, states=(state,))
