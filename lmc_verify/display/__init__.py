"""How results show themselves: short texts, tables in a notebook, data frames and figures.

Nothing here knows what it shows, and pandas, PyArrow and matplotlib are imported when they are asked for.
"""
