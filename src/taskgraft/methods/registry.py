"""Every method by name. To add one: its file beside this one, one line in METHODS, one reference test."""

from __future__ import annotations

from taskgraft.methods.branch import Branch
from taskgraft.methods.distill import Distill
from taskgraft.methods.ewc import Ewc
from taskgraft.methods.finetune import Finetune
from taskgraft.methods.frozen import Frozen
from taskgraft.methods.gpm import Gpm
from taskgraft.methods.l2sp import L2sp
from taskgraft.methods.ladder import Ladder
from taskgraft.methods.lora import Lora
from taskgraft.methods.lwf import Lwf
from taskgraft.methods.mas import Mas
from taskgraft.methods.protocol import Settings
from taskgraft.methods.replay import Replay
from taskgraft.methods.si import Si
from taskgraft.methods.taps import Taps
from taskgraft.methods.wise import Wise

METHODS: dict[str, type[Settings]] = {
    "finetune": Finetune,
    "frozen": Frozen,
    "taps": Taps,
    "branch": Branch,
    "ladder": Ladder,
    "distill": Distill,
    "lwf": Lwf,
    "l2sp": L2sp,
    "ewc": Ewc,
    "mas": Mas,
    "si": Si,
    "gpm": Gpm,
    "lora": Lora,
    "wise": Wise,
    "replay": Replay,
}
ALIASES = {"baseline": "finetune"}
