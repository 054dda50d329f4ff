"""A judge that is no model: an answer is right where each gap has the known text.

    python -m examples.exact_judge 8200
    python -m masksearch_jax.study --config=configs/study.py:reward,judge \\
        --config.judge.base_url=http://127.0.0.1:8200/v1 --config.judge.model=exact

Case, punctuation, articles and white space make no difference. It speaks as an OpenAI-compatible
endpoint does, and reads what a judge is asked in English. With it a judged reward can be compared
with other rewards where no model is at hand that judges well. Asked as any other model than `exact`
it refuses: caches and studies keep verdicts by the model's name.
"""

from __future__ import annotations

import json
import re
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.runtime import cli

NAME = "exact"
_ASKED = re.compile(r"Task:\n(.*?)\n\nKnown:\n(.*?)\n\nAnswer:\n(.*)", re.DOTALL)
_NUMBER = re.compile(r"^\d+\. ", re.MULTILINE)


def is_right(asked: str) -> bool:
    """Raises ValueError for what no judge is asked."""
    parts = _ASKED.fullmatch(asked.strip())
    if parts is None:
        raise ValueError(f"no task, known answer and answer in {asked!r:.200}")
    task, known, answer = parts.groups()
    masked = task.partition("\n\n")[2]
    if not markup.has_mask(masked):
        return any(scoring.is_exact_match(answer, one) for one in known.splitlines())
    texts = _NUMBER.sub("", known).splitlines()
    fills = scoring.align_fills(masked, answer, texts)
    pairs = zip(fills, texts, strict=True)
    return all(scoring.is_exact_match(fill or "", text) for fill, text in pairs)


async def complete(request: Request) -> JSONResponse:
    body = await request.json()
    if body["model"] != NAME:
        said = f"there is no model {body['model']!r} here; this judge is {NAME!r}"
        return JSONResponse({"error": {"message": said}}, status_code=404)
    try:
        right = is_right(body["messages"][-1]["content"])
    except ValueError as error:
        return JSONResponse({"error": {"message": str(error)}}, status_code=400)
    verdict = {"reason": "compared text by text", "verdict": "correct" if right else "incorrect"}
    message = {"role": "assistant", "content": json.dumps(verdict)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    head = {"id": NAME, "object": "chat.completion", "created": 0, "model": NAME}
    return JSONResponse({**head, "choices": [choice], "usage": usage})


app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal() or int(sys.argv[1]) > 65535:
        raise ConfigError("usage: python -m examples.exact_judge PORT, a number up to 65535")
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False)


if __name__ == "__main__":
    cli.call(main)  # an error is one line
