"""Page Report: hand the run over as one HTML file and as data."""

from __future__ import annotations

import io

import streamlit as st

from sim.provenance import provenance_rows
from sim.report import report_html, result_json
from sim.ui import controls, parts

result = controls.run_on_show()
stem = f"{st.session_state['scenario']}-seed{result.seed}"
parts.heading(result, "Send it: everything below is made from the run on show.")


def ledger_parquet() -> bytes:
    """Every posting line as Parquet."""
    stream = io.BytesIO()
    result.ledger.to_frame().to_parquet(stream, index=False)
    return stream.getvalue()


with st.container(border=True):
    st.markdown("**Report**")
    st.caption(
        "One HTML file with all figures, statements, assumptions and sources. It opens without a network."
    )
    st.download_button(
        "Download the report (HTML)",
        lambda: report_html(result),
        file_name=f"{stem}.html",
        mime="text/html",
        type="primary",
        icon=":material/download:",
        on_click="ignore",
        key="download_html",
    )
with st.container(border=True):
    st.markdown("**Data**")
    st.caption(
        "The monthly table, every posting of the ledger, the whole result, and the scenario as it was run."
    )
    with st.container(horizontal=True):
        for label, name, mime, make in (
            ("Months (CSV)", f"{stem}-monthly.csv", "text/csv", lambda: result.monthly.to_csv(index=False)),
            ("Ledger (Parquet)", f"{stem}-ledger.parquet", "application/vnd.apache.parquet", ledger_parquet),
            ("Result (JSON)", f"{stem}.json", "application/json", lambda: result_json(result)),
            ("Scenario (YAML)", f"{stem}.yaml", "application/yaml", lambda: result.scenario.to_yaml()),
        ):
            st.download_button(
                label,
                make,
                file_name=name,
                mime=mime,
                icon=":material/table:",
                on_click="ignore",
                key=f"download_{name}",
            )
st.subheader("Where the numbers come from")
st.table(dict(provenance_rows(result)), border="horizontal", alt="Provenance of the run")
