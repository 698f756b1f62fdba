"""The forecast from the teacher alone, against the margin that was trained."""

from cells import Experiment
from lab import SCALES
from tables import Claim, groups, median, number, spread

from skvaecert.metrics import collapse_margin

RATIOS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def cells(setting):
    """One cell a seed, scale and ratio of alignment_weight to kl_weight."""
    return [
        {"scale": scale, "ratio": ratio, "seed": seed}
        for seed in range(setting.few_seeds)
        for scale in SCALES
        for ratio in RATIOS
    ]


def compute(lab, scale, ratio, seed):
    """Forecast, train, and compare on the samples of training."""
    samples = lab.samples(seed)
    vae = lab.vae(samples, scale, seed)
    vae.set_params(alignment_weight=ratio * vae.kl_weight).fit(samples.train)
    forecast = vae.forecast(samples.train, ratio=ratio)
    proba = vae.teacher_.predict_proba(samples.train)
    margin = collapse_margin(proba, vae.witness_log_proba(samples.train))
    information = forecast.teacher_information
    record = {
        "data": lab.setting.data,
        "scale": scale,
        "ratio": ratio,
        "seed": seed,
        "forecast": forecast.operating_margin / information,
        "trained": margin / information,
        "difference": (margin - forecast.operating_margin) / information,
        "information": information,
        "elbo": vae.score(samples.test),
    }
    return {"records": [record]}


def claims(records):
    """Where reconstruction hardly counts, the forecast is what comes out."""
    found = []
    for (data, scale), some in groups(records, ("data", "scale")).items():
        above = sum(record["difference"] > 0 for record in some)
        off = [abs(record["difference"]) for record in some]
        sentence = (
            f"{data}, {scale}: forecast and outcome within 0.1 of the information; "
            f"they differ by up to {number(max(off))}, and {above} of {len(some)} "
            "outcomes lie above"
        )
        found.append(Claim(sentence, max(off) <= 0.1, must=False))
    return found


def draw(results, figure):
    """Draw outcome and forecast over the ratio."""
    records = [record for result in results for record in result["records"]]
    by_data = groups(records, ("data",))
    axes = figure.subplots(1, len(by_data), sharey=True, squeeze=False)[0]
    for ax, ((data,), some) in zip(axes, by_data.items(), strict=True):
        draw_ratios(ax, some)
        ax.set(title=data, xscale="log", xlabel="alignment_weight / kl_weight")
    axes[0].set_ylabel("margin / teacher information")
    axes[0].legend(frameon=False, fontsize="small")


def draw_ratios(ax, records):
    """Draw a line for the forecast of each seed, and marks for what was trained."""
    for seed, some in groups(records, ("seed",)).items():
        told = sorted({(record["ratio"], record["forecast"]) for record in some})
        ax.plot(*zip(*told, strict=True), color="0.5", lw=1)
        for (scale,), few in groups(some, ("scale",)).items():
            points = [(record["ratio"], record["trained"]) for record in few]
            marks = {"sum": "C0o", "mean": "C1x"}[scale]
            label = scale if seed == (0,) else None
            ax.plot(*zip(*points, strict=True), marks, fillstyle="none", label=label)
    ax.axhline(0, color="0.2", lw=1)


OUTLOOK = Experiment(
    name="forecast",
    title="Forecast against outcome",
    cells=cells,
    compute=compute,
    by=("data", "scale", "ratio"),
    columns={
        "forecast": median("forecast"),
        "trained: median (range)": spread("trained"),
        "difference: median (range)": spread("difference"),
        "ELBO": median("elbo", 1),
    },
    claims=claims,
    draw=draw,
)
