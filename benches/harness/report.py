"""From raw figures to the table."""

import statistics


def figures(row, result):
    """What the table is about: a speed and a size."""
    name = "eval_samples_per_second" if row.measures_evaluation else "train_samples_per_second"
    return {"samples_per_second": result[name], "peak_resident_bytes": result["peak_resident_bytes"]}


class Spread:
    """Several rounds' values of one thing."""

    def __init__(self, values):
        self.values = list(values)
        self.median = statistics.median(self.values)

    def show(self, form="{:.3g}"):
        low, high = min(self.values), max(self.values)
        text = form.format(self.median)
        return text if low == high else f"{text} ({form.format(low)}–{form.format(high)})"


def summary(row, rounds):
    """Medians of one row; ratios are taken within a round, where both sides saw the same machine."""
    peer = [figures(row, r["peer"]) for r in rounds]
    ours = [figures(row, r["chandler"]) for r in rounds]
    pairs = list(zip(peer, ours))
    return {
        "peer": Spread(p["samples_per_second"] for p in peer),
        "ours": Spread(o["samples_per_second"] for o in ours),
        "speed": Spread(o["samples_per_second"] / p["samples_per_second"] for p, o in pairs),
        "peer_mib": Spread(p["peak_resident_bytes"] / 2**20 for p in peer),
        "ours_mib": Spread(o["peak_resident_bytes"] / 2**20 for o in ours),
        "memory": Spread(o["peak_resident_bytes"] / p["peak_resident_bytes"] for p, o in pairs),
    }


HEAD = (
    "| | HF, samples/s | chandler, samples/s | ratio | goal | HF, peak MiB | chandler, peak MiB | ratio |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|\n"
)


def line(row, rounds):
    s = summary(row, rounds)
    goal = f"≥ {row.goal:g}" if row.goal else ""
    cells = [
        row.title,
        s["peer"].show(),
        s["ours"].show(),
        f"**{s['speed'].show('{:.2f}')}**",
        goal,
        s["peer_mib"].show("{:.0f}"),
        s["ours_mib"].show("{:.0f}"),
        f"**{s['memory'].show('{:.2f}')}**",
    ]
    return "| " + " | ".join(cells) + " |\n"


def table(measured):
    """The Markdown table of (row, rounds) pairs."""
    return HEAD + "".join(line(row, rounds) for row, rounds in measured if rounds)


def disturbances(measured, limit=0.05):
    """Rounds in which others used more of the machine than `limit`."""
    for row, rounds in measured:
        for number, r in enumerate(rounds, 1):
            for side in ("peer", "chandler"):
                share = r[side]["others_share"]
                if share > limit:
                    yield f"{row.name}, round {number}, {side}: others used {share:.0%} of the machine"
