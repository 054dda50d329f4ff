"""Functions that tests name as measures of an evaluation."""

from masksearch_jax.core import markup

NOT_A_FUNCTION = 1.0


def opened(example, trajectory):
    """1 where the answer stands in the text, whoever wrote its tag."""
    return markup.extract_answer(trajectory.text_by("policy")) is not None


def of_few(example, trajectory):
    """A half for items below 4, and nothing of the others; the number of tokens as well."""
    number = int(example.id.removeprefix("q"))
    few = {"half": 0.5} if number < 4 else {}
    return few | {"ids": len(trajectory.ids)}


def raises(example, trajectory):
    raise KeyError("town")


def no_number(example, trajectory):
    return None


def infinite(example, trajectory):
    return {"ratio": float("inf")}


def ours(example, trajectory):
    return {"recall": 1.0}


def a_tools(example, trajectory):
    return {"calls_date": 1.0}


def unnamed(example, trajectory):
    return {"two words": 1.0}


def same(example, trajectory):
    return {"opened": 0.0}


def of_one(example): ...


async def later(example, trajectory): ...


def late(example, trajectory):
    """1, and nothing of the last item."""
    if example.id == "q7":
        raise RuntimeError("no more")
    return 1.0
