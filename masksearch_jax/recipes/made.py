"""What a study makes: each thing once, in a folder named by all that decides it.

`MADE/KIND-FINGERPRINT` holds a text with its examples and index, a tokenizer, a cache of tokens, a
training or an evaluation. Arms that need the same thing share it, and so do studies that share
MADE. A fingerprint is of settings and of the contents of files, not of code.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from masksearch_jax import quickstart
from masksearch_jax.core import stamp
from masksearch_jax.core.config import SurvivalConfig
from masksearch_jax.core.corpus_config import PplConfig
from masksearch_jax.core.curriculum_config import SCHEDULE
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.schema import describe_keys, later_seed
from masksearch_jax.core.types import SPLITS, QAExample
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.corpus.passages import read_passages, write_passages
from masksearch_jax.data.cache import CacheError, Kind, Manifest
from masksearch_jax.data.curriculum import Order
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.recipes import self_taught, steps, workload
from masksearch_jax.recipes.arms import STAGES, Arm
from masksearch_jax.recipes.recipe_config import lessons_of
from masksearch_jax.recipes.stage_folder import Usage
from masksearch_jax.recipes.workload import Work
from masksearch_jax.runtime import run_record, storage
from masksearch_jax.runtime.config_text import leaves
from masksearch_jax.training.checkpoint_files import has_steps

# Keys and sections that decide a text; `gold_left_out` and the contents of files besides.
_TEXT = ("corpus", "clean", "ramp", "search", "thoughts", "demonstrations")
_TEXT += ("question_demonstrations", "rollout.max_turns", "seed", "tools", "qa_dapo.split")
_CACHE = ("tools", "prompt", "sft.seq_len", "qa_sft.seq_len", "rollout.max_len", "qa_share")
_CACHE += ("dapo.split", "qa_dapo.split")
_MODEL = ("model", "compute", "seed")
_SAMPLING = ("prompt", "tools", "search", "rollout")
_MEASURED = (*_SAMPLING, "heldout_points", "heldout_examples", "eval.temperature", "eval.seed")


@dataclasses.dataclass(frozen=True)
class Made:
    """A thing to make: kind and fingerprint, how, what it takes, the arms and seeds it is for.

    weights: of a training, where its checkpoints are.
    """

    kind: str
    made_from: str
    make: Callable[[Path], dict[str, Any]]
    work: Work
    of: list[str] = dataclasses.field(default_factory=list, compare=False)
    waits: bool = False  # for a training: what a trained model draws or samples, and its cache
    weights: str = dataclasses.field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.made_from}"


def check_differ(evaluations: Mapping[str, Sequence[Made]]) -> None:
    """Raises ConfigError for two arms that are one: their difference would be 0, and look known."""
    by_name: dict[str, str] = {}
    for arm, (made, *_) in evaluations.items():
        other = by_name.setdefault(made.name, arm)
        if other != arm:
            raise ConfigError(
                f"config.arms: {arm} has the stages and settings of {other}, so that both are the "
                "same model, asked alike; give one of them another stage or setting"
            )


class Place(quickstart.Run):
    """The quickstart's stages, with their folders where a study has them."""

    has_own_search = False  # arms that search otherwise share trainings

    def __init__(self, cfg: QuickstartRun, usage: Usage, folder: Path, start: str = ""):
        if cfg.checkpoint.folder:
            elsewhere = f"{cfg.checkpoint.folder}/{folder.name}"
            kept = dataclasses.replace(cfg.checkpoint, folder=elsewhere)
            cfg = dataclasses.replace(cfg, checkpoint=kept)
        super().__init__(dataclasses.replace(cfg, workdir=str(folder)), usage)
        self._start = start

    def of(self, text: Path, tokenizer: Path, cache: Path | None = None) -> Place:
        """Itself, with the data, the index, the tokenizer and the cache of these folders."""
        self.data, self.index = text / "data", text / "index"
        index = self.cfg.search.index or str(self.index)
        self.search = dataclasses.replace(self.cfg.search, index=index)
        self.tokenizer = Path(self.cfg.init) if self.cfg.init else tokenizer / "tokenizer"
        self.cache = cache / "cache" if cache else self.cache
        return self

    def checkpoints(self, name: str) -> str:
        """Of "init" and "model" the weights that the place starts from."""
        return self._start if name in ("init", "model") else super().checkpoints(name)


