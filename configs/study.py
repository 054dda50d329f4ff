"""Studies by name: what is asked, its arms, and the reference that they are compared with.

    python -m masksearch_jax.study --config=configs/study.py:ramp_first
    ... --config=configs/study.py:curriculum,runlocal       smoke run: every part, nothing learned
    ... --config=configs/study.py:reward,judge              with an arm paid by `config.judge`
    ... --config=configs/study.py:ramp_first,hf --config.init=FOLDER    a model of yours
    ... --config=configs/study.py:recipe,dapo --config.init=SmolLM2-135M-Instruct.gguf

An arm is "NAME: STAGE … KEY=VALUE …"; `{sft.steps//2}` in it is half of what the study's key says,
from the command line too. A named model, or `hf`, has text, sizes and steps of `configs/real.py`,
and with `gpu` those for a GPU; without one it is the quickstart's small model, of `recipe`
SmolLM2-135M. Steps of the small model are sized for three seeds on two CPU cores in at most 45
minutes, by what the quickstart's stages took; docs/studies.md has each study's. Every number here
is ours.
"""

from ml_collections import ConfigDict

from configs import common, quickstart, real

UPDATES = 1600  # of SFT that each arm has, whatever it spends them on
DAPO_STEPS = 30
SMOKE_UPDATES, SMOKE_DAPO_STEPS = 4, 1
# Of the quickstart's model, seconds on two CPU cores that do nothing else.
COSTS = ("text=22", "tokenizer=3", "cache=26", "sft=0.053", "dapo=0.04", "evaluate=0.008")


# Of SmolLM2-135M and 54,533 passages; a trajectory of DAPO is reckoned.
SMOLLM2_COSTS = ("text=30", "tokenizer=1", "cache=23", "sft=8", "dapo=13", "evaluate=3")
# Half of the updates for RAMP, of these half with one mask; the others for questions.
LESSONS = "sft.curriculum=0:ramp_sft_upto1,{sft.steps//4}:ramp_sft_upto4"
HALVES = f"sft.steps={{sft.steps//2}} qa_sft.steps={{sft.steps-sft.steps//2}} {LESSONS}"
RAMP_HALF = f"sft.steps={{sft.steps//2}} {LESSONS}"
# All of them for questions, at the rate of a first training.
QUESTIONS = "qa_sft.steps={sft.steps} qa_sft_optim.learning_rate={sft_optim.learning_rate}"


def lessons(*mixtures: str) -> str:
    """A curriculum that gives each mixture the same number of the updates `sft.steps`."""
    step = f"sft.steps//{len(mixtures)}"
    return ",".join(f"{{{step}*{i}}}:{mixture}" for i, mixture in enumerate(mixtures))


def curriculum(c: ConfigDict) -> None:
    """Does one mask first, four last, teach more than all at once with as many updates?

    `gated` goes on once it fills enough masks of its lesson, and at the latest where `rising` does.
    """
    rising = lessons(*(f"ramp_sft_upto{k}" for k in (1, 2, 3, 4)))
    gate = "lessons.by=gated lessons.ceiling={sft.steps//4}"
    c.arms = (
        "mixed: ramp_sft sft.curriculum=0:ramp_sft_mixed",
        f"rising: ramp_sft sft.curriculum={rising}",
        f"gated: ramp_sft sft.curriculum={rising} {gate}",
    )
    c.reference = "mixed"


def reward(c: ConfigDict) -> None:
    """Does a reward of recall make answers longer, and do they score more?

    SFT is three eighths of the other studies', so that a reward has something left to teach. The
    models are asked at the temperature at which DAPO samples.
    """
    if c.sft.steps > SMOKE_UPDATES:
        c.sft.steps, c.dapo.steps = c.sft.steps * 3 // 8, 3 * c.dapo.steps
    c.eval.suites, c.eval.temperature = ("ramp",), 1.0
    c.sft.curriculum = "0:ramp_sft_upto2"
    c.arms = (
        "sft: ramp_sft",
        "recall: ramp_sft ramp_dapo dapo.reward=recall",
        "penalised: ramp_sft ramp_dapo dapo.reward=penalised",
    )
    c.reference = "recall"
    c.metrics = ("precision", "answer_tokens", "searches")


