"""Synthetic results for the pages of reports, and a reader of HTML pages."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as Xml

import numpy as np

from taskgraft import metrics
from taskgraft.quantification import ClassPrevalence, Distribution, JointPrevalence, OODCheck, TaskPrevalence
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Comparison, Interval, Record, StepMetrics, TaskResult, VariantResult
from taskgraft.results.search import Candidate, SearchResult, SelectedModel, TrialResult

MAKES = ("Audi A4", "BMW 3", "Ford Focus", "Honda Civic", "Toyota Camry", "VW Golf")
COLORS = ("black", "blue", "green", "grey", "red", "white")
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=http://x.test/ onerror=alert(3)>",
)
VARIANTS = (  # label, method, learning rate, final old accuracy, final new accuracy
    ("Baseline", "finetune", 1e-3, 0.02, 0.968),
    ("Baseline (low rate)", "finetune", 1e-4, 0.40, 0.887),
    ("EWC", "ewc(strength=30)", 1e-3, 0.551, 0.928),
    ("EWC (low rate)", "ewc(strength=30)", 1e-4, 0.669, 0.887),
    ("Distillation", "distill(strength=1)", 1e-3, 0.602, 0.81),
    ("Distillation (low rate)", "distill(strength=1)", 1e-4, 0.734, 0.871),
    ("Distillation and EWC", "distill(strength=1) + ewc(strength=30)", 1e-3, 0.741, 0.882),
)


def fake_predictions(classes, labels, right, seed, names="new"):
    """Predictions that are right on a fraction `right` of the images."""
    rng = np.random.default_rng(seed)
    task = next(iter(labels))
    logits = {}
    for name, own in classes.items():
        truth = labels[task] if name == task else rng.integers(0, len(own), len(labels[task]))
        expected = np.where(rng.random(len(truth)) < right, truth, rng.integers(0, len(own), len(truth)))
        values = rng.normal(0, 1, (len(truth), len(own)))
        values[np.arange(len(truth)), expected] += 3.5
        logits[name] = values.astype(np.float32)
    ids = tuple(f"{names}/{i:04d}.jpg" for i in range(len(labels[task])))
    return Predictions(classes, "per-task", ids, labels, logits)


def fake_sets(old=MAKES, new=COLORS, with_old=True, names="new", old_right=0.73):
    labels = np.random.default_rng(5).integers(0, len(new), 400)
    both = {"make": old, "colour": new}
    sets = {
        "new": fake_predictions(both, {"colour": labels}, 0.88, 1, names),
    }
    logits = sets["new"].logits["make"] + np.random.default_rng(2).normal(0, 1.2, (400, len(old))).astype("f4")
    sets["new-parent"] = sets["new"]._replace(classes={"make": old}, labels={}, logits={"make": logits})
    if with_old:
        known = {"make": np.random.default_rng(6).integers(0, len(old), 500)}
        sets["old"] = fake_predictions(both, known, old_right, 3, names)
        sets["old-parent"] = fake_predictions({"make": old}, known, 0.85, 4, names)
    return sets


def fake_history(method, lr, old_end, new_end, seed, with_old=True, steps=600):
    rng = np.random.default_rng(seed)
    speed = 3 if lr > 5e-4 else 1.2
    lines = []
    for step in range(0, steps + 1, steps // 30):
        t = step / steps
        old = old_end + (0.87 - old_end) * math.exp(-2 * speed * t) + rng.normal(0, 0.012) * (step > 0)
        new = 0.1 + (new_end - 0.1) * (1 - math.exp(-2.5 * speed * t)) + rng.normal(0, 0.01)
        terms = {"cross-entropy": 2.3 * math.exp(-2 * speed * t) + 0.1 + abs(rng.normal(0, 0.02))}
        terms |= {"distill": 0.4 * t**0.5} if "distill" in method else {}
        terms |= {"ewc": 0.02 * t} if "ewc" in method else {}
        accuracy = {"colour": min(max(new, 0.0), 1.0)} | ({"make": min(max(old, 0.0), 1.0)} if with_old else {})
        lines.append(StepMetrics(step=step, lr=lr, terms=terms, accuracy=accuracy, agreement={"make": 0.95 - 0.1 * t}))
    return tuple(lines)


def fake_record(
    method="distill(strength=1)",
    lr=1e-4,
    ends=(0.734, 0.871),
    seed=0,
    with_old=True,
    separate: float | None = 0.95,
):
    history = fake_history(method, lr, ends[0], ends[1], seed, with_old)
    scored = metrics.score(history, ("make", "colour"))
    score, step = scored if scored else (None, history[-1].step)
    kept = next(line for line in history if line.step == step)
    sets = fake_sets(with_old=with_old)
    agree = metrics.bootstrap_interval(metrics.agreement(sets["new-parent"], sets["new"], "make"))
    make = TaskResult(name="make", classes=MAKES, new=False, agreement=agree)
    if with_old:
        old, before = hits(kept.accuracy["make"], 500), hits(0.87, 500)
        measured = {"parent": before, "child": old, "forgetting": before - old}
        make = make.model_copy(update={name: metrics.bootstrap_interval(values) for name, values in measured.items()})
    else:
        old = np.zeros(0)
    child = metrics.bootstrap_interval(hits(kept.accuracy["colour"], 400))
    color = TaskResult(name="colour", classes=COLORS, new=True, child=child, separate=separate)
    if with_old:
        score = float(old.mean() + child.mean) / 2
    return Record(
        command="taskgraft extend alice bob-photos out --task colour",
        reproduce_command="taskgraft extend alice bob-photos out --task colour",
        seed=seed,
        method=method,
        config={
            "lr": lr,
            "steps": 600,
            "batch_size": 32,
            "optimizer": "sgd",
            "schedule": "cosine",
            "norm": "train",
        },
        parent={"source": "alice", "digest": "ab" * 32, "architecture": "resnet18", "tasks": ["make"]},
        data={
            "new": {
                "source": "bob-photos",
                "fingerprint": "cd" * 32,
                "images": {"train": 1600, "val": 400},
                "counts": dict.fromkeys(COLORS, 266),
                "excluded": [["x.jpg", "truncated"]],
                "excluded_count": 1,
                "notes": [],
            }
        },
        settings=(
            ("lr", str(lr), "the reference experiment's best"),
            ("norm", "train", "no worse than frozen here"),
        ),
        tasks=(make, color),
        score=score,
        step=step,
        history=history,
        parent_history=tuple(
            StepMetrics(step=s, accuracy={"make": 0.87 * (1 - math.exp(-s / 300))}) for s in range(0, 1201, 60)
        ),
        parameters={"parent": 11_270_000, "child": 11_275_130, "added": 5130},
        seconds={"total": 744.0 + seed, "training": 700.0},
        versions={"python": "3.11.2", "torch": "2.14.1"},
    )


def hits(share, n):
    return (np.arange(n) < round(share * n)).astype(np.float64)


def fake_comparison(seeds=3, with_old=True, separate=True):
    return Comparison(
        command=f"taskgraft compare alice bob-photos out --task colour --seeds {seeds}",
        reproduce_command=f"taskgraft compare alice bob-photos out --task colour --seeds {seeds}",
        title="Car colour, added to a model of car makes",
        variants=tuple(
            VariantResult(
                label=label,
                method=method,
                config={"lr": lr, "steps": 600, "batch_size": 32, "optimizer": "sgd"},
                records=tuple(
                    fake_record(method, lr, (old, new), 10 * i + seed, with_old, None) for seed in range(seeds)
                ),
            )
            for i, (label, method, lr, old, new) in enumerate(VARIANTS)
        ),
        separate={"colour": (0.95, 0.955, 0.96)[:seeds]} if separate else {},
        failures=(("LoRA", "the loss was not finite at step 12"),),
        notes=("Fisher information from the new task's images, labeled by the parent.",),
    )


def fake_search(tasks=("make", "colour"), methods=("ewc", "distill", "finetune")):
    """40 trials, every third of them complete."""
    rng, trials = np.random.default_rng(0), []
    for i in range(40):
        strength, lr, old, new = 10 ** rng.uniform(-2, 2), rng.choice([1e-4, 1e-3]), rng.random(), rng.random()
        line = StepMetrics(step=30, accuracy={tasks[0]: old, tasks[1]: new})
        more = {"state": "stopped" if i % 3 else "complete", "reached": 60, "score": (old + new) / 2}
        trials.append(TrialResult(
            number=i, wave=0, params={"strength": strength, "lr": lr, "method": methods[i % 3]},
            method=methods[i % 3], variant=methods[i % 3], config={"lr": lr}, old=old, new=new,
            history=(line, line.model_copy(update={"step": 60})), **more,
        ))  # fmt: skip
    best = max(trials[::3], key=lambda one: one.score or 0)
    ends = [Interval(mean=share, low=share - 0.02, high=share + 0.03, n=300) for share in (best.old, best.new)]
    line = Candidate(trial=best.number, method=best.method, lr=best.config["lr"], old=ends[0], new=ends[1])
    choices = tuple(SelectedModel(goal=goal, rule=f"best {goal}", candidate=line) for goal in ("score", "new", "old"))
    shares = {"strength": 0.6, "lr": 0.3, "method": 0.1}
    names = "trials", "steps", "steps without stopping", "seconds", "seconds saved by sharing"
    return SearchResult(
        command="taskgraft tune a b c", title="colour", tasks=tasks, proxy=False, before=0.87, sampler="tpe",
        space=dict.fromkeys(shares, "any"), rungs=(30,), trials=tuple(trials), frontier=(line,), choices=choices,
        importance={"old": shares, "new": shares}, cost=dict(zip(names, [40.0] * 5, strict=True)),
    )  # fmt: skip


def fake_distribution(names=MAKES):
    own = [
        ClassPrevalence(name=name, naive=0.1, prevalence=0.03 * i, low=0.02 * i, high=0.05 * i)
        for i, name in enumerate(names)
    ]
    ood = OODCheck(flag=False, text="they look alike")
    task = TaskPrevalence(task="make", estimator="emq", classes=tuple(own), images=90, units=9, unit="clip",
                          effective_size=20, ood=ood)  # fmt: skip
    pair = JointPrevalence(tasks=("make", "colour"), estimator="emq", pairs=tuple(own))
    return Distribution(model="out", sources=("film.mp4",), tasks=(task,), pairs=(pair,), images=90)


class PageReader(HTMLParser):
    """Reads a page: tags with attributes, scripts, tables by caption, all text."""

    def __init__(self, page):
        super().__init__()
        self.page = page
        self.tags, self.scripts, self.tables, self.text = [], [], {}, []
        self._caption, self._inside, self._row, self._in_cell = "", None, [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = self._inside if tag == "span" else tag
        if tag == "script":
            self.scripts.append("")
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self._row = []
            self.tables.setdefault(self._caption, []).append(self._row)
        if tag in ("td", "th"):
            self._row.append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ("caption", "script", "style"):
            self._inside = None
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "caption":
            self._caption += data
        elif self._in_cell:
            self._row[-1] += data
        if self._inside != "script":
            self.text.append(data)

    @property
    def plain_text(self):
        """All text on one line."""
        return " ".join(" ".join(self.text).split())

    def images(self):
        """The attributes of all images."""
        return [attrs for tag, attrs in self.tags if tag == "img"]

    def charts(self, key):
        """The drawings of one chart, for wide screens and for phones, as XML."""
        match = re.search(rf'<div class="plot" id="{key}">(.*?)</div>', self.page, re.S)
        return list(Xml.fromstring(f"<div>{match[1]}</div>")) if match else []

    def chart_texts(self, key):
        """Every text drawn in a chart."""
        return [" ".join((one.text or "").split()) for one in self.charts(key)[0].iter("text")]

    def tooltips(self, key):
        """What a chart shows on hovering."""
        return [one.text or "" for one in self.charts(key)[0].iter("title")]

    def table(self, start):
        """The rows of the table whose caption starts so."""
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))
