"""Planning for TPUs: names of slices, counts of operations, and real programs compiled for them."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import common
from masksearch_jax import plan, train_sft
from masksearch_jax.core.config import (
    ComputeConfig,
    DapoRun,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SftRun,
)
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models import attention, hf
from masksearch_jax.models.remat import REMAT
from masksearch_jax.parallel import sharding
from masksearch_jax.planning import alternatives, chips, flops, measure
from masksearch_jax.planning.hlo import Collective
from masksearch_jax.runtime import cli
from masksearch_jax.training import train_state

COMPUTE = ComputeConfig("float32", "float32", "xla", "none", 64)
OPTIM = OptimConfig(1e-3, "constant", 0, 1.0, 0.9, 0.95, 1e-8, 0.0, 1.0, 1)
SMALL_SFT = ("sft.batch_size=8", "sft.seq_len=512", "model.head_dim=128")
SMALL_DAPO = (
    *("dapo.groups=2", "dapo.minibatches=2", "dapo.micro_batch=8", "rollout.slots=16"),
    *("rollout.max_len=1024", "rollout.max_new_tokens=512"),
    "model.head_dim=128",  # which the kernel that reads the KV cache takes
)
# How users compile.
AS_USERS = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the compiler for TPUs, is not installed: pip install 'jax[tpu]'",
)


@pytest.mark.parametrize(
    ("name", "topology", "count"),
    [
        ("v5p-64", "v5p:2x4x4", 32),  # as sold by cores
        ("v5p-128", "v5p:4x4x4", 64),
        ("v4-8", "v4:2x2x1", 4),
        ("v5e-8", "v5e:2x4", 8),  # as sold by chips
        ("v6e-1", "v6e:1x1", 1),
        ("v5litepod-1", "v5e:1x1", 1),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v6e-256", "v6e:16x16", 256),
        ("tpu7x-128", "tpu7x:4x4x4", 64),
        ("V5P:2x2x4", "v5p:2x2x4", 16),
    ],
)
def test_slices_by_their_names(name, topology, count):
    found = chips.parse(name)
    assert (found.topology, found.chips) == (topology, count)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (" ", r"config\.plan\.topology is empty; it must name a TPU slice"),
        ("v5-64", "'v5-64' is no TPU slice; did you mean v"),
        ("h100-8", "Write KIND-N or KIND:AxB, KIND one of v4, v5e, v5p, v6e, tpu7x"),
        ("v5p-63", "'v5p-63' is not sold; choices: v5p-8, v5p-16"),
        ("v6e-12", "choices: v6e-1, v6e-4, v6e-8, v6e-16, v6e-32, v6e-64, v6e-128, v6e-256"),
        ("v5e:2x2x1", "a v5e slice has 2 sides, such as 1x1, 2x2, 2x4"),
        ("v5p:0x2x2", "a v5p slice has 3 sides"),
    ],
)
def test_slices_that_do_not_exist(name, says):
    with pytest.raises(chips.PlanError, match=says):
        chips.parse(name)


def test_rings_close_where_a_side_is_whole():
    assert chips.parse("v5p-64").options()["wrap"] == (False,) * 3
    assert chips.parse("v5p:4x4x8").options()["wrap"] == (True,) * 3
    assert chips.parse("v6e-128").options()["wrap"] == (False, True, False)


def test_a_chip_alone_is_the_whole_of_its_host():
    """The compiler takes hosts of four chips else, of which one chip is no whole number."""
    assert chips.parse("v6e-1").options()["chips_per_host_bounds"] == (1, 1, 1)
    assert "chips_per_host_bounds" not in chips.parse("v6e-4").options()


@needs_libtpu
@pytest.mark.parametrize("name", ["v5litepod-1", "v6e-1"])
def test_a_chip_alone_is_a_slice_that_the_compiler_knows(name, repository):
    one = chips.parse(name)
    how = {"platform": "tpu", "topology_name": one.topology} | one.options()
    devices = f"topologies.get_topology_desc(**{how}).devices"
    text = f"from jax.experimental import topologies; print(len({devices}))"
    assert run_script(repository, text) == "1\n"


def test_operations_of_a_loop_count_as_often_as_it_runs():
    def program(x, w):
        def layer(x, _):
            return jnp.tanh(x @ w), None

        x, _ = jax.lax.scan(layer, x, None, length=7)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x).sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 5), (5, 5))]
    one = 2 * 3 * 5 * 5
    assert flops.of_program(jax.make_jaxpr(program)(*shapes)) == (7 + 2) * one


@pytest.mark.parametrize(
    ("attend", "products", "sums"),
    # Of the output times its gradient splash makes a product outside of its kernels.
    [(attention.splash_attention, 2 + 3 + 4, 1), (attention.blocked_attention, 2 + 5, 0)],
)
def test_an_attention_kernel_counts_half_of_its_queries_times_its_keys(attend, products, sums):
    def loss(q, k, v, segments):
        return attend(q, k, v, segments).sum()

    q = jax.ShapeDtypeStruct((2, 512, 4, 64), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 512, 2, 64), jnp.float32)
    segments = jax.ShapeDtypeStruct((2, 512), jnp.int32)
    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    for mesh in (MeshConfig(1, 1, 1), MeshConfig(2, 1, 1), MeshConfig(2, 1, 1, 2)):
        count = mesh.data * mesh.context
        with jax.set_mesh(sharding.make_mesh(mesh, jax.devices()[:count])):
            found = flops.of_program(jax.make_jaxpr(both)(q, k, k, segments))
        assert found - sums * 2.0 * q.size == products * 2.0 * 2 * 4 * 512 * 512 * 64 / 2


@pytest.mark.parametrize("attention", ["xla", "blockwise"])
@pytest.mark.parametrize("remat", ["none", *REMAT])
def test_an_update_does_what_the_model_needs_and_what_is_computed_again(remat, attention):
    """The head's chunks are always computed again, layers where they are not kept."""
    config = to_dataclass(ModelConfig, common.model("tiny"))
    compute = ComputeConfig("float32", "float32", attention, remat, 64)
    rows, length = 2, 64
    model = hf.abstract(config, compute)
    tx = train_state.make_optimizer(OPTIM, 10)
    state = jax.eval_shape(lambda m: train_state.init_state(m, tx), model)
    kinds = dict.fromkeys(("ids", "positions", "segment_ids", "targets"), jnp.int32)
    kinds |= {"loss_weights": jnp.float32}
    batch = {k: jax.ShapeDtypeStruct((rows, length), v) for k, v in kinds.items()}
    step = train_state.make_train_step(train_sft.make_loss_fn(compute), tx)
    found = flops.of_program(step.trace(state, batch).jaxpr)
    tokens = rows * length
    need = flops.of_training(config, tokens, length)
    head = 2.0 * tokens * config.vocab_size * config.hidden_size
    layers = flops.of_forward(config, tokens, length) - head
    square = 4.0 * tokens * config.num_layers * config.num_heads * config.head_dim * length / 2
    # A layer's last product feeds nothing that the backward pass wants: it is not done again.
    last = 2.0 * tokens * config.num_layers * config.hidden_size * config.intermediate_size
    if attention == "xla":  # scores of later keys too, and computed again where layers are
        again = {"none": 0.0, "block": layers + square - last}.get(remat, square)
        assert found == need + head + 3 * square + again
    else:  # its backward pass always computes the scores again
        assert found == need + head + square / 2 + (layers - last) * (remat == "block")


