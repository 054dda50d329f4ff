"""Classes that a config may name as tools, each with one thing amiss but `Good`."""


class Good:
    name, offers, usage, example = "good", "good things", "ask", "x"

    def answer(self, request):
        return f"{request}!"


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
