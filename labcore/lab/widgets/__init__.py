"""Widgets: thin skins of core ipywidgets over figures and engine calls. No computation lives here."""
