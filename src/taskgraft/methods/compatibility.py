"""Which sums of methods make sense."""

from __future__ import annotations

from collections.abc import Mapping

from taskgraft.methods.protocol import Settings

HOLD_WEIGHTS = ("l2sp", "ewc", "mas", "si")
KEEP_OLD = ("frozen", "branch", "taps", "ladder")  # old answers stay bit-identical: everything old is frozen


def senseless(plan: Mapping[str, Settings]) -> str | None:
    """Why a sum of methods is refused; None where it makes sense."""
    if "finetune" in plan and len(plan) > 1:
        return "finetune protects nothing and adds nothing to a sum; leave it out"
    trained = "taps" in plan and getattr(plan["taps"], "backbone", "frozen") == "trained"
    keeping = [name for name in plan if name in KEEP_OLD and not (name == "taps" and trained)]
    others = [name for name in plan if name not in KEEP_OLD]
    if keeping and others:
        remedy = "write taps(backbone=trained)" if keeping == ["taps"] else f"leave {keeping[0]} or {others[0]} out"
        return f"{keeping[0]} freezes everything old, so there is nothing for {others[0]} to do; {remedy}"
    if trained and keeping:
        return f"{keeping[0]} freezes the backbone that taps(backbone=trained) would train; write {keeping[0]} + taps"
    if "frozen" in keeping and len(keeping) > 1:
        return (
            f"{' + '.join(name for name in keeping if name != 'frozen')} freezes the backbone already; leave frozen out"
        )
    if "lora" in plan:
        clash = next((name for name in (*HOLD_WEIGHTS, "wise") if name in plan), None)
        if clash:
            return f"{clash} acts on the weights that lora freezes and only merges at the end; join lora with distill"
    if "lwf" in plan and "distill" in plan:
        return "lwf is distillation with the published settings; name one of the two"
    return None
