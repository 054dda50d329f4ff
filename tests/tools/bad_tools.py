"""Classes that a config may name as tools, each with one thing amiss but `Good` and `Kept`."""

from masksearch_jax.core.tools import Unreadable


class Good:
    name, offers, usage, example = "good", "good things", "ask", "x"

    def answer(self, request):
        return f"{request}!"


class Kept(Good):
    """Counts what it is asked, in all of its instances."""

    fingerprint = "1"
    asked = []  # noqa: RUF012

    def answer(self, request):
        self.asked.append(request)
        if request == "down":
            raise ConnectionError("nobody listens")
        return Unreadable("odd") if request == "odd" else f"{request}!"


class Slow(Good):
    requests_per_second = 1e-6


class OddRate(Good):
    requests_per_second = "often"


class OddFingerprint(Good):
    fingerprint = 1


class NoText(Good):
    usage = ""


class OddName(Good):
    name = "Good Tool"


class Answer(Good):
    name = "answer"


class Twice(Good):
    name = "search"


class NoMethod:
    name, offers, usage, example = "good", "good things", "ask", "x"


class Breaks(Good):
    def __init__(self):
        raise OSError("no licence")


class WantsMore(Good):
    def __init__(self, key):
        self.key = key


class Down(Good):
    def answer(self, request):
        raise ConnectionError("nobody listens")


class Number(Good):
    def answer(self, request):
        return 42


class Noisy(Good):
    def answer(self, request):
        return "a\x00b\u202ec"
