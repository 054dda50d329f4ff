"""Prints the JobSet of `jobset.yaml` with a run's names in it; needs nothing but Python.

    python3 launch/gke/jobset.py --name=ramp-sft --image=IMAGE --bucket=BUCKET \\
        --accelerator=tpu-v5p-slice --topology=2x4x4 \\
        -- train_sft --config=configs/ramp_sft.py:qwen2.5-7b ... | kubectl apply -f -

Without the pipe it is a dry run. Applying it again changes nothing; `kubectl delete jobset NAME`
comes before another command under the same name.
"""

import argparse
import json
import math
import re
import string
import sys
from pathlib import Path

# Chips of a host in a slice of more than one host.
CHIPS = {"tpu-v4-podslice": 4, "tpu-v5-lite-podslice": 4, "tpu-v5p-slice": 4, "tpu-v6e-slice": 4}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="lower case, digits and -, at most 40")
    parser.add_argument("--image", required=True, help="made by gke/Dockerfile")
    parser.add_argument("--bucket", required=True, help="its files are under /data")
    parser.add_argument("--accelerator", required=True, choices=sorted(CHIPS))
    parser.add_argument("--topology", required=True, help="chips along each side: 4x4, 2x4x4")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--grace", type=int, default=120, help="seconds to save after SIGTERM")
    parser.add_argument("--account", default="default", help="service account with bucket rights")
    parser.add_argument("command", nargs="+", help="after --: MAIN --config=...")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.name):
        parser.error(f"--name={args.name}: lower case letters, digits and -, at most 40")
    for name, least in (("slices", 1), ("restarts", 0), ("grace", 1)):
        if (value := getattr(args, name)) < least:
            parser.error(f"--{name}={value}: a whole number, at least {least}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", args.topology):
        parser.error(f"--topology={args.topology}: sides of 1 and more, joined by x, as 4x4")
    chips = math.prod(map(int, args.topology.split("x")))
    if chips % CHIPS[args.accelerator]:
        parser.error(f"--topology={args.topology}: {chips} chips are no whole hosts of 4")
    return args


def manifest(args: argparse.Namespace) -> str:
    """The YAML text. Every value is written as JSON, which YAML reads: no quoting is left open."""
    chips = CHIPS[args.accelerator]
    hosts = math.prod(map(int, args.topology.split("x"))) // chips
    values = vars(args) | {"chips": chips, "hosts": hosts, "arguments": args.command}
    template = Path(__file__).with_name("jobset.yaml").read_text(encoding="utf-8")
    comments = re.compile(r"^#.*\n", re.MULTILINE)
    text = string.Template(comments.sub("", template))
    return text.substitute({key: json.dumps(value) for key, value in values.items()})


if __name__ == "__main__":
    sys.stdout.write(manifest(parse(sys.argv[1:])))
