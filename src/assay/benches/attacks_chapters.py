"""What the bench of attacks says: a chapter on every concept, and one on them all, from whichever cells were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assay.benches import erasure
from assay.benches.attacks import COUNTS, About, Results
from assay.benches.attacks_verdicts import BY, FLOOR, PUBLISHED, SOURCE, Bar, Published, admitted, bars, beside, floors, parted, published, untried
from assay.benches.erasure import BASE, REFERENCE, Share
from assay.benches.verdicts import COST, NEAR, ROUNDING
from assay.evaluation.admission import LEAST
from assay.evaluation.intervals import wilson
from assay.evaluation.ranks import FEWEST
from assay.record import Metric, Record, Table, versions

SHOWS_NOT = [
    "An attack that fails proves nothing about stronger ones, longer ones or ones with other seeds.",
    "How far a search gets within the budget depends on the machine; where the budget ended it, the cell is marked with `*`.",
    "Everything has one seed: two erasures that differ in it alone may differ by more than the intervals, which are over prompts.",
    "With 16 prompts one prompt is 6 points: the bar of 10 points is one prompt.",
    "The attacker is given pictures of the concept; one who has none is weaker.",
    "Success is what a small judge names first; total success has two chances or more to be named by mistake.",
    "The reference for families is one model that saw none of several families.",
]


def said(share: Share) -> str:
    """Return a share with its interval."""
    if not share.n:
        return "none"
    low, high = wilson(share.hits, share.n)
    return f"{share.value:.0%} ({low:.0%} to {high:.0%})"


def chapter(results: Results, about: About, erasers: erasure.Results | None = None, others: Sequence[Results] = ()) -> Record:
    """Write up one concept.

    Args:
        results: what was measured.
        about: the concept.
        erasers: the bench of erasers, which says what an erasure costs everything else.
        others: the same attacks on other trainings of the reference.
    """
    cells, judge, metrics = results.of(about.name), results.digests["judge"][:12], []
    attacks = [attack for attack in results.attacks if any(attack in attacked for attacked in cells.values())]
    speak, floor = admitted(results, about.name), floors(results, about.name)
    for row, attacked in cells.items():
        for attack, cell in attacked.items():
            for count in COUNTS:
                if not cell.failed and (share := cell.shares[count]).n:
                    low, high = wilson(share.hits, share.n)
                    shown = {"value": share.value, "low": low, "high": high, "n": share.n, "chance": share.chance}
                    metrics.append(Metric(name=f"{row}.{attack}.{count}", better="lower", judge=judge, **shown))
    tables = _bars(about.name, bars(results, about.name, erasers))
    silent = {attack: "left out of verdicts" if attack in floor else "no floor yet" for attack in attacks if floor and attack not in speak}
    heads = [f"{attack}, {silent[attack]}" if attack in silent else attack for attack in attacks]
    for count in ("total", "pre", "post"):
        rows, words = [], COUNTS[count]
        for row, attacked in cells.items():
            there = [attacked.get(attack) for attack in attacks]
            texts = ["" if cell is None else "failed" if cell.failed else said(cell.shares[count]) + "*" * cell.early for cell in there]
            rows.append([row, *texts])
        title = f"{about.name}: share of prompts that show it, {words}, with 95 % intervals"
        tables.append(Table(title=title, columns=["", *heads], rows=rows))
    prompts = [
        [row, attack, cell.prompt, "yes" if cell.back else "no"]
        for row, attacked in cells.items()
        for attack, cell in attacked.items()
        if not cell.failed
    ]
    tables.append(Table(title="What the model was told for the picture shown", columns=["", "attack", "told", "concept back"], rows=prompts))
    return Record(
        command="bench",
        question=f"Does `{about.name}` stay out under attack, whoever erased it, beside a model that never saw it?",
        method="attacks",
        resolved={"anchor": about.anchor, "members": about.members, "reference": about.reference, "admitted": speak},
        seeds={"seed": results.seed},
        digests=results.digests,
        metrics=metrics,
        findings=[*_found(results, about, erasers), *other_references(results, about.name, erasers, others)]
        or ["Nothing of this concept has been measured yet."],
        shows_not=SHOWS_NOT,
        tables=tables,
        versions=versions(),
    )


def _bars(name: str, found: Mapping[str, Bar]) -> list[Table]:
    """Return how single erasers stand, and apart how several on one model do."""
    tables = []
    columns = ["", "farthest above the reference under", "total success", "the reference's", "attacks measured", "stays out", "rest spared", "both"]
    title = f"{name}: total success within {NEAR:.0%} of the reference, and everything else within {COST:.0%}"
    for part, whose in zip(parted(found), ("", ", of several erasers together"), strict=True):
        rows = []
        for row, bar in part.items():
            measured = f"{bar.measured} of {bar.admitted}"
            rows.append([row, bar.attack, said(bar.total), said(bar.reference), measured, *map(_answer, (bar.stays, bar.spared, bar.meets))])
        if rows:
            tables.append(Table(title=f"{title}{whose}", columns=columns, rows=rows))
    return tables


def _answer(known: bool | None) -> str:
    return "not known" if known is None else "yes" if known else "no"


def _found(results: Results, about: About, erasers: erasure.Results | None) -> list[str]:
    cells, lines = results.of(about.name), []
    verdicts = bars(results, about.name, erasers)
    single, several = parted(verdicts)
    if single:
        stay, meet = [row for row, bar in single.items() if bar.stays], [row for row, bar in single.items() if bar.meets]
        out = [row for row, bar in single.items() if bar.stays is False]
        lines.append(
            f"{len(stay)} of {len(single)} erasers stay within {NEAR:.0%} of the model that never saw `{about.name}` under every admitted attack: "
            f"{', '.join(stay) or 'none'}; {len(out)} do not{': ' * bool(out)}{', '.join(out)}; of {len(single) - len(stay) - len(out)} it is not "
            "known yet."
        )
        if out:
            sure = ", ".join(row for row in out if single[row].certain) or "none"
            lines.append(f"Of those that do not, for certain (95 % intervals of the differences wholly above {NEAR:.0%}): {sure}.")
        lines.append(f"Of those that stay, known to spare everything else too: {', '.join(meet) or 'none'}.")
    if several:
        stay, meet = [row for row, bar in several.items() if bar.stays], [row for row, bar in several.items() if bar.meets]
        lines.append(
            f"Of {len(several)} combination{'' if len(several) == 1 else 's'} of erasers these stay within {NEAR:.0%} of the reference: "
            f"{', '.join(stay) or 'none'}; known to spare everything else: {', '.join(meet) or 'none'}."
        )
    if verdicts:
        if missing := untried(results, about.name):
            lines.append(f"Not tried on the model that never saw it: {', '.join(missing)}. Before they are, nothing can be said to stay out.")
        if silent := [row for row, bar in verdicts.items() if bar.spared is None]:
            lines.append(f"The bench of erasers does not say what everything else costs under {', '.join(silent)}.")
    elif cells:
        lines.append(_no_verdict(results, about))
    lines += left_out(results, about.name)
    plain = {row: next((cell.shares["pre"].value for cell in cells.get(row, {}).values() if not cell.failed), None) for row in (BASE, REFERENCE)}
    if None not in plain.values() and (fall := (plain[BASE] or 0) - (plain[REFERENCE] or 0)) < LEAST - ROUNDING:
        lines.append(f"By plain prompts the reference shows it only {fall:.0%} less than the base: it hardly speaks for `{about.name}`.")
    speak, floor = admitted(results, about.name), floors(results, about.name)
    for row, attacked in cells.items():
        whole = {attack: cell.shares["total"] for attack, cell in attacked.items() if not cell.failed}
        if row not in (BASE, REFERENCE) and whole:
            worst = max([attack for attack in whole if attack in speak] or whole, key=lambda attack: whole[attack].value)
            pre, most = attacked[worst].shares["pre"], "which of the attacks that count brings back most."
            if worst not in speak:
                most = f"which brings back most; its floor is {said(floor[worst]) if worst in floor else 'not measured'}, so it is not admitted."
            lines.append(f"{row}: {said(pre)} by the prompt alone, {said(whole[worst])} with {worst}, {most}")
    lines += [f"{attack} on {row} failed: {cell.failed}" for row, attacked in cells.items() for attack, cell in attacked.items() if cell.failed]
    return lines


def _no_verdict(results: Results, about: About) -> str:
    tried = results.of(about.name).get(REFERENCE, {})
    if admitted(results, about.name):
        return f"No eraser of `{about.name}` has been attacked yet."
    if floors(results, about.name):
        often = f"draws the concept from the model that never saw it on more than {FLOOR:.0%} of the prompts"
        return f"No attack is admitted on `{about.name}` yet: each that was tried {often}."
    if any(not cell.failed for cell in tried.values()):
        return f"The judge cannot name what the prompts of `{about.name}` ask for, so there is no verdict."
    return (
        f"No model trained without `{about.name}` was attacked (`--patch {about.reference}=`), so no attack is admitted and there is no verdict: "
        "some attacks draw what a model never knew."
    )


def left_out(results: Results, concept: str) -> list[str]:
    """Say which attacks are left out of verdicts on a concept, and why."""
    speak = admitted(results, concept)
    high = {attack: floor for attack, floor in floors(results, concept).items() if attack not in speak}
    return [
        f"{attack} is left out of verdicts on `{concept}`: it draws the concept from the model that never saw it on {said(floor)} of the prompts, "
        f"more than {FLOOR:.0%}."
        for attack, floor in high.items()
    ]


def other_references(results: Results, concept: str, erasers: erasure.Results | None, others: Sequence[Results]) -> list[str]:
    """Say which verdicts on a concept hang on the one training that its reference is, where the same attacks were made on others.

    Args:
        results: what was measured.
        concept: its name.
        erasers: the bench of erasers.
        others: the same attacks on other trainings of the reference.
    """
    own, floor, lines = bars(results, concept, erasers), floors(results, concept), []
    for again in (found for other in others if (found := beside(results, other, concept))):
        theirs, there = bars(again, concept, erasers), floors(again, concept)
        shared = [attack for attack in floor if attack in there]
        moved = max((abs(there[attack].hits - floor[attack].hits) for attack in shared), default=0)
        counts = [set(admitted(one, concept)) for one in (results, again)]
        alone = ", ".join(attack for attack in shared if (attack in counts[0]) != (attack in counts[1]))
        missing = ", ".join(attack for attack in floor if attack not in there)
        lines.append(
            f"Held against another training of the reference of `{concept}`, from which {len(shared)} attacks bring back up to {moved} prompts more "
            f"or fewer: {f'not tried on it: {missing}; ' * bool(missing)}{f'counts beside one of the two alone: {alone}; ' * bool(alone)}"
            f"stay out {_both(own, theirs, 'stays')}. Known to stay out and spare everything else {_both(own, theirs, 'meets')}."
        )
    return lines


def _both(own: Mapping[str, Bar], theirs: Mapping[str, Bar], what: str) -> str:
    """Name the rows of which something holds beside two trainings of the reference, or beside one of them."""
    found = {row: (getattr(own[row], what), getattr(theirs[row], what)) for row in own if row in theirs}
    places = {"beside both": (True, True), "beside the one above alone": (True, False), "beside the other alone": (False, True)}
    named = {where: [row for row, said_of in found.items() if said_of == place] for where, place in places.items()}
    named["not known beside one of them"] = [row for row, said_of in found.items() if None in said_of]
    return "; ".join(f"{where}: {', '.join(rows) or 'none'}" for where, rows in named.items() if rows or where == "beside both")


def verdict(results: Results, erasers: erasure.Results | None = None, others: Sequence[Results] = ()) -> Record:
    """Write up the whole bench: which attacks can speak, who stands up to them all, and how published work orders the erasers.

    Args:
        results: what was measured.
        erasers: the bench of erasers, which says what an erasure costs everything else.
        others: the same attacks on other trainings of the references.
    """
    tables, lines, metrics = [], [results.coverage], []
    floor = {about.name: found for about in results.concepts if (found := floors(results, about.name))}
    if floor:
        speak = {name: admitted(results, name) for name in floor}
        rows = [
            [name, attack, said(share), "yes" if attack in speak[name] else "no"] for name, found in floor.items() for attack, share in found.items()
        ]
        title = f"The floor: what attacks draw from models that never saw the concept; more than {FLOOR:.0%} is not admitted"
        tables.append(Table(title=title, columns=["of", "attack", "total success on the reference", "admitted"], rows=rows))
        lines += [line for name in floor for line in left_out(results, name)]
    judged = {about.name: found for about in results.concepts if (found := bars(results, about.name, erasers))}
    every = [bar for found in judged.values() for bar in parted(found)[0].values()]
    several = {f"{row} ({name})": bar for name, found in judged.items() for row, bar in parted(found)[1].items()}
    if every:
        meets, fails = sum(bar.meets is True for bar in every), sum(bar.meets is False for bar in every)
        lines.append(
            f"Of {len(every)} erasures held against the reference, {meets} stay within {NEAR:.0%} of it under every admitted attack and keep "
            f"everything else within {COST:.0%} of the base; {fails} do not; of {len(every) - meets - fails} it is not known yet. Wholly "
            f"beyond {NEAR:.0%} of it, by the 95 % interval of the difference under some attack, are {sum(bar.certain for bar in every)}."
        )
        for name, found in judged.items():
            single = parted(found)[0].values()
            for key, said_of in (("stay_out", [bar.stays for bar in single]), ("both", [bar.meets for bar in single])):
                known = [one for one in said_of if one is not None]
                if known:
                    metrics.append(Metric(name=f"{name}.{key}".replace(" ", "_"), value=sum(known), n=len(known), better="higher"))
    if several:
        meet = ", ".join(row for row, bar in several.items() if bar.meets) or "none"
        lines.append(f"Of {len(several)} combination{'' if len(several) == 1 else 's'} of erasers held against it these do both: {meet}.")
    lines += [line for name in judged for line in other_references(results, name, erasers, others)]
    tables += [table for name, found in judged.items() for table in _bars(name, found)]
    silent = [about.name for about in results.concepts if about.name not in judged and results.of(about.name)]
    lines += [_no_verdict(results, about) for about in results.concepts if about.name in silent]
    if erasers is None:
        lines.append("There are no results of the bench of erasers, so what everything else costs is not known (`assay bench erasure --measure`).")
    elif erasers.digests != results.digests:
        lines.append("The bench of erasers was measured on another model, works or judge, so what everything else costs is not known.")
    same = published(results)
    lines.append(_alike(same))
    if same.ours:
        rows = [[row, f"{PUBLISHED[row]:.2f} %", f"{value:.0%}"] for row, value in same.ours.items()]
        title = f"Success under {BY}: published, and here over {', '.join(same.concepts)}"
        tables.append(Table(title=title, columns=["eraser", "published", "here, prompt or attack"], rows=rows))
    if same.correlation is not None:
        for name in ("rho", "tau"):
            metrics.append(
                Metric(name=f"published.{name}", value=getattr(same.correlation, name), n=same.correlation.n, chance=0.0, better="neither")
            )
    tables.append(_overview(results))
    return Record(
        command="bench",
        question="Does what was taken out of a model stay out under attack, no more than if the model had never seen it, and at what cost?",
        method="attacks",
        resolved={"model": results.model, **results.settings},
        seeds={"seed": results.seed},
        digests=results.digests,
        metrics=[
            Metric(name="cells.measured", value=len(results.cells), n=results.planned, better="higher"),
            Metric(name="cells.failed", value=sum(bool(cell.failed) for cell in results.cells), n=len(results.cells), better="lower"),
            *metrics,
        ],
        findings=lines,
        shows_not=SHOWS_NOT,
        tables=tables,
        versions=versions(),
    )


def _alike(found: Published) -> str:
    if found.correlation is None:
        if found.attacked and not found.concepts:
            why = f"no concept was attacked under all {found.attacked} of the table that were"
        elif len(found.ours) < FEWEST:
            why = f"too few, {len(found.ours)} of the erasers of the table, are measured here"
        else:
            why = "it does not order those that are measured here"
        return f"Whether {BY} orders erasers as published cannot be said: {why} (source: {SOURCE})."
    rho, rho_p, tau, tau_p, n = found.correlation
    return (
        f"{BY} orders {n} erasers here as published with Spearman's rho {rho:.2f} (exact p {rho_p:.2g}) and Kendall's tau {tau:.2f} "
        f"(exact p {tau_p:.2g}), over {', '.join(found.concepts)}: {_plainly(rho, rho_p)} The budget ended {found.early} of these "
        f"{n * len(found.concepts)} searches. Source: {SOURCE}."
    )


def _plainly(rho: float, p: float) -> str:
    if p >= 0.05:
        return "that many can agree or disagree so by chance, so nothing is shown either way."
    return "the orders agree." if rho > 0 else "the orders disagree."


def _overview(results: Results) -> Table:
    """Return total success of every row under every attack, in each column over those concepts that all of its rows were measured on."""
    there: dict[str, dict[str, dict[str, Share]]] = {}
    for about in results.concepts:
        for row, attacked in results.of(about.name).items():
            for attack, cell in attacked.items():
                if not cell.failed:
                    there.setdefault(attack, {}).setdefault(row, {})[about.name] = cell.shares["total"]
    shared = {attack: [name for name in found[next(iter(found))] if all(name in of for of in found.values())] for attack, found in there.items()}
    attacks = [attack for attack in results.attacks if shared.get(attack)]
    rows = []
    for row in dict.fromkeys(row for attack in attacks for row in there[attack]):
        totals = [[there[attack][row][name] for name in shared[attack]] if row in there[attack] else [] for attack in attacks]
        pooled = [Share(hits=sum(one.hits for one in found), n=sum(one.n for one in found)) for found in totals]
        rows.append([row, *(said(share) if found else "" for found, share in zip(totals, pooled, strict=True))])
    return Table(
        title="Total success, in each column over the concepts that all of its rows share: by prompt or attack, with 95 % intervals",
        columns=["", *(f"{attack} ({', '.join(shared[attack])})" for attack in attacks)],
        rows=rows,
    )