def test_operations_of_published_models():
    """Six per weight and token, but for the embedding's rows, which are only looked up."""
    config = to_dataclass(ModelConfig, common.model("qwen2.5-7b"))
    table = config.vocab_size * config.hidden_size
    need = flops.of_training(config, 1, 0)
    assert need == pytest.approx(6 * (7_615_616_512 - table), rel=1e-4)


def test_collectives_between_slices_are_told_from_those_within():
    found = measure.wires(
        [
            Collective("all-reduce", 12.0, (6,), 3.0, ((0, 1, 2, 3), (4, 5, 6, 7))),
            Collective("all-reduce", 7.0, (7,), 1.0, ((0, 4), (1, 5), (2, 6), (3, 7))),
            Collective("all-reduce", 8.0, (8,), 1.0, ()),
            Collective("all-gather", 4.0, (4,), 2.0, ((0, 1, 2, 3), (4, 5, 6, 7))),
            Collective("collective-permute", 5.0, (5,), 1.0, ((0, 1), (1, 0))),
        ],
        [0, 0, 0, 0, 1, 1, 1, 1],
    )
    assert found == {
        "all-gather": {"count": 1, "ici": 2 * 3.0, "dcn": 0.0},
        "all-reduce": {"count": 3, "ici": 3 * 2 * 9.0, "dcn": 7.0 + 8.0},
        "collective-permute": {"count": 1, "ici": 5.0, "dcn": 0.0},
    }
    (alone,) = measure.wires([Collective("all-gather", 8.0, (8,), 1.0, ())], [0] * 8).values()
    assert (alone["ici"], alone["dcn"]) == (7.0, 0.0)


