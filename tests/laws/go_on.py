"""Run by a law in a process of its own: go on from each checkpoint, print a digest of the last weights."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from taskgraft.methods import composition
from taskgraft.models.classifier import grow
from taskgraft.training import checkpoints as states
from taskgraft.training import loop
from toys import NEW, RUN, mark, parent, sources, weights

for number, text in enumerate(sys.argv[2:]):
    method = composition.build(text)
    blank = loop.prepare(grow(parent(), NEW, RUN.seed), method, sources(), RUN)
    path = states.list_checkpoints(Path(sys.argv[1]) / str(number))[0]
    print(mark(weights(loop.fit(states.restore(path, blank), method, sources(), RUN))))
