"""The charts of the report as Vega-Lite specifications. They plot scores, never scans."""

from typing import Any

import altair as alt
import pandas as pd

HEIGHT, ROW = 260, 22  # pixels of a chart and of a row; the width follows the page
TUMOR, SECOND = "#d55e00", "#0072b2"  # color-blind safe; the dashes differ too
Spec = dict[str, Any]


def styled(chart: alt.Chart | alt.LayerChart, description: str) -> Spec:
    """Return a chart as wide as its container, with a description for screen readers."""
    filled = chart.properties(width="container", autosize="fit-x", description=description)
    return dict(
        filled.configure(background="transparent")
        .configure_view(stroke=None)
        .configure_axis(gridOpacity=0.25, labelFontSize=12, titleFontSize=12, titleFontWeight=400)
        .configure_legend(orient="top", title=None, labelFontSize=12, symbolSize=200)
        .to_dict()
    )


def share_axis(title: str, field: str, channel: type[alt.X | alt.Y]) -> Any:
    """Return an axis from 0 to 1."""
    return channel(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, 1]))


def curve_chart(curves: dict[str, pd.Series], title: str, kept_epoch: int) -> Spec:
    """Return curves by epoch, with a vertical line at the epoch of the kept checkpoint."""
    table = pd.concat(
        [
            pd.DataFrame({"curve": name, "epoch": values.index, "value": values.to_numpy()})
            for name, values in curves.items()
        ]
    )
    legend = alt.Legend(symbolType="stroke") if len(curves) > 1 else None
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1))
    lines = (
        alt.Chart(table)
        .mark_line(point={"size": 20})
        .encode(
            x=x,
            y=alt.Y("value:Q", title=title),
            color=alt.Color("curve:N", legend=legend).scale(
                range=[TUMOR, SECOND], domain=list(curves)
            ),
            strokeDash=alt.StrokeDash("curve:N", legend=legend).scale(domain=list(curves)),
            tooltip=["curve:N", "epoch:Q", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    label = f"checkpoint kept from epoch {kept_epoch}"
    kept = pd.DataFrame({"epoch": [kept_epoch], "label": [label]})
    rule = alt.Chart(kept).mark_rule(color="gray", strokeDash=[2, 3]).encode(x="epoch:Q")
    last = ", ".join(f"{name} {values.iloc[-1]:.3f}" for name, values in curves.items())
    return styled(
        (lines + rule.encode(tooltip="label:N")).properties(height=HEIGHT),
        f"{title} by epoch; in the last epoch {last}; {label}",
    )


def patient_chart(patients: pd.DataFrame) -> Spec:
    """Return Dice against tumor size; `patients` has `dice`, `tumor` and `institution`."""
    known = patients[patients["dice"].notna() & (patients["tumor"] > 0)]
    chart = (
        alt.Chart(known[["patient_id", "institution", "tumor", "dice"]])
        .mark_point(size=70, filled=True, opacity=0.8)
        .encode(
            x=alt.X("tumor:Q", title="tumor pixels in all slices (log)")
            .scale(type="log", nice=False, padding=12)
            .axis(tickCount=6, format="~s"),
            y=share_axis("Dice", "dice", alt.Y),
            color=alt.Color("institution:N"),
            shape=alt.Shape("institution:N"),
            tooltip=["patient_id:N", "institution:N", "tumor:Q", "dice:Q"],
        )
        .properties(height=HEIGHT)
    )
    return styled(chart, f"Dice against tumor size, one point per patient, n = {len(known)}")


def subgroup_chart(subgroups: pd.DataFrame) -> Spec:
    """Return mean Dice of each group of patients, with its confidence interval if it has one."""
    table = subgroups.assign(
        name=subgroups["attribute"].str.removesuffix(" sequence")
        + ": "
        + subgroups["value"]
        + subgroups["n_patients_dice"].map(" (n = {})".format)
    )
    order = table["name"].tolist()
    y = alt.Y("name:N", title=None, sort=order, axis=alt.Axis(labelLimit=250))
    columns = ["name", "dice_patient_mean", "dice_patient_mean_low", "dice_patient_mean_high"]
    base = alt.Chart(table[columns]).encode(y=y)
    points = base.mark_point(size=70, filled=True, color=TUMOR).encode(
        x=share_axis("mean Dice per patient", "dice_patient_mean", alt.X), tooltip=columns
    )
    intervals = base.mark_rule(color=TUMOR).encode(
        x="dice_patient_mean_low:Q", x2="dice_patient_mean_high:Q"
    )
    chart = (intervals + points).properties(height=ROW * len(table))
    return styled(chart, f"Mean Dice per patient in {len(table)} groups of patients")


def reliability_chart(reliability: pd.DataFrame, split: str) -> Spec:
    """Return the reliability diagram: observed share of tumor against predicted probability."""
    table = pd.DataFrame(
        {
            "probability": reliability[f"{split}_probability"],
            "observed": reliability[split],
            "pixels": reliability[f"{split}_n_pixels"],
        }
    ).dropna()
    perfect = pd.DataFrame({"probability": [0, 1], "observed": [0, 1]})
    x, y = (
        share_axis("predicted probability", "probability", alt.X),
        share_axis("observed share of tumor", "observed", alt.Y),
    )
    line = (
        alt.Chart(table)
        .mark_line(point={"size": 40, "color": TUMOR}, color=TUMOR)
        .encode(x=x, y=y, tooltip=["probability:Q", "observed:Q", "pixels:Q"])
    )
    diagonal = alt.Chart(perfect).mark_line(color="gray", strokeDash=[4, 4]).encode(x=x, y=y)
    return styled(
        (diagonal + line).properties(height=HEIGHT),
        f"Reliability diagram with {len(table)} bins; the dashed diagonal is perfect calibration",
    )


def risk_chart(risk: pd.DataFrame, split: str) -> Spec:
    """Return the risk-coverage curve; the most confident patients are kept first."""
    table = pd.DataFrame(
        {"coverage": risk["coverage"], "risk": risk[split], "patients": risk[f"{split}_n_patients"]}
    ).dropna()
    chart = (
        alt.Chart(table)
        .mark_line(point={"size": 40, "color": TUMOR}, color=TUMOR)
        .encode(
            x=share_axis("coverage, share of patients kept", "coverage", alt.X),
            y=alt.Y("risk:Q", title="risk, 1 - mean Dice").scale(zero=True),
            tooltip=["coverage:Q", "risk:Q", "patients:Q"],
        )
        .properties(height=HEIGHT)
    )
    return styled(chart, "Risk-coverage curve: 1 - mean Dice against the share of patients kept")


def all_charts(
    curves: dict[str, "pd.Series[float]"],
    kept_epoch: int,
    tables: dict[str, pd.DataFrame],
    cohort: pd.DataFrame,
    split: str,
) -> dict[str, Spec]:
    """Return the report's charts by name; `tables` are those of evaluate for `split`."""
    ious = {name: curves[f"{name}/iou"] for name in ("train", "val") if f"{name}/iou" in curves}
    patients = tables["per_patient"].merge(cohort[["patient_id", "institution"]], on="patient_id")
    patients["tumor"] = patients["tp"] + patients["fn"]
    return {
        "iou": curve_chart(ious, "IoU", kept_epoch),
        "loss": curve_chart({"train": curves["train/loss"]}, "loss", kept_epoch),
        "patients": patient_chart(patients),
        "subgroups": subgroup_chart(tables["subgroups"]),
        "reliability": reliability_chart(tables["reliability"], split),
        "risk": risk_chart(tables["risk_coverage"], split),
    }