def test_a_stack_of_weights_is_told_from_a_layer_s_heads():
    config = to_dataclass(ModelConfig, common.model("qwen2.5-7b"))  # 28 layers, 28 heads

    def gathers(*dims, tensor=1):
        one = Collective("all-gather", 1.0, dims, 1.0, ())
        return measure.stacks_gathered([one], config, tensor)

    assert gathers(28, 3584, 512) == gathers(28, 3584, 128, tensor=4) == 1
    assert gathers(28, 128, 3584) == gathers(1, 3584, 18944) == gathers(152064, 3584) == 0


def test_an_estimate_is_the_longest_of_what_overlaps():
    found = measure.estimate(
        chips.CHIPS["v5e"],
        devices=4,
        program_flops=4 * 197e12,
        model_flops=2 * 197e12,
        traffic=2 * 819e9,
        collectives={"all-gather": {"count": 1, "ici": 100e9, "dcn": 0.0}},
    )
    assert (found["compute_seconds"], found["hbm_seconds"], found["ici_seconds"]) == (1, 2, 0.5)
    assert (found["seconds"], found["bound"], found["mfu"]) == (2, "hbm", 0.25)


def test_the_compilers_word_that_it_does_not_fit():
    says = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (17.32G) exceeds available HBM (15.75G)."
    )
    assert measure.needed(RuntimeError(says)) == {"needed": 17.32 * 2**30}
    assert measure.needed(RuntimeError("INTERNAL: something else")) is None


def command(repository, config, *overrides):
    run = [sys.executable, "-m", "masksearch_jax.plan", f"--config={repository}/configs/{config}"]
    run += [f"--config.{o}" for o in overrides]
    env = os.environ | AS_USERS
    return subprocess.run(run, cwd=repository, env=env, capture_output=True, text=True, check=False)


def test_a_slice_is_needed(repository):
    done = command(repository, "ramp_sft.py:tiny")
    assert done.returncode == 1
    assert "error: config.plan.topology is empty; it must name a TPU slice" in done.stderr


def test_a_config_of_another_main_is_told(repository):
    done = command(repository, "evaluate.py:tiny", "plan.topology=v5p-64")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: config.checkpoint lacks config.checkpoint.every; plan takes a "
        "config of train_sft or train_dapo"
    )


def config_of(repository, name, *overrides):
    argv = ["plan", f"--config={repository}/configs/{name}"]
    return cli.parse((SftRun, DapoRun), [*argv, *(f"--config.{o}" for o in overrides)])


def test_a_plan_reads_the_config_of_either_trainer(repository):
    assert type(config_of(repository, "ramp_sft.py:tiny")) is SftRun
    assert type(config_of(repository, "qa_dapo.py:tiny")) is DapoRun
    with pytest.raises(ConfigError, match=r"did you mean --config\.plan\.topology"):
        config_of(repository, "ramp_dapo.py:tiny", "plan.topolgy=v5e-8")


def test_weights_that_rollouts_share_are_not_copied(repository):
    for weights, extra in (("whole", ["copy"]), ("shared", [])):
        overrides = (*SMALL_DAPO, f"rollout.weights={weights}")
        cfg = config_of(repository, "ramp_dapo.py:tiny", *overrides)
        programs = plan.dapo_programs(cfg, sharding.make_mesh(cfg.mesh))
        assert [p.name for p in programs] == ["update", "logprobs", *extra, "tick"]


