"""Samples groups of a step's prompts with the rollout engine until enough of them have spread."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from masksearch_jax.core import retrieval
from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import (
    SEARCH,
    SEARCH_ALONE,
    Example,
    JsonObject,
    Trajectory,
    to_json,
)
from masksearch_jax.data import batches
from masksearch_jax.data.demonstrations import parse_example
from masksearch_jax.parallel import hosts
from masksearch_jax.rl import reward_figures
from masksearch_jax.rl.groups import (
    Counts,
    Group,
    lacking,
    oldest,
    pack,
    score_groups,
    unpack,
)
from masksearch_jax.rl.reward_pool import RewardError, RewardPool, UnreadableError
from masksearch_jax.rl.rewards import JUDGE_UNREADABLE, RewardTerms
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.rollout.model import Policy
from masksearch_jax.rollout.stats import EngineStats

Shared = TypeVar("Shared")

# Figures of which a process has its part; of the others all have their own.
_TOTALS = (
    *("groups_sampled", "groups_kept", "groups_carried", "groups_expired"),
    *("rollout_tokens_per_second", "restarted"),
)


class Outage(Exception):
    """So much of a step failed for no fault of the policy that it teaches nothing: sample it again.

    tool: what failed. state: how. until: what must come before another try is of use.
    """

    state, until = "down", "once it answers"

    def __init__(self, tool: str, said: str):
        super().__init__(said)
        self.tool = tool


class ToolOutage(Outage):
    """Of one tool of the agent."""

    def __init__(self, name: str, failed: int, asked: int, error: str):
        calls = "searches" if name == SEARCH else f"calls of {name}"
        super().__init__(f"{name} tool", f"{failed} of {asked} {calls} failed: {error}")


class JudgeOutage(Outage):
    """Of an endpoint that gives no verdicts, or none that can be read."""

    def __init__(self, said: str):
        super().__init__("judge", said)


class ClockOutage(Outage):
    """Of trajectories that have no time to end, whether search is too slow or the sampling."""

    state = "too slow"
    until = "once search is faster, or with a larger rollout.deadline or search.workers"

    def __init__(self, ended: int, asked: int, deadline: float):
        said = f"were ended by config.rollout.deadline, {deadline:g} s"
        super().__init__("sampling", f"{ended} of {asked} trajectories {said}")


class OwnJudge(Protocol):
    """The model that is trained, asked for verdicts that the engine decodes: `agents.own_model`."""

    def begin(self) -> None: ...
    def asked(self, pending: Sequence[futures.Future]) -> list[Request]: ...
    def take(self, trajectory: Trajectory) -> None: ...


class Scored(NamedTuple):
    """A trajectory that has ended, and its reward when there is one."""

    trajectory: Trajectory
    reward: futures.Future[RewardTerms]


class GroupSampler:
    """Draws prompts and samples groups; those that are not whole at a step's end go on in the next.

    So do groups with spread beyond those that a step trains on, which are `carried`. No token that
    is trained on is older than `rollout.max_staleness` versions: a sample that is, of a group that
    is open, is sampled anew; a group that would be is not carried, but counted as `expired`.
    A prompt's stream is its number in the run, whatever the number of processes. Where a share of
    `tool_failures` of the calls of one of the `tools` fails, `step` raises ToolOutage, and where
    the clock ends such a share of the trajectories, ClockOutage. A trajectory goes to the pool of
    rewards as soon as it ends, and a group is whole once all its rewards are there. With an
    `own_judge` the engine decodes its verdicts once the trajectories of a round have ended.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: batches.PromptBatches,
        dapo: DapoConfig,
        rollout: RolloutConfig,
        pool: RewardPool,
        tool_failures: float = 1.0,
        own_judge: OwnJudge | None = None,
        tools: tuple[str, ...] = SEARCH_ALONE,
    ):
        self.own_judge = own_judge
        self.tool_failures, self.tools = tool_failures, tools
        self.engine, self.prompts, self.dapo, self.rollout = engine, prompts, dapo, rollout
        self.pool = pool
        self.partial = rollout.in_flight != "drop"
        self.wanted = dapo.groups // jax.process_count()
        self.stream = 0
        self.open: dict[str, tuple[batches.Prompt, dict[int, Scored]]] = {}
        self.again: list[Request] = []
        self.carried: list[Group] = []
        self.expired = self.refills = 0  # in the last step; refills: rounds of further prompts

    def state(self) -> JsonObject:
        """The next stream, this process's prompts whose groups are open, and groups carried."""
        own = [
            {
                "stream": name,
                "ids": prompt.ids.tolist(),
                "example": json.dumps(to_json(prompt.example)),
            }
            for name, (prompt, _) in self.open.items()
        ]
        return {"stream": self.stream, "open": own, "carried": [*self.carried]}

    @staticmethod
    def gather(state: JsonObject) -> JsonObject:
        """JSON of `state` with what each process has, in their order; all must call it."""
        own = [state["open"], [pack(group) for group in state["carried"]]]
        found = [json.loads(text) for text in hosts.gather_texts(json.dumps(own))]
        opened, carried = zip(*found, strict=True)
        return state | {"open": [*opened], "carried": [*carried]}

    def restore(self, state: JsonObject) -> None:
        """Goes on from a `state` that was gathered; open groups are sampled anew.

        As many processes as before go on with their own groups each; others share them equally.
        """
        self.carried = [unpack(text) for text in _own(state["carried"])]
        self._go_on(state["stream"], _own(state["open"]))

    def rewind(self, state: JsonObject) -> None:
        """Goes back to a `state` of this process, whatever has been sampled since."""
        self.engine.drop()
        self.open, self.again, self.carried = {}, [], [*state["carried"]]
        self._go_on(state["stream"], state["open"])

    def _go_on(self, stream: int, opened: Sequence[JsonObject]) -> None:
        self.stream = stream
        for saved in opened:
            ids = np.asarray(saved["ids"], np.int32)
            prompt = batches.Prompt(ids, parse_example(saved["example"]))
            self.again += self._request(int(saved["stream"]), prompt)

    def step(self, model: Policy, version: int) -> tuple[list[Group], list[Group]]:
        """This process's groups with spread, at most its share, and all that it saw.

        Raises Outage, on all processes; RewardError where rewards fail for another reason.
        """
        self._renew(version)
        if self.own_judge:
            self.own_judge.begin()
        kept, self.carried = self.carried, []
        carried = len(kept)
        seen: list[Group] = []
        counts: list[Counts] = []
        drawn = next(self.prompts)
        if ahead := self._ahead():
            drawn = [*drawn, *self.prompts.extra(ahead)]
        for round_ in range(self.dapo.max_refills):
            if round_:
                short = lacking(counts, self.wanted)
                if not short:
                    break
                drawn = self.prompts.extra(short * jax.process_count())
            self.refills = round_
            requests, self.again = self.again + self._requests(drawn), []
            self._sample(model, version, requests, kept, seen)
            counts = self._counts(Counts(len(kept), len(kept) - carried, len(seen)), seen)
        kept.sort(key=lambda group: group.stream)
        kept, surplus = kept[: self.wanted], kept[self.wanted :]
        bound = version + 1 - self.rollout.max_staleness
        self.carried = [group for group in surplus if group.oldest >= bound]
        self.expired = len(surplus) - len(self.carried)
        return kept, sorted(seen, key=lambda group: group.stream)

    def _ahead(self) -> int:
        """Groups to draw beyond those wanted, so that `oversample` times these are in flight."""
        wanted = round((self.dapo.oversample - 1) * self.wanted)
        if not self.partial or not wanted:
            return 0
        processes = jax.process_count()
        open_ = sum(hosts.gather_counts(len(self.open)))
        return max(0, wanted - open_ // processes) * processes

    def _renew(self, version: int) -> None:
        """Asks anew for samples of open groups that are too old; others of the group wait."""
        most = self.rollout.max_staleness
        for name, (prompt, found) in self.open.items():
            old = [s for s in found if version - oldest(found[s].trajectory) > most]
            for sample in old:
                del found[sample]
                self.again.append(self._sample_request(int(name), prompt, sample))
                self.engine.stats.restarted += 1

    def _counts(self, own: Counts, seen: list[Group]) -> list[Counts]:
        """The counts of each process. Raises what `step` does, on all of them."""
        ended = (turn for group in seen for t in group.trajectories for turn in t.turns)
        turns = [turn for turn in ended if turn.queries]  # without any, no tool is asked
        calls = {name: [t.error for t in turns if t.tool == name] for name in self.tools}
        asked = [terms for group in seen for terms in reward_figures.asked_for(group)]
        if self.dapo.reward == "judge":
            asked = [terms for terms in asked if terms.failure or "judge_agreement" in terms.logged]
        failures = [why for group in seen for why in reward_figures.failures(group)]
        failed = [(len(each), [why for why in each if why]) for each in calls.values()]
        failed.append((len(asked), failures))
        verdicts = [terms.logged.get(JUDGE_UNREADABLE) for terms in asked]
        failed.append((len(asked) - len(failures), [""] * verdicts.count(1.0)))
        status = [t.status for group in seen for t in group.trajectories]
        failed.append((len(status), [""] * status.count("out_of_time")))
        said = [own, *([n, len(whys), whys[:1]] for n, whys in failed)]
        found = [json.loads(text) for text in hosts.gather_texts(json.dumps(said))]
        for i, name in enumerate(self.tools, 1):
            self._check_calls(name, *_summed([each[i] for each in found]))
        self._check_clock(*_summed([each[-1] for each in found])[:2])
        self._check_rewards(*_summed([each[-3] for each in found]))
        self._check_verdicts(*_summed([each[-2] for each in found])[:2])
        return [Counts(*each[0]) for each in found]

    def _check_calls(self, tool: str, asked: int, failed: int, error: str) -> None:
        if failed and failed >= self.tool_failures * asked:
            raise ToolOutage(tool, failed, asked, error)

    def _check_clock(self, ended: int, late: int) -> None:
        if late and late >= self.tool_failures * ended:
            raise ClockOutage(late, ended, self.rollout.deadline)

    def _check_rewards(self, asked: int, failed: int, error: str) -> None:
        most = self.dapo.max_reward_failures
        if failed <= most * asked:
            return
        if self.dapo.reward == "judge":
            raise JudgeOutage(f"{failed} of {asked} verdicts failed: {error}")
        raise RewardError(
            f"{failed} of {asked} samples have no reward, more than the share of {most:g} that "
            f"config.dapo.max_reward_failures allows: {error}"
        )

    def _check_verdicts(self, asked: int, unreadable: int) -> None:
        """Raises JudgeOutage; of a model of ours, which would say the same again, RewardError."""
        try:
            self.pool.check_readable(asked, unreadable)
        except UnreadableError as error:
            if self.own_judge:
                raise
            raise JudgeOutage(str(error)) from error

    def _sample(
        self,
        model: Policy,
        version: int,
        requests: list[Request],
        kept: list[Group],
        seen: list[Group],
    ) -> None:
        """Adds whole groups to `seen`, those with spread to `kept`; if partial, until these do.

        At its end no group lacks rewards alone: nothing depends on which of them is there first.
        """

        def has_enough() -> bool:
            self._take_whole(kept, seen)
            return self.partial and len(kept) >= self.wanted

        for trajectory in self.engine.run(model, requests, version, enough=has_enough):
            prompt, found = self.open[trajectory.example_id]
            trajectory = dataclasses.replace(trajectory, example_id=prompt.example.id)
            reward = self.pool.submit(prompt.example, trajectory)
            found[trajectory.sample] = Scored(trajectory, reward)
        if self.own_judge:
            self._judge(self.own_judge, model, version, self._pending)
        self.pool.wait(self._pending())
        self._take_whole(kept, seen)

    def check_own_judge(self, model: Policy, known: Sequence[Example]) -> None:
        """Raises UserError, on all processes, where a model of ours calls no known answer right.

        Before the first step.
        """
        if not self.own_judge:
            return
        self.own_judge.begin()
        checks = [self.pool.ask_known(example) for example in known]
        self._judge(self.own_judge, model, 0, lambda: checks)
        errors = [error for check in checks if (error := check.exception())]
        if not hosts.is_on_any(len(errors) < len(checks)):
            raise errors[0]

    def _judge(
        self,
        judge: OwnJudge,
        model: Policy,
        version: int,
        pending: Callable[[], Sequence[futures.Future]],
    ) -> None:
        """Decodes verdicts until all that is pending is done, on all processes."""
        while True:
            asked = judge.asked(pending())
            if hosts.is_on_any(bool(asked)):
                for verdict in self.engine.run(model, asked, version):
                    judge.take(verdict)
            elif hosts.is_on_any(not all(reward.done() for reward in pending())):
                self.pool.check()
            else:
                return

    def _ended(self) -> list[str]:
        """The prompts whose samples have all ended."""
        size = self.dapo.group_size
        return [name for name, (_, found) in self.open.items() if len(found) == size]

    def _pending(self) -> list[futures.Future[RewardTerms]]:
        """The rewards that groups lack whose samples have all ended."""
        found = [self.open[name][1] for name in self._ended()]
        return [s.reward for samples in found for s in samples.values() if not s.reward.done()]

    def _take_whole(self, kept: list[Group], seen: list[Group]) -> None:
        for name in self._ended():
            prompt, found = self.open[name]
            samples = [found[i] for i in sorted(found)]
            if not all(s.reward.done() for s in samples):
                continue
            del self.open[name]
            terms = [s.reward.result() for s in samples]
            group = Group(prompt.example, [s.trajectory for s in samples], terms, int(name))
            for why in reward_figures.failures(group):
                logging.getLogger(__name__).warning("a sample without a reward: %s", why)
            seen.append(group)
            if score_groups([group], self.dapo, self.rollout)[2][0]:
                kept.append(group)

    def _requests(self, drawn: Sequence[batches.Prompt]) -> list[Request]:
        """One request per sample of each prompt; streams are numbered as one process would."""
        first = self.stream + jax.process_index() * len(drawn)
        self.stream += jax.process_count() * len(drawn)
        return [r for i, prompt in enumerate(drawn, first) for r in self._request(i, prompt)]

    def _request(self, stream: int, prompt: batches.Prompt) -> list[Request]:
        self.open[str(stream)] = (prompt, {})
        samples = range(self.dapo.group_size)
        return [self._sample_request(stream, prompt, sample) for sample in samples]

    @staticmethod
    def _sample_request(stream: int, prompt: batches.Prompt, sample: int) -> Request:
        source = retrieval.source_of(prompt.example)
        return Request(str(stream), prompt.ids, stream % 2**32, sample, source)


def _own(each: Sequence[Sequence[Shared]]) -> Sequence[Shared]:
    """Of what each process had, what this one has, on any number of them."""
    if len(each) == jax.process_count():
        return each[jax.process_index()]
    return [x for own in each for x in own][jax.process_index() :: jax.process_count()]


def _summed(each: Sequence[tuple[int, int, list[str]]]) -> tuple[int, int, str]:
    """Numbers asked and failed of all processes, and the first error that there is."""
    asked, failed, errors = zip(*each, strict=True)
    return sum(asked), sum(failed), next((error for own in errors for error in own), "")


def figures(
    seen: Sequence[Group],
    kept: Sequence[Group],
    expired: int,
    stats: EngineStats,
    version: int,
    dapo: DapoConfig,
    rollout: RolloutConfig,
    tools: tuple[str, ...] = SEARCH_ALONE,
) -> dict[str, float]:
    """What a step's groups looked like and what sampling them took; all processes must call it.

    Means are over all that ended by the policy's doing, on all processes; those of failures are
    over all that ended. Without any there is none. Staleness is in versions, of the tokens of
    `kept`. tools: of the run; where there are others than search, `calls_NAME`, `failures_NAME` and
    `unreadable_NAME` of each too.
    """
    counted = [t for g in seen for t in g.counted]
    ended = [t for g in seen for t in g.trajectories]
    values = {
        "searches": [float(t.searches) for t in counted],
        "sampled_tokens": [float(t.sampled.sum()) for t in counted],
        "truncated": [float(t.status == "out_of_tokens") for t in counted],
        "tool_failures": [float(t.status == "tool_failure") for t in ended],
        "out_of_time": [float(t.status == "out_of_time") for t in ended],
    }
    for name in tools if tools != SEARCH_ALONE else ():
        calls = [[turn for turn in t.turns if turn.tool == name] for t in counted]
        values[f"calls_{name}"] = [float(len(own)) for own in calls]
        values[f"unreadable_{name}"] = [float(sum(t.unreadable > 0 for t in own)) for own in calls]
        values[f"failures_{name}"] = [
            float(sum(turn.tool == name and bool(turn.error) for turn in t.turns)) for t in ended
        ]
    sampled = {g.stream for g in seen}
    ages = [version - t.versions[t.sampled] for g in kept for t in g.trajectories]
    tokens = np.concatenate([*ages, np.zeros(0, np.int32)])
    own = stats.figures() | {
        "groups_sampled": float(len(seen)),
        "groups_kept": float(len(kept)),
        "groups_carried": float(sum(g.stream not in sampled for g in kept)),
        "groups_expired": float(expired),
        "staleness": float(tokens.sum()),
        "tokens": float(len(tokens)),
    }
    found = reward_figures.figures(seen, dapo, rollout) | hosts.means(values)
    found |= hosts.mean_over_processes(own)
    found["staleness"] /= max(found.pop("tokens"), 1e-9)
    found["staleness_max"] = float(hosts.most([int(tokens.max(initial=0))])[0])
    return found | {name: found[name] * jax.process_count() for name in _TOTALS}
