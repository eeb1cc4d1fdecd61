"""Generators side by side: the same images, training time and judge, a table and a plot.

`environment.py`: what a result records; `references/`: what a user would take instead; `candidates.py`:
what a name on the command line stands for; `cells.py`: one generator with one seed; `grid.py`: all of
them; `summary.py`, `plot.py`, `page.py`: what comes out. Nothing heavy is imported here.
"""