def test_the_reference_of_a_kl_penalty_is_held_beside_the_weights(repository):
    for kl, extra in (("none", []), ("k3", ["reference"])):
        cfg = config_of(repository, "ramp_dapo.py:tiny,runlocal", f"dapo.kl={kl}")
        mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
        programs = list(plan.dapo_programs(cfg, mesh))
        update, dapo = programs[0], cfg.dapo
        of_step = (dapo.groups * dapo.group_size, cfg.rollout.max_len, dapo.steps)
        size = (update.rows * dapo.minibatches, update.row_tokens)
        assert (*size, update.updates / dapo.minibatches) == of_step
        assert [p.name for p in programs if p.name == "reference"] == extra
        held = plan.held_of(programs)
        assert held.get("reference", 0) == (held["weights"] if extra else 0)


def test_what_is_tried_keeps_what_was_tried_before(repository):
    cfg = config_of(repository, "ramp_sft.py:tiny", "compute.remat=dots", "optim.accumulate=2")
    changes, runs = zip(*alternatives.smaller(cfg), strict=True)
    kept = (
        "compute.attention=splash",
        "compute.remat=block",
        "optim.accumulate=4",
        "optim.accumulate=8",
    )
    assert changes[:4] == tuple(kept[: i + 1] for i in range(4))
    assert changes[4:] == ((*kept, "mesh.context=2"), (*kept, "mesh.tensor=2"))
    for last, split in zip(runs[4:], ((2, 1), (1, 2)), strict=True):
        assert (last.compute.attention, last.compute.remat) == ("splash", "block")
        assert last.optim.accumulate == 8
        assert (last.mesh.context, last.mesh.tensor) == split
    assert (runs[0].compute.remat, runs[1].optim.accumulate) == ("dots", 2)
    splash = "compute.attention=splash"
    cfg = config_of(repository, "ramp_dapo.py:tiny", splash, "dapo.micro_batch=16")
    assert [c[-1] for c, _ in alternatives.smaller(cfg)] == [
        *("dapo.micro_batch=8", "dapo.micro_batch=4", "rollout.weights=shared"),
        *("mesh.context=2", "mesh.tensor=2"),
    ]
    for name, *whole in (
        ("ramp_dapo.py:tiny", "rollout.weights=shared"),
        ("ramp_sft.py:tiny", "sft.batch_size=2", "optim.accumulate=2"),
    ):
        cfg = config_of(repository, name, splash, *whole)
        changes = [c for c, _ in alternatives.smaller(cfg)]
        assert changes == [("mesh.context=2",), ("mesh.tensor=2",)]


def test_what_is_faster_computes_less_again(repository):
    cfg = config_of(repository, "ramp_dapo.py:tiny", "compute.remat=block")
    change, cfg = alternatives.quicker(cfg)
    assert (change, cfg.compute.remat) == ("compute.remat=dots", "dots")
    change, cfg = alternatives.quicker(cfg)
    assert (change, cfg.compute.remat) == ("compute.remat=none", "none")
    assert alternatives.quicker(cfg) is None


