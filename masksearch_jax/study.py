"""Arms of an experiment, each with several seeds, compared on the same held-out items.

    python -m masksearch_jax.study --config=configs/study.py:ramp_first
    python -m masksearch_jax.study --config=configs/study.py:ramp_first --config.plan_only=True

An arm is a chain of the quickstart's trainings with overrides. What arms have in common is made
once. What is done is not done again, so the same command goes on where it was stopped. Results are
written after each seed: study.json, study.txt, study.svg, and study.html with all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from masksearch_jax import train_dapo, train_sft
from masksearch_jax.agents.judge import Judge
from masksearch_jax.core.errors import ConfigError, check_given
from masksearch_jax.core.files import write_json, write_text
from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals import arms as comparison
from masksearch_jax.evals import rows, suites
from masksearch_jax.evals.results import RESULTS, Bootstrap
from masksearch_jax.models.load import check_context, pinned, read_model
from masksearch_jax.parallel.folder_lock import FolderLock
from masksearch_jax.parallel.sharding import make_mesh, split_cpu
from masksearch_jax.recipes import arms as arms_lib
from masksearch_jax.recipes import curves, steps, workload
from masksearch_jax.recipes.arms import Arm
from masksearch_jax.recipes.made import Made, Workshop, check_differ
from masksearch_jax.recipes.recipe_config import check_watch
from masksearch_jax.recipes.stage_folder import StageFolder, Usage
from masksearch_jax.recipes.study_config import (
    StudyRun,
    arm_config,
    check_metrics,
    of_study,
    recipe,
)
from masksearch_jax.runtime import cli, run_record, storage
from masksearch_jax.runtime.config_text import leaves
from masksearch_jax.viewer import study as page

_BEFORE = ("text", "tokenizer", "cache")  # made for all arms before any is trained


@dataclasses.dataclass(frozen=True)
class Study:
    """A study resolved: its arms with their configs, and by arm and seed what is made of them.

    evaluations: one of each seed. trainings: of each seed one for each stage.
    """

    cfg: StudyRun
    arms: dict[str, tuple[Arm, StudyRun]]
    workshop: Workshop
    evaluations: dict[str, list[Made]]
    trainings: dict[str, list[list[Made]]]

    @property
    def suites(self) -> list[str]:
        return [spec.partition("=")[0] for spec in self.cfg.eval.suites]


# ---- what is to be made


def plan(cfg: StudyRun, usage: Usage) -> Study:
    """All that the study makes.

    Raises ConfigError as `arms.read`, `arm_config` and the workshop do.
    """
    keys = leaves(type(cfg), dataclasses.asdict(cfg))
    found = [arms_lib.resolved(arm, keys) for arm in arms_lib.read(cfg.arms, cfg.reference)]
    own = {arm.name: (arm, arm_config(cfg, arm)) for arm in found}
    check_metrics(cfg, [mine for _, mine in own.values()])
    workshop = Workshop(Path(cfg.made or Path(cfg.workdir) / "made"), usage)
    _, first = own[cfg.reference]
    items = workshop.items(cfg.reference, recipe(first), of_study(first), list(own))
    evaluations: dict[str, list[Made]] = {name: [] for name in own}
    trainings: dict[str, list[list[Made]]] = {name: [] for name in own}
    for seed in range(cfg.seeds):
        for name, (arm, mine) in own.items():
            trained, made = workshop.add(arm, recipe(mine), of_study(mine), items, seed)
            trainings[name].append(trained)
            evaluations[name].append(made)
    check_differ(evaluations)
    return Study(cfg, own, workshop, evaluations, trainings)


# ---- making it


def order(study: Study) -> list[Made]:
    """What all arms need first, then seed by seed each arm's trainings and evaluation.

    A text whose masks a trained model draws comes after that training.
    """
    everything = list(study.workshop.all.values())
    before = [made for made in everything if made.kind in _BEFORE and not made.waits]
    return before + [made for made in everything if made not in before]


def costs(study: Study, stages: StageFolder) -> dict[str, float]:
    """Seconds of a unit of work: as measured on what is done, else as the config says."""
    done = [(made, stages.done(made.name)) for made in order(study)]
    known = [(made.work, record["seconds"]) for made, record in done if record is not None]
    return workload.given(study.cfg.costs) | workload.measured(known)


def needs(study: Study, stages: StageFolder) -> list[str]:
    """What the study needs, as lines of text."""
    all_made = [(made.kind, made.work, stages.is_done(made.name)) for made in order(study)]
    known = costs(study, stages)
    where = "measured on what is done" if any(done for *_, done in all_made) else "as given"
    seeds = f"{study.cfg.seeds} seeds"
    if study.cfg.seeds == 1:
        seeds = "1 seed (intervals will be over items alone)"
    head = f"{len(study.arms)} arms, {seeds}, in {study.workshop.folder}"
    return [head, *workload.table(all_made, known, where)]


def check_stages(study: Study) -> None:
    """Raises ConfigError for a setting that a stage of an arm would refuse once it is its turn.

    And for an arm that trains nothing where there is no model to start from.
    """
    for arm, cfg in study.arms.values():
        if not arm.stages and not cfg.init:
            raise ConfigError(
                f"config.arms: {arm.name} trains nothing, and config.init is empty: random weights "
                "answer nothing; give config.init the folder or file of a model, or the arm a stage"
            )
        check_context(cfg.model, cfg.rollout.max_len, f"config.rollout.max_len of {arm.name}")
        for stage in arm.stages:
            try:
                _check_stage(stage, cfg)
            except ConfigError as error:
                raise ConfigError(f"config.arms: {arm.name}: {stage}: {error}") from error


def _check_stage(stage: str, cfg: StudyRun) -> None:
    section, optim = (getattr(cfg, name) for name in arms_lib.STAGES[stage])
    check_watch(cfg, section)
    mesh = make_mesh(cfg.mesh)
    if stage.endswith("sft"):
        train_sft.check_batch(section, optim, mesh)
        return
    train_dapo.check_settings(section, cfg.rollout, mesh, cfg.tools)
    train_dapo.check_optim(optim)
    if section.reward == "judge" and not cfg.judge.own_model:
        Judge(cfg.judge)


def make_all(study: Study, stages: StageFolder) -> None:
    """Makes what is not made; the results after each seed that all arms have."""
    todo = order(study)
    written = 0
    for made in todo:
        study.workshop.check_weights(made)
    for place, made in enumerate(todo):
        if not stages.is_done(made.name):
            if made.kind in arms_lib.STAGES:
                study.workshop.check_lessons()  # of all arms, before the first of them is trained
            rest = [m for m in todo[place:] if not stages.is_done(m.name)]
            left = workload.seconds((m.work for m in rest), costs(study, stages))
            said = f", about {left / 60:.0f} min left" if left is not None else ""
            steps.log(f"of {', '.join(made.of)}; {len(rest)} to make{said}")
        stages.stage(made.name, functools.partial(made.make, study.workshop.at(made)))
        study.workshop.check_weights(made)  # another study may have made it meanwhile
        if (done := seeds_done(study, stages)) > written:
            write_results(study, stages, done)
            written = done


def seeds_done(study: Study, stages: StageFolder) -> int:
    """Seeds that every arm has, from the first on."""
    for seed in range(study.cfg.seeds):
        if not all(m[seed].name in stages.records for m in study.evaluations.values()):
            return seed
    return study.cfg.seeds


# ---- results


def what_was_run(study: Study) -> list[str]:
    """Lines: model, text, what is asked, machine and version, and each arm with its overrides."""
    cfg, by = study.cfg, run_record.versions()
    layers = f"{cfg.model.num_layers} layer{'s' * (cfg.model.num_layers != 1)}"
    size = f"{cfg.model.family}, {layers} of {cfg.model.hidden_size}"
    questions = f", questions of {cfg.corpus.questions}" if cfg.corpus.questions else ""
    asked = (f"{suites.number_of(cfg.eval, suite)} of {suite}" for suite in study.suites)
    arms = [f"arm {arm.name}: {_trained(arm, own)}" for arm, own in study.arms.values()]
    named = [f"{name} {by[name]}" for name in ("masksearch_jax", "jax") if name in by]
    return [
        f"model: {cfg.init or 'random weights'} ({size})",
        f"text: {cfg.corpus.path or 'the built-in atlas of facts'}{questions}",
        f"asked: at most {', '.join(asked)}, at temperature {cfg.eval.temperature:g}",
        f"made with: {', '.join([*named, by.get('accelerators', 'no device yet')])}",
        *arms,
    ]


def _trained(arm: Arm, cfg: StudyRun) -> str:
    """An arm's stages with their steps, and its overrides."""
    stages = (f"{s} of {getattr(cfg, arms_lib.STAGES[s][0]).steps} steps" for s in arm.stages)
    return "; ".join(filter(None, (", ".join(stages) or "no training", " ".join(arm.overrides))))


