"""Streamlit pages; `app.py` is their navigation."""