@needs_libtpu
@pytest.mark.slow
def test_two_axes_of_a_mesh_may_share_a_side_of_the_slice(repository):
    argv = [
        "plan",
        "--config=configs/ramp_sft.py:tiny",
        "--config.plan.topology=v6e-64",  # 8 x 8
        "--config.mesh.data=2",
        "--config.mesh.fsdp=32",
    ]
    code = (
        "from masksearch_jax import plan; from masksearch_jax.core.config import SftRun; "
        "from masksearch_jax.runtime import cli; "
        f"mesh = plan.mesh_of(cli.parse(SftRun, {argv!r}))[1]; "
        "print(mesh.devices.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["(2, 32, 1, 1)"], done.stderr


def run_script(repository, text, *args):
    """What a script prints that compiles for TPUs in a process of its own."""
    run, env = [sys.executable, "-c", text, *args], os.environ | plan.QUIET | AS_USERS
    how = {"cwd": repository, "capture_output": True, "text": True, "check": True}
    return subprocess.run(run, env=env, **how).stdout


def planned(repository, tmp_path, config, *overrides):
    """The figures of a small run on a v5e-8, the number of its weights, and what was printed."""
    path = tmp_path / "plan.json"
    done = command(repository, config, "plan.topology=v5e-8", f"plan.json={path}", *overrides)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    shapes = hf.abstract(config_of(repository, config, *overrides).model, COMPUTE)
    weights = sum(x.size for x in jax.tree.leaves(shapes))
    assert found["chips"] == 8
    # Weights of 4 bytes and two moments of each, over eight chips; norms and biases on each.
    assert found["held"]["weights"] == pytest.approx(weights * 4 / 8, rel=0.03)
    assert found["held"]["optimizer"] == pytest.approx(weights * 8 / 8, rel=0.03)
    for figures in found["programs"].values():
        assert figures["fits"]
        assert 0 < figures["peak"] < 2 * 2**30
    assert found["programs"]["update"]["weight_stacks_gathered"] == 0
    return found, weights, done.stdout


@needs_libtpu
@pytest.mark.slow
def test_a_small_sft_run_is_planned(repository, tmp_path):
    found, _, said = planned(repository, tmp_path, "ramp_sft.py:tiny", *SMALL_SFT)
    assert list(found["programs"]) == ["update"]
    assert "    8 rows of 512 tokens each; 4,000 such updates: at least 0.0 hours\n" in said
    assert found["quicker"]["change"] == "compute.remat=dots"
    (faster,) = found["quicker"]["results"]["programs"].values()
    assert faster["recompute"] < found["programs"]["update"]["recompute"]
    assert "\nwith compute.remat=dots:\nupdate: fits" in said


STEP_ICI = """
import sys
from masksearch_jax import plan
from masksearch_jax.core.config import DapoRun
from masksearch_jax.runtime import cli

print(plan.plan(cli.parse(DapoRun, sys.argv), only="tick")["programs"]["tick"]["step_ici"])
"""


@needs_libtpu
@pytest.mark.slow
def test_a_small_dapo_run_is_planned(repository, tmp_path):
    more = (*SMALL_DAPO, "plan.improve=False")
    found, weights, _ = planned(repository, tmp_path, "ramp_dapo.py:tiny", *more)
    assert list(found["programs"]) == ["update", "logprobs", "copy", "tick"]
    assert "quicker" not in found
    # A whole copy in bfloat16 comes once, from the other seven, not with every token.
    assert found["programs"]["tick"]["step_ici"] == 0
    copied = found["programs"]["copy"]["collectives"]["all-gather"]["ici"]
    assert copied == pytest.approx(weights * 2 * 7 / 8, rel=0.05)
    flags = [f"--config={repository}/configs/ramp_dapo.py:tiny"]
    more += ("plan.topology=v5e-8", "rollout.weights=shared")
    flags += [f"--config.{o}" for o in more]
    sent = float(run_script(repository, STEP_ICI, *flags).splitlines()[-1])
    assert sent > 0.9 * copied


HUGE = """
import jax
from jax.experimental import topologies
from masksearch_jax.planning import chips

for kind, chip in chips.CHIPS.items():
    found = chips.Slice(kind, (2, 2, 1)[: chip.dimensions])
    slice = topologies.get_topology_desc(
        platform="tpu", topology_name=found.topology, **found.options()
    )
    place = jax.sharding.SingleDeviceSharding(slice.devices[0])
    x = jax.ShapeDtypeStruct((400, 2**14, 2**14), jax.numpy.float32, sharding=place)
    try:
        jax.jit(lambda x: x + 1).trace(x).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        print(kind, str(error).split("available HBM (")[1].split("G)")[0])
"""


@needs_libtpu
@pytest.mark.slow
def test_a_chip_has_as_much_memory_as_its_compiler_says(repository):
    found = dict(line.split() for line in run_script(repository, HUGE).splitlines())
    has = {kind: f"{c.hbm / c.devices / 2**30:.2f}" for kind, c in chips.CHIPS.items()}
    assert found == has


STACKS = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from masksearch_jax.planning import measure

device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
place = jax.sharding.SingleDeviceSharding(device)

def update(x, w):
    loss = lambda w: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0].sum()
    return w - jax.grad(loss)(w)