def scores(study: Study, arm: str, seeds: int) -> dict[str, comparison.Seeds]:
    """Of each suite the scores of the arm's items, by seed; none where all of a seed are lost."""
    _, mine = study.arms[arm]
    found: dict[str, list[comparison.Scores]] = {suite: [] for suite in study.suites}
    for made in study.evaluations[arm][:seeds]:
        folder = study.workshop.at(made) / "eval" / "model"
        by_place = rows.by_place(rows.Rows(storage.path(folder) / rows.TRAJECTORIES))
        for suite, by_id in found.items():
            scored = by_place.get((suite, mine.eval.methods[0]), [])
            by_id.append({item.id: item.scores for item in scored})
    return found


def asked(study: Study) -> dict[str, str]:
    """The suites that were asked, each with its own metric: not all, where text has no questions.

    One that the reference has no method for is another arm's.
    """
    found: dict[str, str] = {}
    for made, *_ in study.evaluations.values():
        path = study.workshop.at(made) / "eval" / "model" / RESULTS
        told = json.loads(path.read_text(encoding="utf-8"))["suites"]
        found |= {suite: about["metric"] for suite, about in told.items()}
    return {suite: found[suite] for suite in study.suites if suite in found}


def compared(study: Study, seeds: int) -> tuple[JsonObject, list[str]]:
    """What `evals.arms.compare` says of the first seeds, and sentences of what is not there.

    By each suite's own metric and others.
    """
    cfg = study.cfg
    by_arm = {name: scores(study, name, seeds) for name in study.arms}
    metrics = {s: (metric, *cfg.metrics) for s, metric in asked(study).items()}
    how = Bootstrap(cfg.eval.bootstrap, cfg.eval.seed)
    found = comparison.compare(by_arm, cfg.reference, metrics, how)
    absent = [
        f"{suite} was not asked: the text has no such items"
        for suite in study.suites
        if suite not in metrics
    ]
    return found, absent + comparison.absent(found, study.arms, cfg.reference)


