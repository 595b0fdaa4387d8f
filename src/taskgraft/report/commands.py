"""The next command to try, made from the command that was run."""

from __future__ import annotations

import shlex

PLACES = ("PARENT", "DATA", "OUT")


def places(command: str, verb: str) -> tuple[str, str, str]:
    """The three arguments after `verb`, or their names when they do not stand right behind it."""
    words = _words(command)
    found = words[words.index(verb) + 1 :][:3] if verb in words else []
    if len(found) == 3 and not any(word.startswith("-") for word in found):
        return found[0], found[1], found[2]
    return PLACES


def measured(command: str) -> str:
    """The same extension once more into another folder, with old validation images.

    Another folder, because a run folder refuses to go on under other settings.
    """
    parent, data, out = places(command, "extend")
    return _join("taskgraft", "extend", parent, data, f"{out}-measured", *_rest(command), "--old-val", "DIR")


def compared(command: str, seeds: int = 3) -> str:
    """A comparison of methods from the same parent and data."""
    parent, data, out = places(command, "extend")
    rest = [word for word in _without(_rest(command), "--method") if word != "--resume"]
    return _join("taskgraft", "compare", parent, data, f"{out}-compared", *rest, "--seeds", str(seeds))


def more_seeds(command: str) -> str:
    """The same comparison over three seeds: into another folder, or on in the demo's own."""
    words = _words(command)
    if "demo" in words:
        return _join(*_without(words, "--seeds"), "--seeds", "3")
    parent, data, out = places(command, "compare")
    rest = _without(_rest(command), "--seeds")
    return _join("taskgraft", "compare", parent, data, f"{out}-3-seeds", *rest, "--seeds", "3")


def used(command: str) -> str:
    """The extended model asked about other images."""
    return _join("taskgraft", "predict", places(command, "extend")[2], "IMAGES")


def used_from(command: str, folder: str) -> str:
    """A model that a comparison left in a folder below its own, asked about other images."""
    words = _words(command)
    own = places(command, "compare")[2]
    if "demo" in words:
        own = next((word for word in words[words.index("demo") + 1 :] if not word.startswith("-")), "demo-run")
        own += "/comparison"
    return _join("taskgraft", "predict", f"{own}/{folder}", "IMAGES")


def extended(command: str) -> str:
    """The next task for a model that was trained from scratch."""
    words = _words(command)
    found = words[words.index("train") + 1 :][:2] if "train" in words else []
    plain = len(found) == 2 and not any(word.startswith("-") for word in found)
    out = found[1] if plain else "OUT"
    return _join("taskgraft", "extend", out, "DATA", f"{out}-extended", "--task", "NAME")


def following(command: str) -> list[tuple[str, str]]:
    """What can be done with a finished run, and the command for each; nothing where its folder is not told."""
    words, at = _words(command), _written(command)
    if at is None:
        return []
    out = words[at]
    again = [*words[:at], f"{out}-again", *(word for word in words[at + 1 :] if word != "--resume")]
    return [
        ("Once more, into another folder:", _join(*again)),
        ("Are model, record and stored answers still what they were?", _join("taskgraft", "evaluate", out, "--verify")),
        ("This page again:", _join("taskgraft", "report", out)),
        ("Other pictures:", _join("taskgraft", "predict", out, "IMAGES")),
        ("A page and an interface for programs:", _join("taskgraft", "serve", out)),
        ("Another task:", _join("taskgraft", "extend", out, "DATA", f"{out}-extended", "--task", "NAME")),
    ]


def _written(command: str) -> int | None:
    """Which word of a command of train or extend is the folder that it wrote."""
    words = _words(command)
    at = {"extend": 4, "train": 3}.get(words[1]) if words[:1] == ["taskgraft"] and len(words) > 1 else None
    found = words[2 : at + 1] if at is not None else []
    whole = at is not None and len(found) == at - 1 and not any(word.startswith("-") for word in found)
    return at if whole else None


def compared_with_old(command: str) -> str:
    """The same comparison once more into another folder, with old validation images."""
    parent, data, out = places(command, "compare")
    return _join("taskgraft", "compare", parent, data, f"{out}-measured", *_rest(command), "--old-val", "DIR")


def chosen(command: str, task: str, method: str) -> str:
    """The extension of the best arrangement."""
    parent, data, out = places(command, "compare")
    return _join("taskgraft", "extend", parent, data, f"{out}-best", "--task", task, "--method", method)


def _rest(command: str) -> list[str]:
    """What stands behind the three places; nothing where those were not found."""
    words = _words(command)
    for verb in ("extend", "compare"):
        if verb in words and places(command, verb) != PLACES:
            return words[words.index(verb) + 4 :]
    return []


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an unbalanced quote: a call from Python, not a command line
        return []


def _without(words: list[str], option: str) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option
    return kept


def _join(*words: str) -> str:
    return shlex.join(words)