def masking(c: ConfigDict) -> None:
    """Which spans are masked: any, rare ones of telling types, or what a model finds hard?

    Of a model that training starts from, how hard it finds them; the small one has random weights,
    and what the arm `random` has learned says so. Its losses have a scale of their own: none is
    left out.
    """
    c.eval.suites = ("ramp",)
    c.sft.curriculum = "0:ramp_sft_mixed"
    limits = ""
    if "init" not in c:
        c.ppl_by, limits = "random", " ramp.min_nll=0 ramp.max_nll=1000"
    c.arms = (
        "random: ramp_sft ramp.strategy=random",
        "weighted: ramp_sft ramp.strategy=weighted",
        f"ppl: ramp_sft ramp.strategy=ppl{limits}",
    )
    c.reference = "random"


def ramp_first(c: ConfigDict) -> None:
    """Do masked paragraphs before questions help, and what share of the updates is theirs?

    All models are asked after the questions: the suite ramp says what these have left of it.
    """
    c.sft.curriculum, c.qa_sft.curriculum = "0:ramp_sft_mixed", "0:qa_sft_mixed"
    arms = ["none: qa_sft qa_sft.steps={sft.steps}"]
    for name, quarters in (("quarter", 1), ("half", 2), ("three_quarters", 3)):
        first = f"sft.steps*{quarters}//4"
        shares = f"sft.steps={{{first}}} qa_sft.steps={{sft.steps-{first}}}"
        arms.append(f"{name}: ramp_sft qa_sft {shares}")
    c.arms, c.reference = tuple(arms), "none"


def recipe(c: ConfigDict) -> None:
    """What does a pretrained model answer as it came, after questions alone, after RAMP and these?

    As it came it is asked closed book, with one retrieval (rag), and as an agent by its prompt. The
    others have as many updates of SFT, of which RAMP takes half of the last one's. The first
    training of each has the rate of RAMP's.
    """
    c.qa_sft.curriculum, c.qa_dapo.curriculum = "0:qa_sft_mixed", "0:qa_mixed"
    c.qa_sft_optim.learning_rate = 1e-4
    c.arms = (
        "closed_book: eval.methods=closed_book eval.whole_replies=True",
        "rag: eval.methods=rag eval.whole_replies=True",
        "prompt: eval.methods=agent",
        f"qa_alone: qa_sft {QUESTIONS}",
        f"ramp_first: ramp_sft qa_sft {HALVES}",
    )
    c.reference = "qa_alone"
    c.metrics = ("f1", "em", "format_rate", "searches")
    c.seeds = 1
    c.heldout_points = 0
    c.ramp.heldout_fraction = 0.25  # so that 300 of some thousand questions are held out
    c.ramp.rl_fraction = 0.1
    if c.sft.steps > SMOKE_UPDATES:
        c.eval.examples = 300


def ramp_sft(c: ConfigDict) -> None:
    """One mask: does the agent fill it better than one retrieval, or than no search at all?

    Each arm is trained for what it is asked: to search in turns, to answer from the passages of one
    retrieval with the whole paragraph, or to answer by heart.
    """
    c.ramp.max_masks = 1
    c.sft.curriculum = "0:ramp_sft_upto1"
    c.heldout_points = 0  # a curve is of an agent
    methods = ("closed_book", "rag", "agent")
    c.arms = tuple(f"{name}: ramp_sft method={name} eval.methods={name}" for name in methods)
    c.reference = "rag"
    c.eval.suites = ("ramp",)


def controls(c: ConfigDict) -> None:
    """Is it the search that answers? And does RAMP help to check statements?

    Statements are of the atlas: true, false, not told. Of other text there are none.
    """
    c.sft.curriculum = "0:ramp_sft_mixed"
    chain, alone = "ramp_sft", ()
    if "init" not in c:
        c.ramp.statements = True
        c.eval.suites = ("ramp", "statements")
        c.sft.steps = c.qa_sft.steps = c.sft.steps // 2
        c.qa_sft.curriculum = "0:ramp_sft_qa_statements"
        chain = "ramp_sft qa_sft"
        only = "qa_sft.steps={sft.steps+qa_sft.steps} qa_sft.curriculum=0:qa_sft_statements"
        alone = (f"statements_alone: qa_sft {only}",)
    methods = (("search", "agent"), ("no_search", "no_search"), ("random", "random"))
    c.arms = tuple(f"{name}: {chain} eval.methods={method}" for name, method in methods) + alone
    c.reference = "search"
    c.metrics = ("searches",)


def data_scale(c: ConfigDict) -> None:
    """Do twice and four times as many demonstrations help, with as many updates?"""
    c.demonstrations = 40 if c.sft.steps == SMOKE_UPDATES else 1000
    c.eval.suites = ("ramp",)
    c.sft.curriculum = "0:ramp_sft_mixed"
    c.arms = tuple(f"{k}x: ramp_sft demonstrations={{demonstrations*{k}}}" for k in (1, 2, 4))
    c.reference = "1x"