for layers in map(int, sys.argv[1:]):
    shapes = (4096, 4096), (layers, 4096, 4096)
    given = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=place) for s in shapes]
    lowered = jax.jit(update, donate_argnums=1).trace(*given).lower(lowering_platforms=("tpu",))
    try:
        found = measure.memory(lowered.compile())
        found.pop("code")
    except jax.errors.JaxRuntimeError as error:
        found = measure.needed(error)
    print(sum(found.values()) / 2**30)
"""


@needs_libtpu
@pytest.mark.slow
def test_what_a_program_needs_is_what_the_compiler_refuses_it_by(repository):
    """A program whose need grows evenly with its layers, up to more than a chip of v5e has."""
    found = run_script(repository, STACKS, "40", "48", "56")
    small, large, refused = map(float, found.split())
    assert large < 15.75 < refused
    assert refused == pytest.approx(2 * large - small, abs=0.01)


# GiB that an update needs of a chip at its peak.
PEAKS = [
    ("qwen2.5-7b", "v5p-32", ("sft.batch_size=16", "sft.seq_len=8192"), 13.34),
    ("qwen2.5-0.5b", "v5p-8", ("sft.batch_size=1", "sft.seq_len=4096", "mesh.context=4"), 2.88),
]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("model", "topology", "more", "expected"), PEAKS)
def test_published_models_fit_and_need_no_more_than_they_did(
    repository, tmp_path, model, topology, more, expected
):
    path = tmp_path / "plan.json"
    how = ("compute.attention=splash", "compute.remat=block", "plan.improve=False")
    how += (f"plan.json={path}",)
    done = command(repository, f"ramp_sft.py:{model}", f"plan.topology={topology}", *how, *more)
    assert done.returncode == 0, done.stderr
    update = json.loads(path.read_text())["programs"]["update"]
    assert update["peak"] / 2**30 == pytest.approx(expected, rel=0.1)
    assert update["weight_stacks_gathered"] == 0
    assert update["recompute"] <= 1.35
    # Loops of products would send weights around piece by piece.
    sent = {kind: row["ici"] for kind, row in update["collectives"].items()}
    assert sent.get("collective-permute", 0.0) < 0.1 * sent["all-gather"]


PLANS = """
import json
import sys
from masksearch_jax import plan
from masksearch_jax.core.config import SftRun
from masksearch_jax.runtime import cli

for flags in json.loads(sys.argv[2]):
    plan.run(cli.parse(SftRun, ["plan", f"--config={sys.argv[1]}", *flags]))
"""


@needs_libtpu
@pytest.mark.slow
def test_micro_batches_need_no_second_gradient(repository, tmp_path):
    wide = ("hidden_size=512", "intermediate_size=2048", "num_layers=8", "num_heads=4")
    runs, needs = [], []
    for accumulate in (1, 4):
        more = (f"optim.accumulate={accumulate}", f"sft.batch_size={8 * accumulate}")
        more += (f"plan.json={tmp_path / str(accumulate)}", "plan.topology=v5e-8")
        more += ("sft.seq_len=256", "plan.improve=False", *(f"model.{w}" for w in wide))
        runs.append([f"--config.{o}" for o in more])
    run_script(repository, PLANS, f"{repository}/configs/ramp_sft.py:tiny", json.dumps(runs))
    for accumulate in (1, 4):
        found = json.loads((tmp_path / str(accumulate)).read_text())
        memory = found["programs"]["update"]["memory"]
        needs.append(sum(memory.values()) - memory["code"])
    gradient = found["held"]["weights"]  # float32 both
    assert gradient > 2**22
    assert (needs[1] - needs[0]) / gradient <= 1.0


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_says_so_and_exits_with_1(repository):
    done = command(
        repository, "ramp_sft.py:qwen2.5-7b", "plan.topology=v5e:2x2", "plan.improve=False"
    )
    assert done.returncode == 1, done.stderr
    assert "update: DOES NOT FIT" in done.stdout