class OfStudy(NamedTuple):
    """What an arm is told that no recipe has; see `StudyRun`."""

    method: str
    gold_left_out: float
    ppl_by: str
    own_examples: int
    own_samples: int
    own_least: int


class Scorer(NamedTuple):
    """What says how hard a span is, and what tells it from others."""

    model: PplConfig
    told_by: str
    after_training: bool


class Lessons(NamedTuple):
    """What a training reads of a cache."""

    arm: str
    stage: str
    curriculum: str
    split: str
    kind: Kind


class Workshop:
    """All that a study makes, in order; equal things are one."""

    def __init__(self, folder: Path, usage: Usage):
        self.folder, self._usage = folder, usage
        self.all: dict[str, Made] = {}
        self._asking: dict[str, str] = {}  # text → an arm that trains on its questions
        self._trained: dict[str, Made] = {}  # arm → its first training
        self._lessons: dict[str, dict[Lessons, None]] = {}  # cache → what is read of it

    def check_lessons(self) -> None:
        """Raises ConfigError for a curriculum that a cache has no records for.

        Of the caches that are there, each once.
        """
        folders = {name: self.folder / name / "cache" for name in self._lessons}
        for name in [n for n, folder in folders.items() if (folder / "manifest.json").exists()]:
            manifest, read = Manifest.load(folders[name]), self._lessons.pop(name)
            for arm, stage, *lessons in read:
                try:
                    Order(manifest, *lessons, seed=0)
                except CacheError as error:
                    raise ConfigError(f"config.arms: {arm}: {stage}: {error}") from error

    def check_weights(self, made: Made) -> None:
        """Raises ConfigError for a training by a study that has its checkpoints elsewhere."""
        record = run_record.read(self.at(made) / made.kind)
        if not made.weights or record is None:
            return
        found = record["config"]["checkpoint"]["folder"]
        if has_steps(found) and not has_steps(made.weights):
            raise ConfigError(
                f"{self.at(made)} is a training whose weights lie in {found}, and this study looks "
                f"for them in {made.weights}: give the config.checkpoint.folder of the study that "
                "made it, or another config.made"
            )

    def items(self, reference: str, cfg: QuickstartRun, own: OfStudy, arms: Iterable[str]) -> Made:
        """The text whose held-out examples are asked and whose tokenizer is taken.

        arms: names of all. Raises ConfigError where one of them says how hard its spans are, which
        is trained with that tokenizer, and as `add` does.
        """
        if cfg.ramp.strategy == "ppl" and own.ppl_by in arms:
            raise ConfigError(
                f"config.reference is {reference!r}, whose spans the arm {own.ppl_by} measures "
                "(config.ppl_by) once it is trained, and all arms are trained with the reference's "
                "tokenizer and asked its items: name another arm, or give config.ppl_by the folder "
                "or file of a model"
            )
        scorer = self._scorer(cfg, own.ppl_by)
        return self.text(cfg, own.gold_left_out, f"{reference}/items", scorer)

    def add(
        self,
        arm: Arm,
        cfg: QuickstartRun,
        own: OfStudy,
        items: Made,
        seed: int,
    ) -> tuple[list[Made], Made]:
        """The trainings of an arm with a seed and its evaluation; all before them is added too.

        items: as `items` gives it. Raises ConfigError where no model says how hard spans are.
        """
        of = f"{arm.name}/{seed}"
        tokenizer = self._tokenizer(cfg, items, of)
        scorer = self._scorer(cfg, own.ppl_by, tokenizer)
        text = self.text(cfg, own.gold_left_out, of, scorer, own.method)
        if arm.has_questions:
            self._asking.setdefault(text.name, arm.name)
        cache = self._cache(cfg, text, tokenizer, of) if arm.stages else None
        seeded, last = with_seed(cfg, seed), None
        trained: list[Made] = []
        for stage in arm.stages:
            if stage == "self_sft":
                samples = self._samples(seeded, own, (text, tokenizer), last, of)
                cache = self._cache(seeded, text, tokenizer, of, samples)
            assert cache is not None
            read = self._lessons.setdefault(cache.name, {})
            read[_lessons(arm.name, stage, cfg)] = None
            last = self._training(stage, seeded, (text, items, tokenizer, cache), last, of)
            trained.append(last)
        if trained:
            self._trained.setdefault(arm.name, trained[0])
        return trained, self._evaluation(seeded, text, items, tokenizer, last, of)

    def _scorer(
        self, cfg: QuickstartRun, ppl_by: str, tokenizer: Made | None = None
    ) -> Scorer | None:
        """The model that says how hard spans are. Raises ConfigError where there is none.

        tokenizer: of an arm's, since checkpoints hold none.
        """
        if cfg.ramp.strategy != "ppl":
            return None
        made = self._trained.get(ppl_by)
        if not (made or ppl_by or cfg.init) or (ppl_by and not made and not Path(ppl_by).exists()):
            before = ", ".join(self._trained) or "none"
            raise ConfigError(
                f"config.ppl_by is {ppl_by!r}, and ramp.strategy ppl needs a model that says how "
                f"hard a span is: an arm that trains and stands before ({before}), or the folder "
                "or file of a model; empty: that of config.init"
            )
        weights = _weights(cfg, made) if made or not ppl_by else ppl_by
        own = ""
        if made and tokenizer:
            own = cfg.init or str(self.at(tokenizer) / "tokenizer")
        ppl = PplConfig(init=weights, tokenizer=own, compute=cfg.compute, mesh=cfg.mesh)
        told = made.made_from if made else storage.fingerprint(weights).hex()
        return Scorer(ppl, told, after_training=made is not None)

    def text(
        self,
        cfg: QuickstartRun,
        gold_left_out: float,
        of: str,
        scorer: Scorer | None = None,
        method: str = "agent",
    ) -> Made:
        """A corpus with its examples, its index and demonstrations of a method."""

        def make(folder: Path) -> dict[str, Any]:
            run = Place(cfg, self._usage, folder)
            run.ppl = scorer.model if scorer else run.ppl
            record = quickstart.make_ramp(run)
            asks = self._asking.get(folder.name)
            if asks and not run.has_questions:
                raise ConfigError(
                    f"config.arms: {asks} trains on questions, and {cfg.corpus.path or 'the atlas'}"
                    " gives none to train on and to hold out; give them as config.corpus.questions"
                )
            passages = run.data
            if gold_left_out:
                passages = folder / "thinned"
                leave_out_gold(run.data, passages, gold_left_out)
            if not cfg.search.index:
                record |= steps.make_index(passages, run.index, cfg.corpus.language)
            return record | quickstart.make_demonstrations(run, method)

        decides = settings(cfg, _TEXT) | {"gold_left_out": gold_left_out}
        decides |= {"ppl": scorer.told_by} if scorer else {}
        decides |= {"method": method} if method != "agent" else {}
        waits = scorer is not None and scorer.after_training
        return self._put("text", decides, make, of, Work((("text", 1),)), waits)

    def _tokenizer(self, cfg: QuickstartRun, items: Made, of: str) -> Made:
        def make(folder: Path) -> dict[str, Any]:
            place = Place(cfg, self._usage, folder).of(self.at(items), folder)
            return quickstart.make_tokenizer(place)

        keys = ("tokenizer_vocab_size", "init", "tools")
        decides = {"text": items.made_from, **settings(cfg, keys)}
        return self._put("tokenizer", decides, make, of, Work((("tokenizer", 1),)))

    def _samples(
        self,
        cfg: QuickstartRun,
        own: OfStudy,
        read: tuple[Made, Made],
        student: Made | None,
        of: str,
    ) -> Made:
        """Demonstrations of a text and a student's own. read: the text and the tokenizer."""
        text, tokenizer = read
        counts = own.own_examples, own.own_samples

        def make(folder: Path) -> dict[str, Any]:
            place = Place(cfg, self._usage, folder, _weights(cfg, student))
            place.of(self.at(text), self.at(tokenizer))
            return self_taught.sample(place, folder, *counts, own.own_least)

        decides = settings(cfg, (*_MODEL, *_SAMPLING)) | _start(cfg, student)
        decides |= {"text": text.made_from, "tokenizer": tokenizer.made_from, "counts": counts}
        decides |= {"least": own.own_least} if own.own_least != 1 else {}
        # An item of an evaluation is sampled like one of its trajectories.
        work = Work((("evaluate", counts[0] * counts[1]),))
        return self._put("samples", decides, make, of, work, waits=True)

    def _cache(
        self,
        cfg: QuickstartRun,
        text: Made,
        tokenizer: Made,
        of: str,
        samples: Made | None = None,
    ) -> Made:
        """Tokens of a text's demonstrations, or of those with a student's own."""

        def make(folder: Path) -> dict[str, Any]:
            place = Place(cfg, self._usage, folder).of(self.at(text), self.at(tokenizer), folder)
            place.data = self.at(samples or text) / "data"
            return quickstart.make_cache(place)

        decides = {"text": (samples or text).made_from, "tokenizer": tokenizer.made_from}
        decides |= settings(cfg, _CACHE)
        waits = text.waits or samples is not None
        return self._put("cache", decides, make, of, Work((("cache", 1),)), waits)

    def _training(
        self,
        stage: str,
        cfg: QuickstartRun,
        read: tuple[Made, Made, Made, Made | None],
        before: Made | None,
        of: str,
    ) -> Made:
        """A stage of an arm. read: its text, the items that it is measured on, tokenizer, cache."""
        text, items, tokenizer, cache = read
        section, optim = (getattr(cfg, name) for name in STAGES[stage])
        train: Callable[..., dict[str, Any]] = quickstart.run_sft
        work: Callable[..., Work] = workload.of_sft
        decides = settings(cfg, (*_MODEL, *STAGES[stage])) | _guard(cfg.survival)
        if stage.endswith("dapo"):
            train, work = quickstart.run_dapo, workload.of_dapo
            judge = ("judge",) if section.reward == "judge" else ()
            decides |= settings(cfg, (*_SAMPLING, *judge)) | {"text": text.made_from}
            decides |= _rollback(cfg.alarms)
        if lessons_of(cfg, section.curriculum) != SCHEDULE:
            decides |= settings(cfg, ("lessons",))
        if cfg.heldout_points:
            decides |= settings(cfg, _MEASURED)
            decides |= {n: made.made_from for n, made in (("text", text), ("items", items))}

        def make(folder: Path) -> dict[str, Any]:
            assert cache is not None
            place = Place(cfg, self._usage, folder, _weights(cfg, before))
            place.of(self.at(text), self.at(tokenizer), self.at(cache))
            place.data = self.at(items) / "data"  # what it is measured on; it trains on the cache
            return train(place, stage, "init", section, optim)

        decides |= {"cache": cache and cache.made_from} | _start(cfg, before)
        return self._put(stage, decides, make, of, work(cfg, section, optim), trained_by=cfg)

    def _evaluation(
        self,
        cfg: QuickstartRun,
        text: Made,
        items: Made,
        tokenizer: Made,
        model: Made | None,
        of: str,
    ) -> Made:
        def make(folder: Path) -> dict[str, Any]:
            place = Place(cfg, self._usage, folder, _weights(cfg, model))
            place.of(self.at(text), self.at(tokenizer))
            place.data = self.at(items) / "data"
            return quickstart.evaluate_model(place, "model")

        decides = settings(cfg, (*_MODEL, *_SAMPLING, "eval")) | _start(cfg, model)
        decides |= {n: made.made_from for n, made in (("text", text), ("items", items))}
        decides |= {"tokenizer": tokenizer.made_from}
        return self._put("evaluate", decides, make, of, workload.of_evaluation(cfg))

    def at(self, made: Made) -> Path:
        return self.folder / made.name

    def _put(
        self,
        kind: str,
        decides: Mapping[str, Any],
        make: Callable[[Path], dict[str, Any]],
        of: str,
        work: Work,
        waits: bool = False,
        trained_by: QuickstartRun | None = None,
    ) -> Made:
        made = Made(kind, stamp.hash_of(decides), make, work, waits=waits)
        if trained_by:
            weights = Place(trained_by, self._usage, self.at(made)).checkpoints(kind)
            made = dataclasses.replace(made, weights=weights)
        made = self.all.setdefault(made.name, made)
        if of not in made.of:
            made.of.append(of)
        return made


