"""The rooms of the page; app.py is the way in."""
