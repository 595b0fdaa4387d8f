"""Run in a process of its own: resume from each checkpoint and print a digest of the final weights."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from taskgraft.methods import composition
from taskgraft.models.classifier import grow
from taskgraft.training import checkpoints as states
from taskgraft.training import loop
from toys import NEW, RUN, digest, make_data, parent, weights

for number, text in enumerate(sys.argv[2:]):
    method = composition.build(text)
    blank = loop.prepare(grow(parent(), NEW, RUN.seed), method, make_data(), RUN)
    path = states.list_checkpoints(Path(sys.argv[1]) / str(number))[0]
    print(digest(weights(loop.fit(states.restore(path, blank), method, make_data(), RUN))))
