"""What do the Streamlit pages share? `app.py` is their navigation."""