def _weights(cfg: QuickstartRun, made: Made | None) -> str:
    """Where the weights are that something starts from."""
    return made.weights if made else cfg.init


def _lessons(arm: str, stage: str, cfg: QuickstartRun) -> Lessons:
    section = getattr(cfg, STAGES[stage][0])
    if stage.endswith("dapo"):
        return Lessons(arm, stage, section.curriculum, section.split, "prompt")
    return Lessons(arm, stage, section.curriculum, "train", "sft")


def _start(cfg: QuickstartRun, made: Made | None) -> dict[str, Any]:
    return {"start": made.made_from if made else settings(cfg, ("init",))}


def _guard(survival: SurvivalConfig) -> dict[str, Any]:
    """What decides which updates of a training are applied, and whether one ends it."""
    names = ["guard", "spike_sigma"]
    names += ["spike_window"] if survival.spike_sigma else []
    names += ["max_skips"] if survival.guard == "skip" else []
    changed = _changed(survival)
    return {f"survival.{name}": changed[name] for name in names if name in changed}


def _rollback(alarms: AlarmsConfig) -> dict[str, Any]:
    """What decides from where and how a training goes on that has gone wrong."""
    if alarms.action != "rollback":
        return {}
    return {f"alarms.{name}": value for name, value in _changed(alarms).items()}


