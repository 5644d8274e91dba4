"""BENCHMARKS: the same work on vpnkit, slirp4netns, pasta and the host's own loopback, in one run.

`python -m benchmarks` measures, prints a table and the bars of the project, and writes JSON, Markdown and a plot.
Nothing here is shipped and nothing in the product imports it.

To read it in ten minutes: `rows.py` and `more_rows.py` say what is measured, `contenders.py` how each translator is
started, `measure.py` in which order, `world.py` where, `bars.py` what the project promised.
"""