def unmoved(study: Study, stages: StageFolder, seeds: int) -> list[str]:
    """Sentences: which trainings of the first seeds never updated the weights."""
    found = []
    for arm, by_seed in study.trainings.items():
        for seed, trained in enumerate(by_seed[:seeds]):
            for made in trained:
                if not stages.records[made.name]["updates"][made.kind]:
                    said = f"{made.kind} never updated the weights, and left the model as it was"
                    found.append(f"{arm}, seed {seed}: {said}")
    return found


def curves_of(study: Study, seeds: int) -> list[JsonObject]:
    """Of each stage and the arms that share its trainings: what was measured over updates.

    {stage, arms, metrics} as `recipes.curves` says, and of reinforcement learning `lengthened`.
    """
    shared: dict[tuple[str, ...], list[str]] = {}
    for arm, by_seed in study.trainings.items():
        for made in zip(*by_seed[:seeds], strict=True):  # of a stage, the training of each seed
            shared.setdefault(tuple(m.name for m in made), []).append(arm)
    found: list[JsonObject] = []
    for folders, arms in shared.items():
        stage = folders[0].partition("-")[0]
        paths = (study.workshop.folder / f / stage / "metrics.jsonl" for f in folders)
        rows = [curves.read(path) for path in paths]
        told = {"stage": stage, "arms": arms, "metrics": curves.over_seeds(rows)}
        found.append(told | {"lengthened": curves.lengthened(rows)})
    return found