def _changed(section: SurvivalConfig | AlarmsConfig) -> dict[str, Any]:
    """The keys that have another value than their default: a new key changes no name by itself."""
    default = dataclasses.asdict(type(section)())
    return {k: v for k, v in dataclasses.asdict(section).items() if v != default[k]}


def settings(cfg: QuickstartRun, names: Iterable[str]) -> dict[str, Any]:
    """Values of the keys, and of all keys of the sections, that change a result.

    Of a key that names a file or folder, what tells its contents from others.
    """
    wanted, keys = tuple(names), {known.name: known for known in describe_keys(type(cfg))}
    found = {}
    for name, value in leaves(type(cfg), dataclasses.asdict(cfg)).items():
        known = keys[name]
        if known.harmless or not any(name == w or name.startswith(f"{w}.") for w in wanted):
            continue
        found[name] = (known.content and run_record.content_of(known, value)) or value
    return found


def with_seed(cfg: QuickstartRun, seed: int) -> QuickstartRun:
    """The config with all that a training draws drawn by another seed; 0 changes nothing."""

    def moved(section: Any) -> Any:
        return dataclasses.replace(section, seed=later_seed(section.seed, seed))

    names = ("sft", "dapo", "qa_sft", "qa_dapo", "rollout")
    parts = {name: moved(getattr(cfg, name)) for name in names}
    return dataclasses.replace(cfg, seed=later_seed(cfg.seed, seed), **parts)


def leave_out_gold(data: Path, folder: Path, share: float) -> int:
    """FOLDER/passages.jsonl: the passages without a share of those that questions' answers need.

    By a hash of the id, so that a larger share leaves out all that a smaller one does. Returns how
    many are left out. Raises ConfigError where no question names such passages.
    """
    files = [data / "questions" / f"{split}.jsonl" for split in SPLITS]
    asked = [q for file in files if file.is_file() for q in read_jsonl(file, QAExample)]
    gold = sorted({i for q in asked for i in q.gold}, key=_hashed)
    if not gold:
        raise ConfigError(
            f"config.gold_left_out is {share:g}, and no question of {data} names the passages "
            "that hold its answer"
        )
    without = set(gold[: round(share * len(gold))])
    passages = read_passages(data / "passages.jsonl", max_bad_fraction=0.0)
    write_passages(folder / "passages.jsonl", (p for p in passages if p.id not in without))
    return len(without)


def _hashed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
