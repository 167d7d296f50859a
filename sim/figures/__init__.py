"""How does it look? One set of Plotly figures for the app and all reports."""