def write_results(study: Study, stages: StageFolder, seeds: int) -> None:
    """study.json, study.txt, study.svg and study.html, of the seeds that all arms have."""
    cfg = study.cfg
    folder, name = Path(cfg.workdir), Path(cfg.workdir).name
    results, absent = compared(study, seeds)
    notes = [*absent, *unmoved(study, stages, seeds)]
    told: JsonObject = {
        "study": name,
        "question": cfg.question,
        "reference": cfg.reference,
        "seeds": seeds,
        "seeds_asked": cfg.seeds,
        "said": comparison.seeds_said(seeds, cfg.seeds),
        "arms": {
            arm.name: {
                "stages": arm.stages,
                "overrides": arm.overrides,
                "evaluations": [str(study.workshop.at(m)) for m in study.evaluations[arm.name]],
            }
            for arm, _ in study.arms.values()
        },
        "results": results,
        "notes": notes,
        "ran": what_was_run(study),
        "curves": curves_of(study, seeds),
        "made": {
            made.name: {"seconds": stages.records[made.name]["seconds"], "of": made.of}
            for made in order(study)
            if made.name in stages.records
        },
        "config": dataclasses.asdict(cfg),
        "versions": run_record.versions(),
    }
    picture = page.plot(results, cfg.reference, name)
    write_json(folder / "study.json", told)
    table = comparison.table(results, cfg.reference, notes, seeds, cfg.seeds)
    head = [cfg.question] if cfg.question else []
    write_text(folder / "study.txt", "\n".join([*head, *told["ran"], *table]) + "\n")
    write_text(folder / "study.svg", picture)
    write_text(folder / "study.html", page.page(json.loads(json.dumps(told)), picture))


def check_config(cfg: StudyRun) -> None:
    """Raises ConfigError for a study that cannot be planned."""
    check_given(cfg, workdir="the folder to write")
    workload.given(cfg.costs)
    plan(cfg, Usage(Path(cfg.workdir)))


def run(cfg: StudyRun) -> None:
    """Makes all that is not made, and prints the table."""
    check_config(cfg)
    usage = Usage(Path(cfg.workdir))
    study = plan(cfg, usage)
    if cfg.plan_only:
        print("\n".join(needs(study, StageFolder(study.workshop.folder))))
        return
    split_cpu(cfg.cpu_devices)
    check_stages(study)
    pinned(cfg.init, cfg.model)  # or says that it is not there, before anything is built
    with FolderLock(cfg.workdir), usage:
        run_record.resume(cfg.workdir, cfg)
        names = [made.name for made in order(study)]
        make_all(study, StageFolder(study.workshop.folder, names, is_shared=True))
    print((Path(cfg.workdir) / "study.txt").read_text(encoding="utf-8"), end="")
    for what, suffix in (("page", "html"), ("plot", "svg"), ("figures", "json")):
        print(f"{what:8}{Path(cfg.workdir) / f'study.{suffix}'}")
    *_, (last, *_) = study.evaluations.values()
    folder = study.workshop.at(last) / "eval" / "model"
    print(f"ten trajectories of {', '.join(last.of)}, to be read on a page:")
    print(f"  python -m masksearch_jax.report {folder} --config.trajectories=10")


if __name__ == "__main__":
    cli.run(run, StudyRun, resumes=True, read_model=read_model)
