"""Which methods cannot be combined. The rules speak of traits (`protocol.Traits`), not of names."""

from __future__ import annotations

from collections.abc import Callable

from taskgraft.methods.protocol import Plan, Traits


def conflict(plan: Plan) -> str | None:
    """Return why a combination of methods is refused and what to write instead; None where it makes sense."""
    traits = {name: settings.traits for name, settings in plan.items()}

    def select(condition: Callable[[Traits], bool]) -> list[str]:
        return [name for name, t in traits.items() if condition(t)]

    unprotected = select(lambda t: not t.protects)
    if unprotected and len(plan) > 1:
        return f"{unprotected[0]} protects nothing and adds nothing to a sum; leave it out"

    frozen, trained = select(lambda t: t.freezes_old), select(lambda t: not t.freezes_old)
    acting = [name for name in trained if not traits[name].attaches]  # a method that only attaches could freeze as well
    if frozen and acting:
        unfreeze = traits[frozen[0]].unfreeze if len(frozen) == 1 else ""
        remedy = f"write {frozen[0]}({unfreeze})" if unfreeze else f"leave {frozen[0]} or {acting[0]} out"
        return f"{frozen[0]} freezes everything old, so there is nothing for {acting[0]} to do; {remedy}"
    if frozen and trained:
        setting = f"{trained[0]}({traits[trained[0]].unfreeze})"
        return f"{frozen[0]} freezes the backbone that {setting} would train; write {frozen[0]} + {trained[0]}"

    idle = select(lambda t: t.freezes_old and not t.attaches)
    if idle and len(frozen) > 1:
        others = " + ".join(name for name in frozen if name not in idle)
        return f"{others} freezes the backbone already; leave {idle[0]} out"

    replacing, using = select(lambda t: t.replaces_weights), select(lambda t: t.uses_weights)
    if replacing and using:
        return (
            f"{using[0]} acts on the weights that {replacing[0]} freezes and only merges at the end; "
            f"combine {replacing[0]} with a method that acts on the outputs, such as distillation"
        )

    distilling = select(lambda t: t.distills)
    if len(distilling) > 1:
        return f"{' and '.join(distilling)} are both distillation; name one of the two"
    return None
