"""Classes that tests name as loggers."""

taken: list[dict] = []  # the rows that Unsteady took
FACTS = {"jsonl": 1}


class Unsteady:
    """Takes every third row alone, changes what it is given, and does not close."""

    def __init__(self, folder, rows):
        self.folder, self.count = folder, 0
        taken.extend(rows)

    def write(self, row):
        self.count += 1
        if self.count % 3:
            raise OSError("no route to host")
        taken.append(dict(row))
        row.clear()

    def close(self):
        raise OSError("still no route")


class Unmade(Unsteady):
    def __init__(self, folder, rows):
        raise PermissionError(f"no key for {folder.name}")


class NoClose:
    def __init__(self, folder, rows): ...

    def write(self, row): ...


class WantsStep(Unsteady):
    def write(self, step, row): ...


class WantsMore(Unsteady):
    def __init__(self, folder, rows, key): ...