def self_taught(c: ConfigDict) -> None:
    """Do trajectories of its own teach a model more than the teacher's, at as many updates?"""
    c.sft.steps //= 2  # of each of two trainings
    c.eval.suites = ("ramp",)
    c.sft.curriculum = "0:ramp_sft_mixed"
    c.arms = ("static: ramp_sft more_sft", "self_taught: ramp_sft self_sft")
    c.reference = "static"


def coverage(c: ConfigDict) -> None:
    """What is lost where the index is without a tenth of the passages that answers need?"""
    half = c.sft.steps // 2
    c.sft.curriculum, c.qa_sft.curriculum = "0:ramp_sft_mixed", "0:qa_sft_mixed"
    c.sft.steps = c.qa_sft.steps = half
    c.arms = (
        "whole: ramp_sft qa_sft",
        "tenth_missing: ramp_sft qa_sft gold_left_out=0.1",
    )
    c.reference = "whole"
    c.metrics = ("gold_recall",)


STUDIES = {
    study.__name__: study
    for study in (
        curriculum,
        reward,
        masking,
        ramp_first,
        recipe,
        ramp_sft,
        controls,
        data_scale,
        self_taught,
        coverage,
    )
}


# Switch → the study that it gives another arm.
MORE_ARMS = {"judge": "reward", "dapo": "recipe", "trained_rag": "recipe", "ramp_added": "recipe"}


def get_config(arg: str = "") -> ConfigDict:
    switches = dict.fromkeys(("runlocal", "gpu", *MORE_ARMS, *STUDIES), False)
    parsed = common.parse_arg(arg, model="", **switches)
    asked = [name for name in STUDIES if parsed[name]] or ["ramp_first"]
    if len(asked) > 1:
        raise ValueError(f"one study at a time; {arg!r} names {', '.join(asked)}")
    parsed.model = parsed.model or ("smollm2-135m" if asked == ["recipe"] else "tiny")
    if parsed.gpu and parsed.model == "tiny":
        raise ValueError(f"gpu is of a pretrained model, and {arg!r} names none")
    base = quickstart if parsed.model == "tiny" else real
    on = [name for name in ("gpu", "runlocal") if parsed[name]]
    c = base.get_config(",".join([parsed.model, *on]))
    if "report_trajectories" in c:
        del c["report_trajectories"]  # a study has no report of its own
    c.workdir = f"runs/study/{asked[0]}"
    c.eval.suites, c.eval.methods = ("ramp", "questions"), ("agent",)
    c.checkpoint.keep = 1
    if parsed.runlocal:
        c.sft.steps = c.qa_sft.steps = SMOKE_UPDATES
        c.dapo.steps = c.qa_dapo.steps = SMOKE_DAPO_STEPS
    elif base is quickstart:
        c.sft.steps = c.qa_sft.steps = UPDATES
        c.dapo.steps = c.qa_dapo.steps = DAPO_STEPS
        c.costs = COSTS
    elif parsed.model == "smollm2-135m" and not parsed.gpu:
        c.costs = SMOLLM2_COSTS
    c.dapo.patience = c.qa_dapo.patience = 0  # an arm that learns nothing is a result too
    c.heldout_points = 2 if parsed.runlocal else 8
    c.heldout_examples = 2 if parsed.runlocal else 16
    if parsed.runlocal:
        c.own_examples, c.own_samples = 8, 2
        c.own_least = 0  # of a model that can do nothing rules accept nothing
    c.seeds = 2 if parsed.runlocal else 3
    c.question = " ".join((STUDIES[asked[0]].__doc__ or "").split())
    STUDIES[asked[0]](c)
    for switch, study in MORE_ARMS.items():
        if parsed[switch] and asked != [study]:
            raise ValueError(f"{switch} is an arm of the study {study}; {arg!r} names {asked[0]}")
    if parsed.judge:
        c.arms += ("judge: ramp_sft ramp_dapo dapo.reward=judge",)
    if parsed.dapo:
        c.arms += (f"ramp_first_dapo: ramp_sft qa_sft qa_dapo {HALVES}",)
    if parsed.trained_rag:
        c.arms += (f"trained_rag: qa_sft method=rag eval.methods=rag {QUESTIONS}",)
    if parsed.ramp_added:
        c.arms += (f"ramp_added: ramp_sft qa_sft {RAMP_HALF} {QUESTIONS}",)
    return c
